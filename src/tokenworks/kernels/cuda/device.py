"""What the GPU is, and how fast its memory."""

from dataclasses import dataclass
from functools import cache

import torch

COPIED_BYTES = 1 << 30
REPEATS = 10
HOPPER_SHARED_BYTES = 227 << 10


@dataclass(frozen=True, slots=True)
class Facts:
    name: str
    capability: str
    cuda: str
    """PyTorch's."""
    memory_bytes: int
    free_bytes: int
    copy_bytes_per_s: float
    """Read and written, each byte counted twice; the best of some copies of 1 GiB, less where there is no room."""


def facts() -> Facts:
    """Of the current device. Takes about a second."""
    properties = torch.cuda.get_device_properties()
    free, total = torch.cuda.mem_get_info()
    return Facts(
        properties.name,
        f"{properties.major}.{properties.minor}",
        str(torch.version.cuda),
        total,
        free,
        copy_bytes_per_s(min(COPIED_BYTES, free // 4)),
    )


@cache
def shared_bytes(device: torch.device) -> int:
    """Of shared memory, that one program may have; Hopper's where the device is no GPU."""
    if device.type != "cuda":
        return HOPPER_SHARED_BYTES
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]  # its stubs lack it


def copy_bytes_per_s(count: int) -> float:
    """Of the best of some copies of `count` bytes."""
    source = torch.zeros(count, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best_ms = float("inf")
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        best_ms = min(best_ms, begin.elapsed_time(end))
    return 2 * count / (best_ms / 1e3)
