"""What this machine has, read from the system: nothing here needs the engine."""

import os
import platform
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from tokenworks.protocol.clock import now_s
from tokenworks.telemetry.cores import cores_allowed

ENGINE_INSTRUCTION_SETS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""Flags of /proc/cpuinfo that matter for arithmetic on model weights: x86, then ARM."""

BANDWIDTH_BYTES = 128 << 20
"""Read by each thread; larger than the caches of most processors."""


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str
    cores: int
    cores_allowed: int
    """That this process may use: fewer in a container or under taskset."""
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    memory_available_bytes: int
    memory_limit_bytes: int | None
    """Of this container, when there is one."""
    gpus: tuple[str, ...]
    system: str


def machine() -> Machine:
    memory = psutil.virtual_memory()
    cpuinfo = _text(Path("/proc/cpuinfo"))
    name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    words = set(flags[1].split()) if flags else set()
    return Machine(
        cpu=name[1] if name else platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        cores_allowed=cores_allowed(),
        instruction_sets=tuple(flag for flag in ENGINE_INSTRUCTION_SETS if flag in words),
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        memory_limit_bytes=_memory_limit_bytes(),
        gpus=_gpus(),
        system=platform.platform(),
    )


def memory_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read from memory together: the best of three sweeps. Takes about a third
    of a second. This bounds decoding, which reads every weight once a step."""
    parts = [np.ones(BANDWIDTH_BYTES // 8, np.uint64) for _ in range(threads)]
    return threads * BANDWIDTH_BYTES / min(_sweep_s(parts) for _ in range(3))


def _sweep_s(parts: list[npt.NDArray[np.uint64]]) -> float:
    """numpy lets go of the interpreter while it sums."""
    readers = [threading.Thread(target=part.sum) for part in parts]
    begin_s = now_s()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return now_s() - begin_s


def _memory_limit_bytes() -> int | None:
    """The cgroup's limit: version 2, then version 1, where "no limit" is a huge number."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _text(Path(path)).strip()
        if text.isdigit() and int(text) < psutil.virtual_memory().total:
            return int(text)
    return None


def _gpus() -> tuple[str, ...]:
    """NVIDIA's by their own tool; others by the device files of their drivers."""
    if tool := shutil.which("nvidia-smi"):
        command = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return tuple(done.stdout.strip().splitlines())
    return ("AMD (driver loaded)",) if Path("/dev/kfd").exists() else ()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
