"""The folder of packed weights: a file for each checkpoint that was served, so that the next start need not pack.

    DATA/packed/NAME-HASH.packed   see kernels/cpu/packed_file.py; deleting it is safe at any time
    DATA/packed/NAME-HASH.part     one that is being written, or was when its writer died
    DATA/locks/NAME-HASH.lock      held while a process writes it

HASH is of the checkpoint's path and of the dtype it is served in, so that a changed checkpoint's file replaces the old
one. A file's time of access is when a worker last began with it; those unused for longest go first when the folder is
full. A process that has mapped a file keeps it, whatever becomes of its name.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenworks.config import data_directory
from tokenworks.kernels.backend import Source
from tokenworks.kernels.cpu.packed_file import read_index
from tokenworks.models.files.gguf import part_paths
from tokenworks.protocol.clock import wall_time_s

HEAD_BYTES = 256 << 10
"""Of each source file, hashed: its header, or most of it, beside the size and time that tell nearly every change."""

FREE_SHARE = 0.05
"""Of the disk, that stays free."""


@dataclass(frozen=True, slots=True)
class PackedPlace:
    """A checkpoint's packed weights in the folder, whether or not they are there yet. See kernels/backend.py."""

    path: Path
    sources: tuple[Source, ...]
    limit_bytes: int
    """Of the whole folder."""

    @contextlib.contextmanager
    def locked(self, *, wait: bool) -> Iterator[bool]:
        path = _lock_path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextlib.contextmanager
    def new_file(self, size_bytes: int) -> Iterator[int]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(self.path, size_bytes, self.limit_bytes)
        part = self.path.with_suffix(".part")
        file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            yield file
            part.rename(self.path)
            _sync(self.path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)

    def used(self) -> None:
        with contextlib.suppress(OSError):  # a home that cannot be written to
            os.utime(self.path, ns=(int(wall_time_s() * 1e9), self.path.stat().st_mtime_ns))


@dataclass(frozen=True, slots=True)
class Kept:
    """A file in the folder."""

    path: Path
    size_bytes: int
    used_s: float
    """Since 1970."""
    sources: tuple[str, ...]
    """Paths of the files it was made from; none when it is not whole."""


def place_of(checkpoint: Path, limit_mb: int, dtype: str = "auto") -> PackedPlace | None:
    """Where the packed weights of the checkpoint at this path, served in `dtype`, belong; None when nothing is to be
    kept, or its files cannot be read."""
    if limit_mb == 0:
        return None
    path = checkpoint.resolve()
    kinds = ("*.json", "*.safetensors", "*.bin")
    files = part_paths(path) if path.is_file() else sorted(file for kind in kinds for file in path.glob(kind))
    try:
        sources = tuple(_source(file) for file in files)
    except OSError:
        return None
    served = b"" if dtype == "auto" else b"\0" + dtype.encode()
    key = hashlib.sha256(os.fsencode(path) + served).hexdigest()[:16]
    return PackedPlace(_folder() / f"{path.stem[:60]}-{key}.packed", sources, limit_mb << 20)


def everything() -> list[Kept]:
    """Every file of packed weights, the one unused for longest first. What a dead process left half written is
    deleted on the way."""
    kept = []
    with contextlib.suppress(OSError):
        for path in _folder().iterdir():
            if path.suffix == ".part":
                _delete_if_dead(path)
            elif path.suffix == ".packed" and (found := _kept(path)) is not None:
                kept.append(found)
    return sorted(kept, key=lambda each: each.used_s)


def of(checkpoint: Path) -> list[Kept]:
    """The files made from the checkpoint at this path."""
    path = checkpoint.resolve()
    return [each for each in everything() if any(Path(source).is_relative_to(path) for source in each.sources)]


def _folder() -> Path:
    return data_directory() / "packed"


def _lock_path(path: Path) -> Path:
    return data_directory() / "locks" / f"{path.stem}.lock"


def _source(file: Path) -> Source:
    with file.open("rb") as opened:
        head = hashlib.sha256(opened.read(HEAD_BYTES)).hexdigest()
        status = os.fstat(opened.fileno())
    return Source(str(file), status.st_size, status.st_mtime_ns, head)


def _kept(path: Path) -> Kept | None:
    index = read_index(path)
    try:
        status = path.stat()
    except FileNotFoundError:  # another process has deleted it
        return None
    return Kept(path, status.st_size, status.st_atime, tuple(s.path for s in index.sources) if index else ())


def _make_room(path: Path, size_bytes: int, limit_bytes: int) -> None:
    """Deletes what was unused for longest, until a file of this size fits. Raises OSError when it cannot."""
    others = [each for each in everything() if each.path != path]
    disk = shutil.disk_usage(path.parent)
    free_bytes = disk.free - disk.total * FREE_SHARE
    used_bytes = sum(each.size_bytes for each in others)
    if size_bytes > min(limit_bytes, free_bytes + used_bytes):
        raise OSError(errno.ENOSPC, "There is no room for packed weights", str(path))
    for each in others:
        if used_bytes + size_bytes <= limit_bytes and size_bytes <= free_bytes:
            return
        each.path.unlink(missing_ok=True)
        used_bytes -= each.size_bytes
        free_bytes += each.size_bytes


def _delete_if_dead(part: Path) -> None:
    with contextlib.suppress(OSError), _lock_path(part).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
