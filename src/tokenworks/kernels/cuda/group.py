"""Ranks that are processes of one machine, each with a GPU of its own, or none."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from tokenworks.kernels.backend import Float32

_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""The second name goes with PyTorch 2.13."""
PATIENCE = timedelta(minutes=30)
"""With one that still loads while the others wait for it. One that is gone is noticed at once (fleet/ranks.py)."""


class TorchGroup:
    """Meets through torch.distributed: NCCL between GPUs, in the stream that is current, so that graphs hold it too;
    gloo between processes without."""

    def __init__(self, rank: int, ranks: int, meeting: Path, device: Literal["cuda", "cpu"]) -> None:
        """`meeting`: a file that all ranks, and nobody else, can write; each names the same. Of GPUs rank r takes the
        r-th, which becomes the current one. Returns when all ranks have come."""
        self.rank, self.ranks = rank, ranks
        # All ranks are on this machine: nothing needs its name, or another interface.
        for interface in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            os.environ.setdefault(interface, "lo")
        if device == "cuda":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            init_method=meeting.as_uri(),
            rank=rank,
            world_size=ranks,
            timeout=PATIENCE,
            device_id=torch.device("cuda", rank) if device == "cuda" else None,
        )

    def all_reduce(self, x: torch.Tensor) -> None:
        if x.is_contiguous():
            dist.all_reduce(x)
        else:
            whole = x.contiguous()
            dist.all_reduce(whole)
            x.copy_(whole)

    def all_gather(self, x: torch.Tensor, out: torch.Tensor, widths: tuple[int, ...]) -> None:
        rows, most = len(x), max(widths)
        mine = pad(x, (0, most - x.shape[1])).contiguous()
        every = torch.empty((self.ranks, rows, most), dtype=x.dtype, device=x.device)
        _gather(every.view(self.ranks * rows, most), mine)
        if min(widths) == most:
            out.unflatten(1, (self.ranks, most)).copy_(every.transpose(0, 1))
            return
        at = 0
        for rank, width in enumerate(widths):
            out[:, at : at + width].copy_(every[rank, :, :width])
            at += width

    def broadcast(self, x: torch.Tensor) -> None:
        if x.is_contiguous():
            dist.broadcast(x, 0)
        else:
            whole = x.contiguous()
            dist.broadcast(whole, 0)
            x.copy_(whole)


class ArrayGroup:
    """The same for numpy's arrays: of the reference."""

    def __init__(self, group: TorchGroup) -> None:
        self.rank, self.ranks = group.rank, group.ranks
        self._group = group

    def all_reduce(self, x: Float32) -> None:
        self._group.all_reduce(torch.from_numpy(x))

    def all_gather(self, x: Float32, out: Float32, widths: tuple[int, ...]) -> None:
        self._group.all_gather(torch.from_numpy(x), torch.from_numpy(out), widths)

    def broadcast(self, x: Float32) -> None:
        self._group.broadcast(torch.from_numpy(x))
