"""A package index on this machine, which fails as it is told, and wheels for it."""

import hashlib
import json
import os
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

GGUF = b"GGUF" + os.urandom(3_000_000)
"""A model, as far as its first bytes say."""


@dataclass
class Index:
    """A package index on this machine; `faults` are spent one by one, one for each file request."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    json: bool = False
    """Whether its pages are JSON (PEP 691) instead of HTML."""
    faults: list[str] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """File and Range header of each request for a file."""
    slow: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    index: Index

    def do_GET(self) -> None:
        name = self.path.strip("/").split("/")[-1]
        if self.path.startswith("/simple/"):
            self._page(name)
        elif name in self.index.files:
            self._file(name)
        else:
            self.send_error(404)

    def _page(self, package: str) -> None:
        here = {
            file: hashlib.sha256(content).hexdigest()
            for file, content in self.index.files.items()
            if file.split("-")[0].replace("_", "-").lower() == package
        }
        if self.index.json:
            kind = "application/vnd.pypi.simple.v1+json"
            files = [
                {"filename": file, "url": f"/files/{file}", "hashes": {"sha256": sha256}, "requires-python": ">=3.8"}
                for file, sha256 in here.items()
            ]
            body = json.dumps({"meta": {"api-version": "1.0"}, "name": package, "files": files}).encode()
        else:
            kind = "text/html"
            links = [f'<a href="/files/{file}#sha256={sha256}">{file}</a>' for file, sha256 in here.items()]
            body = f"<!DOCTYPE html><html><body>{' '.join(links)}</body></html>".encode()
        self.send_response(200 if here else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, name: str) -> None:
        content = self.index.files[name]
        wanted = self.headers.get("Range")
        self.index.asked.append((name, wanted))
        fault = self.index.faults.pop(0) if self.index.faults else ""
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and fault != "ignore range" else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault.isdigit():
            self.send_error(int(fault))
            return
        rest = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if fault == "cut":
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
        elif fault == "stall":
            self.wfile.write(rest[: len(rest) // 2])
            self.index.slow.wait(30)
        else:
            self.wfile.write(rest)

    def log_message(self, *_: object) -> None:
        pass


def wheel(package: str, version: str, files: dict[str, bytes], folder: Path) -> Path:
    """Writes a wheel, as small as the standard allows."""
    stem = f"{package.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    path = folder / f"{stem}-py3-none-any.whl"
    everything = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nLicense: MIT\n"
        "Requires-Dist: a-package-that-must-never-be-asked-for\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/licenses/LICENSE": b"do what you like",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in everything.items():
            archive.writestr(name, content)
    return path


def publish(index: Index, tmp_path: Path, files: dict[str, bytes], version: str = "1.0") -> str:
    """Puts the package tiny-model on the index. Returns its wheel's name."""
    path = wheel("tiny-model", version, files, tmp_path)
    index.files[path.name] = path.read_bytes()
    return path.name
