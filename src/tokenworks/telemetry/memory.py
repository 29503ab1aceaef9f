"""How much memory this process may still take."""

from pathlib import Path

_SYSTEM = Path("/")
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Of control groups, version 2 and 1: the most bytes, and those in use. Without a limit: "max", or a huge number."""


def memory_available_bytes(root: Path = _SYSTEM) -> int | None:
    """What can be had without swapping, by the system (MemAvailable) and by the control groups above this process,
    whose file cache counts as free: it gives way. None where the system does not say. `root` has proc/ and sys/."""
    system = [line.split()[1] for line in _text(root / "proc/meminfo").splitlines() if line.startswith("MemAvailable:")]
    found = [int(kib) * 1024 for kib in system]
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder == top or top in folder.parents:
                found += [free for names in _LIMITS if (free := _free_bytes(folder, *names)) is not None]
    return min(found, default=None)


def _free_bytes(folder: Path, limit_name: str, used_name: str) -> int | None:
    limit, used = _text(folder / limit_name).strip(), _text(folder / used_name).strip()
    if not limit.isdigit() or not used.isdigit():
        return None
    counts = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
    cache = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
    cache += int(counts.get("total_active_file", counts.get("active_file", 0)))
    return max(0, int(limit) - int(used) + cache)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
