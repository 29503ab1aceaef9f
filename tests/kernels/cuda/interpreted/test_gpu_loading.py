"""Weights come to the device in slabs, by several threads, with the numbers that their formats say."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bring import CPU, brought, sources_of
from test_gpu_blocks import random_tensor

from tokenworks.kernels.cuda import loading as module
from tokenworks.kernels.cuda.loading import Loading, Slab, Source
from tokenworks.kernels.cuda.products.block_layout import bring_packed, coding_of
from tokenworks.kernels.cuda.weights import Weights, pack_bf16
from tokenworks.kernels.formats import FORMATS, dequantise
from tokenworks.kernels.tensor import Description, Tensor, describe
from tokenworks.protocol.errors import ModelError

ROWS, COLUMNS = 13, 512


def tensor_of(name: str) -> Tensor:
    if name not in ("BF16", "F16", "F32"):
        return random_tensor(name, ROWS, COLUMNS)
    numbers = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    halves = numbers.to({"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[name])
    return Tensor("weight", name, (ROWS, COLUMNS), halves.view(torch.uint8).numpy().ravel())


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_slabs_are_what_the_whole_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As bfloat16 the numbers of formats.py, rounded once; packed, the same words and scales."""
    tensor = tensor_of(name)
    whole = brought([tensor], bring_packed)
    assert (whole is None) == (coding_of(Description(name, tensor.shape)) is None)
    monkeypatch.setattr(module, "SLAB_BYTES", 3 * tensor.data.nbytes // ROWS)
    made = brought([tensor, tensor], pack_bf16).weights
    wanted = torch.from_numpy(dequantise(tensor)).bfloat16()
    torch.testing.assert_close(made, torch.cat([wanted, wanted]), rtol=0, atol=0, equal_nan=True)
    if whole is not None:
        cut = brought([tensor], bring_packed)
        for one, other in ((cut.words, whole.words), (cut.scales, whole.scales), (cut.row_scales, whole.row_scales)):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


def test_slabs_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLAB_WEIGHTS", 2 * COLUMNS)
    (source,), seen = sources_of([tensor_of("NVFP4")]), []
    with Loading(CPU, 4) as loading:
        loading.bring(source, lambda slab: seen.append((slab.rows, len(slab.data), len(slab.row_scales))))
    assert seen == [(slice(at, min(at + 2, ROWS)), min(2, ROWS - at), min(2, ROWS - at)) for at in range(0, ROWS, 2)]


def test_what_threads_meet_is_raised_where_the_block_ends() -> None:
    def fail() -> Tensor:
        raise ModelError("weight: unreadable")

    with pytest.raises(ModelError, match="unreadable"), Loading(CPU, 2) as loading:
        loading.bring(Source(Description("F32", (1, 1)), fail), lambda slab: None)


def test_a_block_that_fails_waits_for_what_has_begun_and_leaves_the_rest() -> None:
    begun, go, done = threading.Event(), threading.Event(), []
    (source,) = sources_of([tensor_of("BF16")])

    def write(slab: Slab) -> None:
        begun.set()
        go.wait(10)
        done.append(slab.rows)

    def block() -> None:
        with Loading(CPU, 2) as loading:
            for _ in range(9):
                loading.bring(source, write)
            begun.wait(10)
            threading.Timer(0.1, go.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        block()
    assert 1 <= len(done) <= 2
    assert sys.getswitchinterval() == pytest.approx(0.005)
    assert not [each for each in threading.enumerate() if each.name.startswith("weights")]


def test_weights_that_are_never_made_are_described() -> None:
    tensors = {"a": tensor_of("F16"), "norm": Tensor("norm", "F32", (4,), np.ones(4, np.float32).view(np.uint8))}
    asked: list[str] = []

    def look_up(name: str) -> Tensor:
        asked.append(name)
        return tensors[name]

    with Loading(CPU, 2) as loading:
        weights = Weights(loading, partial(describe, tensors), look_up)
        assert weights.heights(("a",)) == [ROWS]
        assert asked == []
        table, matrix = weights.table("a"), weights.matrix(("a",))
        assert weights.vector("norm").tolist() == [1, 1, 1, 1]
    assert matrix.weights is table, "of 16 bits in the file: one memory for both"
    assert asked.count("a") == 1
    assert weights.nbytes == table.nbytes + 16


@pytest.mark.parametrize("name", ["NVFP4", "BF16", "Q6_K"])
def test_two_buffers_in_turn_bring_what_none_brings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for a stream and its events, on memory that is not pinned: a buffer is written when its event has
    come, and what it holds, row scales behind the bytes, is what goes to the device."""
    tensor = tensor_of(name)
    plain = brought([tensor], pack_bf16).weights
    events: list[str] = []

    class Event:
        def record(self, stream: object) -> None:
            events.append(f"sent {id(self)}")

        def synchronize(self) -> None:
            events.append(f"free {id(self)}")

    class Stream:
        def wait_event(self, event: object) -> None: ...

        def synchronize(self) -> None: ...

        def record_event(self) -> object:
            return object()

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *given, pin_memory=False, **how: empty(*given, **how))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("given back"))
    monkeypatch.setattr(module, "SLAB_BYTES", 3 * tensor.data.nbytes // ROWS)

    def staged(sources: list[Source], loading: Loading) -> torch.Tensor:
        loading._stream = Stream()
        return pack_bf16(sources, loading).weights

    assert torch.equal(brought([tensor], staged), plain)
    assert events.pop() == "given back"
    frees, sents = events[::2], events[1::2]
    assert len(frees) == -(-ROWS // 3)
    assert [each.split()[1] for each in frees] == [each.split()[1] for each in sents]
    assert len(set(sents)) == 2 and all(one != other for one, other in pairwise(sents))


def test_each_reader_has_buffers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *given, pin_memory=False, **how: empty(*given, **how))
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(synchronize=lambda: None))
    with Loading(CPU, 2) as loading, ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        buffers = [thread.submit(loading._staging, 8).result() for thread in (one, one, other, other, one, other)]
    assert len({id(each) for each in buffers}) == 4
    assert buffers[4] is buffers[0] and buffers[5] is buffers[2]
