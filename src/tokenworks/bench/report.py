"""One bench run from start to report: the object `tokenworks bench --json` writes."""

import platform
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tokenworks.bench.client import Client
from tokenworks.bench.points import Point, measure
from tokenworks.bench.prompts import Prompts, manual_texts
from tokenworks.bench.server import OwnServer, listening_process, memory_bytes
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.telemetry.cores import cores_allowed


async def bench_own(
    arguments: Sequence[str],
    *,
    concurrency: Iterable[int],
    repeats: int,
    seed: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Starts `tokenworks serve ARGUMENTS` (`repeats` times, to time the start), measures all points, stops it."""
    with tempfile.TemporaryDirectory() as folder:
        starts: list[float] = []
        for repeat in range(repeats):
            progress("start to first token")
            server = OwnServer(arguments, Path(folder) / "serve.log")
            try:
                starts.append(await server.first_token_s())
                if repeat + 1 == repeats:
                    report = await bench_url(
                        f"http://127.0.0.1:{server.port}",
                        None,
                        concurrency=concurrency,
                        repeats=repeats,
                        seed=seed,
                        progress=progress,
                    )
            finally:
                server.stop()
    report["points"].append(_row(Point("start_to_first_token", "s", tuple(starts))))
    return report


async def bench_url(
    url: str,
    model: str | None,
    *,
    concurrency: Iterable[int],
    repeats: int,
    seed: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measures the server at `url`, any OpenAI-compatible one. `model` None: the first it serves."""
    client = Client(url, model)
    try:
        client.model = model or (await client.models())[0]
    except OSError as error:
        raise InvalidRequest(f"{url} cannot be reached ({error}): is a server there?") from error
    prompts = Prompts([token for text in manual_texts() for token in await client.tokenize(text)], seed)
    process = listening_process(client.port) if client.host in ("127.0.0.1", "localhost") else None
    points = await measure(
        client,
        prompts,
        concurrency=concurrency,
        repeats=repeats,
        memory_bytes=partial(memory_bytes, process) if process else None,
        progress=progress,
    )
    return {
        "machine": machine(),
        "model": client.model,
        "url": url,
        "seed": seed,
        "points": [_row(point) for point in points],
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu
        )
    return {
        "cpu": cpu,
        "cores": cores_allowed(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _row(point: Point) -> dict[str, Any]:
    return {"name": point.name, "value": point.value, "unit": point.unit, "repeats": list(point.repeats)}
