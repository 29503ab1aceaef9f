"""Weights on their way from files to the device: several threads read, one stream of the device's copies and packs.

A thread takes a weight, which may be made in that very moment, and brings it in slabs of rows: from the mapped file to
one of its two staging buffers, whose memory is pinned, and from there to the device, where the weight's own `write`
brings it into the layout that products read. Nothing waits but for what it needs: a staging buffer for the copy before
the last, the device's stream for its next slab. What lies on a CPU (tests) goes the same way without staging.
"""

import ctypes
import mmap
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from tokenworks.kernels.formats import FORMATS
from tokenworks.kernels.tensor import Description, Tensor

MOST_READERS = 8
"""More of them outrun neither the disk nor the bus."""
SLAB_BYTES = 8 << 20
"""Of a file, at a time; so much staging memory has each reader, twice: 128 MiB in all."""
SLAB_WEIGHTS = 8 << 20
"""The same: what packing takes beside, about 30 bytes a weight, is taken once."""
SCALE_BYTES = 4
SWITCH_S = 5e-4
"""How long a thread that computes keeps Python from the others meanwhile. A reader needs it for moments, some ten times
a slab; with Python's own 5 ms another thread that computes makes packing half as slow again."""
WILL_NEED = 3
"""Linux' MADV_WILLNEED."""


@dataclass(frozen=True, slots=True)
class Source:
    """A weight that has not been looked up."""

    what: Description
    look_up: Callable[[], Tensor]
    """May make the weight; called once by any thread, and the tensor is forgotten when it is on the device."""


@dataclass(frozen=True, slots=True)
class Slab:
    """Some rows of a weight, on the device."""

    format: str
    rows: slice
    """Of the weight's."""
    data: torch.Tensor
    """[rows, bytes of a row] uint8, as in the file."""
    row_scales: torch.Tensor | None
    """[rows] float32"""

    @property
    def blocks(self) -> torch.Tensor:
        """[rows, blocks of a row, bytes of a block]"""
        return self.data.view(len(self.data), -1, FORMATS[self.format].block_bytes)


Write = Callable[[Slab], None]


@dataclass(slots=True)
class _Staging:
    """A buffer of a reader's."""

    bytes_: torch.Tensor
    sent: torch.cuda.Event
    """When the device has what was in it last."""


class _Reader(threading.local):
    """What is a thread's own. Without __slots__, which all threads would share."""

    def __init__(self) -> None:
        self.staging: list[_Staging] = []


class Loading:
    """A block in which weights come; they are all there when it ends. Raises what a thread met: ModelError,
    OutOfMemoryError."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device = device
        self._pool = ThreadPoolExecutor(max(2, min(threads, MOST_READERS)), thread_name_prefix="weights")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._reader = _Reader()
        self._packing = threading.Lock()
        self._coming: list[Future[None]] = []

    def __enter__(self) -> "Loading":
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            for each in self._coming if error is None else ():
                each.result()
        finally:
            self._pool.shutdown(cancel_futures=True)
            self._coming.clear()
            sys.setswitchinterval(self._switch_s)
        if self._stream is not None:
            self._stream.synchronize()
            torch.cuda.empty_cache()  # what packing took belongs to this stream: nobody else would be given it

    def bring(self, source: Source, write: Write) -> None:
        """Has `write` called with each slab of rows, in some thread, the device's work in this one's stream. What it
        writes to must be there already."""
        there = torch.cuda.current_stream(self.device).record_event() if self._stream is not None else None
        self._coming.append(self._pool.submit(self._bring, source, write, there))

    def _bring(self, source: Source, write: Write, there: torch.cuda.Event | None) -> None:
        tensor = source.look_up()
        count = tensor.shape[0]
        height = max(1, min(SLAB_BYTES * count // max(1, tensor.data.nbytes), SLAB_WEIGHTS // tensor.shape[1]))
        parts = [tensor.rows(first, min(height, count - first)) for first in range(0, count, height)]
        _will_need(parts[0].data)
        with self._in_stream(there):
            for number, part in enumerate(parts):
                if number + 1 < len(parts):
                    _will_need(parts[number + 1].data)
                self._bring_slab(part, slice(number * height, number * height + part.shape[0]), write)

    @contextmanager
    def _in_stream(self, there: torch.cuda.Event | None) -> Iterator[None]:
        if self._stream is None or there is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(there)
            yield

    def _bring_slab(self, part: Tensor, rows: slice, write: Write) -> None:
        data, scales = part.data, part.row_scales
        behind = -(-data.nbytes // SCALE_BYTES) * SCALE_BYTES
        whole = behind + (0 if scales is None else SCALE_BYTES * len(scales))
        if self._stream is None:
            held, sums = from_numpy(data), None if scales is None else from_numpy(scales)
        else:
            staging = self._staging(whole)
            numbers = staging.bytes_.numpy()
            np.copyto(numbers[: data.nbytes], data)
            if scales is not None:
                np.copyto(numbers[behind:whole].view(np.float32), scales)
            held = staging.bytes_[:whole].to(self.device, non_blocking=True)
            staging.sent.record(self._stream)
            sums = None if scales is None else held[behind:].view(torch.float32)
        with self._packing:
            write(Slab(part.format, rows, held[: data.nbytes].view(part.shape[0], -1), sums))

    def _staging(self, size_bytes: int) -> _Staging:
        """This thread's other buffer, when what was in it has gone."""
        mine = self._reader.staging
        if len(mine) < 2:
            mine.append(_Staging(torch.empty(0, dtype=torch.uint8), torch.cuda.Event()))
        else:
            mine.reverse()
        staging = mine[-1]
        staging.sent.synchronize()
        if len(staging.bytes_) < size_bytes:
            room = max(size_bytes, SLAB_BYTES + SCALE_BYTES)
            staging.bytes_ = torch.empty(room, dtype=torch.uint8, pin_memory=True)
        return staging


def from_numpy(data: np.ndarray) -> torch.Tensor:
    """A view, also of memory that cannot be written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nobody may write to it: nobody does
        return torch.from_numpy(data)


def _will_need(data: np.ndarray) -> None:
    """Has the file's pages read ahead, in pieces larger than those of a page that is missed."""
    if sys.platform != "linux":
        return
    begin = data.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    size = data.ctypes.data + data.nbytes - begin
    # A hint: it does not matter whether it is taken.
    ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), WILL_NEED)
