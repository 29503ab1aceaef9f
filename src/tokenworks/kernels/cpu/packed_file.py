"""The file of a checkpoint's packed weights: matrices as the kernels read them, to be mapped instead of packed.

    matrix, matrix, ...   each from a multiple of 4096 bytes on, in the order in which they were packed
    index                 MessagePack: Index
    end                   magic, the index's length in 8 bytes, its SHA-256

The index comes last because a matrix's scale is known only when it has been packed: a model larger than memory is
packed, written and dropped piece by piece. A matrix is the smallest piece, and an expert of a mixture is a matrix.

A file is written once, under another name, synced, and renamed; nothing changes it afterwards. Its time of modification
is set to the index's `written_s`, so one that something did change is known by its time, one that is cut short by its
missing end, one of other sources or another layout by its index. Checksums of whole matrices are for who reads them all
anyway.
"""

import contextlib
import hashlib
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from tokenworks.kernels.backend import Source
from tokenworks.kernels.cpu import _cpu

LAYOUT = "panels16.2"
"""All instruction sets read the same packed bytes (linear/packed.h). Whatever makes other bytes of the same checkpoint
(there, in linear/pack.cpp, or before in models/) changes this name: tests/kernels/test_packed_file.py notices."""

PAGE_BYTES = 4096
CHUNK_BYTES = 2 << 20
"""Written at once, and at multiples of it: Linux (ext4 from 6.16 on, XFS) then caches the file in pages of that size,
which it can map whole. With pages of 4 KiB decoding takes a tenth longer."""

_MAGIC = b"TWPACKED"
_END = struct.Struct("<8sQ32s")

Bytes = npt.NDArray[np.uint8]
Facts = tuple[str, int, int, float, bool]
"""Of a packed matrix: layout, out_features, in_features, scale, whether panels end with scales of rows."""


class Matrix(msgspec.Struct, frozen=True, array_like=True):
    name: str
    facts: Facts
    offset: int
    checksum: int


class Index(msgspec.Struct, frozen=True, array_like=True):
    layout: str
    sources: tuple[Source, ...]
    written_s: int
    """Since 1970: the file's time of modification."""
    matrices: tuple[Matrix, ...]


@dataclass(slots=True)
class Writer:
    """Writes to a new, empty file, in order. Raises OSError when the disk is full, or a file may not be so large."""

    file: int
    """Its descriptor."""
    sources: tuple[Source, ...]
    _matrices: list[Matrix] = field(default_factory=list)
    _pending: list[memoryview] = field(default_factory=list)
    _written: int = 0
    _end: int = 0

    def add(self, name: str, facts: Facts, data: Bytes) -> None:
        self._append(memoryview(bytes(-self._end % PAGE_BYTES)))
        self._matrices.append(Matrix(name, facts, self._end, _cpu.checksum(data)))
        self._append(data.data)

    def finish(self, written_s: int) -> None:
        """To the disk, so that a power cut after the renaming cannot leave a file with holes."""
        index = msgspec.msgpack.encode(Index(LAYOUT, self.sources, written_s, tuple(self._matrices)))
        self._append(memoryview(index + _END.pack(_MAGIC, len(index), hashlib.sha256(index).digest())))
        self._write(self._end - self._written)
        os.fsync(self.file)
        os.utime(self.file, (written_s, written_s))

    def _append(self, piece: memoryview) -> None:
        self._pending.append(piece)
        self._end += len(piece)
        while self._end - self._written >= CHUNK_BYTES:
            self._write(CHUNK_BYTES)

    def _write(self, size: int) -> None:
        """The first `size` bytes of what is pending, in one call if the system takes them all."""
        while size:
            parts, taken = [], 0
            for piece in self._pending:
                parts.append(piece[: size - taken])
                taken += len(parts[-1])
                if taken == size:
                    break
            done = os.pwritev(self.file, parts, self._written)
            self._written += done
            size -= done
            while self._pending and done >= len(self._pending[0]):
                done -= len(self._pending.pop(0))
            if done:
                self._pending[0] = self._pending[0][done:]


@dataclass(frozen=True, slots=True)
class PackedFile:
    """An open file of packed weights."""

    data: Bytes
    """Mapped, shared and read-only: processes that map it share the memory, and the system may take it back."""
    index: Index
    identity: tuple[int, int]
    """The file's device and number there."""

    def matrices(self) -> Mapping[str, tuple[Facts, Bytes]]:
        return {m.name: (m.facts, self.data[m.offset :][: _cpu.packed_bytes(m.facts)]) for m in self.index.matrices}

    def damaged(self, executor: _cpu.Executor) -> bool:
        """Reads everything, and so brings it into memory."""
        sums = executor.checksums([data for _, data in self.matrices().values()])
        return sums != [matrix.checksum for matrix in self.index.matrices]


def read_index(path: Path) -> Index | None:
    """None when there is no whole file of this kind. Reads only the file's end, and leaves its time of access."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NOATIME", 0))
    except OSError:
        return None
    try:
        return _index(file)
    except OSError:
        return None
    finally:
        os.close(file)


def open_packed(path: Path, sources: tuple[Source, ...]) -> PackedFile | None:
    """None when there is no whole and unchanged file of this layout, made from these sources."""
    try:
        with path.open("rb") as file:
            index = _index(file.fileno())
            if index is None or index.layout != LAYOUT or index.sources != sources:
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            identity = _identity(file.fileno())
    except (OSError, ValueError):
        return None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return PackedFile(np.frombuffer(mapped, np.uint8), index, identity)


@contextlib.contextmanager
def reopened(path: Path, file: PackedFile) -> Iterator[int]:
    """A descriptor of an open file, to read it past its mapping; -1 when it is not there any more."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield -1
        return
    try:
        yield descriptor if _identity(descriptor) == file.identity else -1
    finally:
        os.close(descriptor)


def _identity(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_dev, status.st_ino


def _index(file: int) -> Index | None:
    status = os.fstat(file)
    if status.st_size < _END.size:
        return None
    magic, length, digest = _END.unpack(os.pread(file, _END.size, status.st_size - _END.size))
    start = status.st_size - _END.size - length
    if magic != _MAGIC or start < 0:
        return None
    encoded = os.pread(file, length, start)
    if hashlib.sha256(encoded).digest() != digest:
        return None
    try:
        index = msgspec.msgpack.decode(encoded, type=Index)
        inside = all(
            0 <= matrix.offset <= start - _cpu.packed_bytes(matrix.facts) and matrix.offset % PAGE_BYTES == 0
            for matrix in index.matrices
        )
    except (msgspec.MsgspecError, ValueError):
        return None
    return index if inside and int(status.st_mtime) == index.written_s else None


def mapped_by_large_pages(data: Bytes) -> bool:
    """Whether most of a mapping, all of it touched before, is mapped by pages of 2 MiB or more, as Linux tells."""
    address = data.ctypes.data
    try:
        with Path("/proc/self/smaps").open(encoding="ascii", errors="replace") as lines:
            inside = False
            for line in lines:
                first, _, rest = line.partition(" ")
                if not first.endswith(":"):
                    start, _, end = first.partition("-")
                    inside = int(start, 16) <= address < int(end, 16)
                elif inside and first == "FilePmdMapped:":
                    return int(rest.split()[0]) * 1024 >= data.nbytes * 3 // 4
    except OSError:
        pass
    return False
