"""Kernels compiled before they are needed, many at a time.

Triton compiles a kernel when it is first launched, one after the other, in 0.1 to 1.5 s each, and a model of any size
has some thirty. Here the launches of a few steps are gone through without being run; what they would compile, threads
do (the compiler leaves Python alone most of the time), or fetch it from the cache on disk, and build and load what
launches it. That takes nothing of the device, so that weights may still be on their way.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from triton import AsyncCompileMode
from triton.runtime.jit import JITFunction

MOST_THREADS = 16
Kernel = TypeVar("Kernel")


@contextmanager
def compiling(threads: int) -> Iterator[None]:
    """Triton's kernels that are launched in this block are not run, but ready to be when it ends. PyTorch's operations
    run as ever. What does not compile says so when it is launched in earnest."""
    launch, seen = JITFunction.run, set()

    def compile_only(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        # Finer than Triton's own key, and a thirtieth of its price: layers are all alike.
        key = (self, *map(_kind, args), *options.items())
        if key not in seen:
            seen.add(key)
            launch(self, *args, grid=grid, warmup=True, **options)

    JITFunction.run = compile_only
    try:
        with _Threads(threads) as pool, AsyncCompileMode(pool, ignore_errors=True):
            yield
    finally:
        JITFunction.run = launch


def _kind(argument: object) -> object:
    """Of a launch's arguments, as far as it matters to the compiler, and further."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return argument


class _Threads(Executor):
    """Makes each kernel ready to be launched on the device that is current here."""

    def __init__(self, threads: int) -> None:
        count, device = max(1, min(threads, MOST_THREADS)), torch.cuda.current_device()
        self._pool = ThreadPoolExecutor(count, "kernels", initializer=torch.cuda.set_device, initargs=(device,))

    def submit(self, fn: Callable[..., Kernel], /, *args: Any, **kwargs: Any) -> "Future[Kernel]":
        return self._pool.submit(_ready, fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def _ready(compile_: Callable[..., Kernel], *args: Any, **kwargs: Any) -> Kernel:
    kernel = compile_(*args, **kwargs)
    _ = kernel.run  # type: ignore[attr-defined]  # builds or fetches what launches it, and loads it onto the device
    return kernel
