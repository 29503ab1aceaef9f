"""One file over HTTP: resumed where it stopped, checked against its hash, complete or absent."""

import hashlib
import shutil
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenworks.models.sources.progress import Progress
from tokenworks.protocol.errors import ModelError

if TYPE_CHECKING:
    import httpx  # imported where it is used: it takes a fifth of a second, and most starts download nothing

CHUNK_BYTES = 1 << 18
ATTEMPTS_WITHOUT_PROGRESS = 5
FIRST_WAIT_S = 0.5
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Network:
    """How to reach the index, as the user's pip is told to."""

    ca_file: str | None = None
    """A PEM file, or a folder of them, of certificate authorities to trust; None: the system's."""
    proxy: str | None = None
    """None: from the environment."""


class _InterruptedError(Exception):
    """The transfer stopped early; what has arrived is kept."""


def download(url: str, sha256: str | None, folder: Path, progress: Progress, network: Network) -> Path:
    """Fetches `url` into `folder`, and returns the file, named by its hash.

    What has arrived lies in a `.part` file, which the next call for the same hash carries on. Without a hash to check
    against, nothing tells two versions of a file apart, so such a download starts anew each time. Raises ModelError.
    """
    import httpx

    name = sha256 or hashlib.sha256(url.encode()).hexdigest()
    title = url.rsplit("/", 1)[-1]
    whole, part = folder / name, folder / f"{name}.part"
    if sha256 and whole.exists():
        return whole
    folder.mkdir(parents=True, exist_ok=True)
    if not sha256:
        part.unlink(missing_ok=True)

    with httpx.Client(
        verify=certificates(network.ca_file),
        proxy=network.proxy,
        follow_redirects=True,
        timeout=TIMEOUT_S,
        headers={"Accept-Encoding": "identity"},
    ) as client:
        failures = 0
        while True:
            before_bytes = _size(part)
            try:
                _transfer(client, url, part, title, progress)
                break
            except (httpx.TransportError, _InterruptedError) as error:
                failures = 0 if _size(part) > before_bytes else failures + 1
                if failures == ATTEMPTS_WITHOUT_PROGRESS or isinstance(error, httpx.ConnectError):
                    raise ModelError(
                        f"Downloading {title} from {httpx.URL(url).host} failed: {error or type(error).__name__}. "
                        f"{_size(part) / 1e6:.0f} MB are kept: run the same command again to carry on."
                    ) from error
                progress.say(f"The connection broke ({error or type(error).__name__}); carrying on.")
                time.sleep(FIRST_WAIT_S * 2**failures)

    if sha256 and (found := _sha256(part)) != sha256:
        part.unlink()
        raise ModelError(
            f"{title} arrived with the wrong content (sha256 {found}, the index promises {sha256}), so it was deleted. "
            "Try again; if it happens again, the index or a proxy on the way serves a damaged or changed file."
        )
    return part.rename(whole)


def _transfer(client: "httpx.Client", url: str, part: Path, title: str, progress: Progress) -> None:
    """Appends the missing rest of `url` to `part`. Raises _InterruptedError when the server stopped early."""
    have_bytes = _size(part)
    with client.stream("GET", url, headers={"Range": f"bytes={have_bytes}-"} if have_bytes else {}) as response:
        if response.status_code == 416:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(have_bytes):
                return  # everything had arrived before
            part.unlink()
            raise _InterruptedError("the server's file is not the one that was begun")
        if response.status_code not in (200, 206):
            raise ModelError(_refused(title, response))
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have_bytes}-"
        )
        if response.status_code == 206 and not resumed:
            part.unlink()
            raise _InterruptedError("the server sent another range than the one asked for")
        have_bytes = have_bytes if resumed else 0
        length = response.headers.get("Content-Length")
        total_bytes = have_bytes + int(length) if length else None
        if total_bytes is not None:
            _need_space(part, total_bytes - have_bytes)
        progress.begin(title, have_bytes, total_bytes)
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_raw(CHUNK_BYTES):
                file.write(chunk)
                progress.advance(len(chunk))
    if total_bytes is not None and _size(part) != total_bytes:
        raise _InterruptedError(f"{_size(part)} of {total_bytes} bytes arrived")


def _refused(title: str, response: "httpx.Response") -> str:
    cure = {
        401: "The index wants a login: put the credentials where pip finds them (~/.netrc).",
        403: "The index refuses this machine: ask who runs it.",
        404: "The file is gone from the index: try another version.",
    }.get(response.status_code, "Try again later.")
    return f"{response.url.host} answers {response.status_code} for {title}. {cure}"


def _need_space(part: Path, more_bytes: int) -> None:
    free_bytes = shutil.disk_usage(part.parent).free
    if more_bytes > free_bytes:
        raise ModelError(
            f"{part.parent} has {free_bytes / 1e6:.0f} MB free and the download needs {more_bytes / 1e6:.0f} MB. "
            "Make room, or point TOKENWORKS_HOME to a larger disk."
        )


def certificates(ca_file: str | None) -> ssl.SSLContext:
    """Whom to trust: the authorities in a PEM file or a folder, or the system's. Raises ModelError."""
    if ca_file is None:
        return ssl.create_default_context()
    if not Path(ca_file).exists():
        raise ModelError(
            f"The certificate file {ca_file} does not exist; pip's settings or the environment name it "
            "(PIP_CERT, REQUESTS_CA_BUNDLE, SSL_CERT_FILE)."
        )
    if Path(ca_file).is_dir():
        return ssl.create_default_context(capath=ca_file)
    return ssl.create_default_context(cafile=ca_file)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
