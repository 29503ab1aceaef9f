"""Cores that a process may use, under control groups of both versions."""

import os
from pathlib import Path

import pytest

from tokenworks.telemetry.cores import cores_allowed


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def system(root: Path, group: str, **files: str) -> Path:
    """A root with proc/self/cgroup, and files of sys/fs/cgroup."""
    for path, text in {"proc/self/cgroup": group, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/", {}, 8),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {"cpu.max": "6400000 100000"}, 8),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "500000 100000"}, 3),
        ("0::/../../elsewhere", {"cpu.max": "400000 100000"}, 4),
        ("3:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpu,cpuacct:/x", {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2),
        ("5:memory:/", {"cpu.max": "200000 100000"}, 8),
    ],
)
def test_the_control_group_limits_threads(tmp_path: Path, group: str, files: dict[str, str], cores: int) -> None:
    assert cores_allowed(system(tmp_path, group, **files)) == cores


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert cores_allowed(tmp_path) == 8
