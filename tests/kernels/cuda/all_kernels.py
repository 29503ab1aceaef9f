"""Which kernels there are: both gates, of what they compute and of how they are compiled, must know them all."""

import pkgutil
from importlib import import_module

from triton.runtime.jit import JITFunction, KernelInterface

import tokenworks.kernels.cuda

LAUNCHED = "launched under the interpreter:"
"""Begins a line of names of kernels in what interpreted/ prints."""


def name_of(kernel: KernelInterface) -> str:
    return f"{kernel.fn.__module__.removeprefix('tokenworks.kernels.cuda.')}.{kernel.fn.__name__}"


def entry_kernels() -> set[str]:
    """Names of those that are launched: no other kernel calls them."""
    package = tokenworks.kernels.cuda
    names = [each.name for each in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    modules = [import_module(name) for name in names]
    kernels = {id(each): each for module in modules for each in vars(module).values() if isinstance(each, JITFunction)}
    called = {
        id(kernel.fn.__globals__.get(name)) for kernel in kernels.values() for name in kernel.fn.__code__.co_names
    }
    return {name_of(kernel) for key, kernel in kernels.items() if key not in called}
