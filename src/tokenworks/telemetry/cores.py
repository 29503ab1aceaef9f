"""How many processor cores this process may really use."""

import os
from math import ceil
from pathlib import Path

_SYSTEM = Path("/")


def cores_allowed(root: Path = _SYSTEM) -> int:
    """Cores that this process may run on (taskset, cpusets), and no more than its control group may use at once: a
    container with two processors' worth of time sees all of the machine's, and more threads would only be stopped in
    turns. `root` has proc/ and sys/ of the system."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _cpu_limit(root)
    return affinity if limit is None else max(1, min(affinity, ceil(limit)))


def _cpu_limit(root: Path) -> float | None:
    """Processors' worth of time, the least of the process's control group and all above it; None: not limited.

    Version 2 has `cpu.max` ("max" or microseconds, and the period), version 1 two files; see the kernel's
    admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst. In a container the paths of /proc/self/cgroup may begin above
    what is mounted; then the group's own files are those at the top.
    """
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            top, read = root / "sys/fs/cgroup", _version_2
        elif "cpu" in controllers.split(","):
            top, read = root / "sys/fs/cgroup" / controllers, _version_1
        else:
            continue
        group = top / path.lstrip("/")
        limits += [read(folder) for folder in (group, *group.parents) if folder == top or top in folder.parents]
    return min((limit for limit in limits if limit is not None), default=None)


def _version_2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() else None


def _version_1(folder: Path) -> float | None:
    quota, period = _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None  # -1: not limited


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
