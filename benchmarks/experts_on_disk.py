"""A mixture of experts whose weights do not fit into memory: what a token costs, and how often its experts were there.

    systemd-run --user --scope -p MemoryMax=1300M python benchmarks/experts_on_disk.py --folder /var/tmp/experts

Run it in a control group with a memory limit of about half the file (2.6 GB with the defaults). The first run writes
the file. Routers are those of benchmarks/experts.py, with a bias that makes some experts likelier, as in real models:
`--skew 0` is none. Text stays with one of eight subjects for `--stay` tokens; how far a subject decides which experts
are chosen, `--subjects` says: from 0, not at all, to 1, alone. The same tokens run twice, with experts left to the
system's file cache, and with those kept that are used most. Beside the share of bytes found in memory stands the best
that any fixed choice of experts of the same size as the memory limit could have found, known only afterwards.
"""

import argparse
import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from experts import EXPERTS, SUBJECTS, TOP_K, model, step

from tokenworks.kernels.backend import Limits, Source
from tokenworks.kernels.cpu import keeper
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.telemetry.memory import memory_available_bytes


@dataclass
class Place:
    """kernels/backend.py: PackedPlace."""

    path: Path
    sources: tuple[Source, ...]

    @contextlib.contextmanager
    def locked(self, *, wait: bool) -> Iterator[bool]:
        yield True

    @contextlib.contextmanager
    def new_file(self, size_bytes: int) -> Iterator[int]:
        part = self.path.with_suffix(".part")
        file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        yield file
        os.close(file)
        part.replace(self.path)

    def used(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--format", default="MXFP4")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--skew", type=float, default=1.0, help="standard deviation of the routers' biases")
    parser.add_argument("--subjects", type=float, default=0.0)
    parser.add_argument("--stay", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1, help="of routers and tokens")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for kept in (False, True):
        measure(options, kept)


def measure(options: argparse.Namespace, kept: bool) -> None:
    keeper.MARGIN_SHARE = 1 / 16 if kept else 1
    available = memory_available_bytes() or 0
    program, weights = model(options.format, options.layers, options.skew, options.subjects, options.seed)
    source = Source(f"{options.format} {options.layers}", 1 << 40, 0, "")
    place = Place(options.folder / f"{options.format}-{options.layers}.packed", (source,))
    limits = Limits(16, 16, 16, 1, 16, "float16", options.threads)
    start = time.perf_counter()
    executable = CpuBackend().compile(program, weights, limits, place)
    size = place.path.stat().st_size
    print(f"{options.format}: {size / 1e9:.2f} GB of weights, {available / 1e9:.2f} GB of memory to be had; ", end="")
    print(f"{'kept' if kept else 'left to the system'}; ready after {time.perf_counter() - start:.1f} s")
    rng = np.random.default_rng(options.seed + 1)
    subject = 0
    print(f"{'tokens':>9} {'ms/token':>9} {'tok/s':>6} {'in memory':>10} {'best fixed':>11} {'kept GB':>8}")
    count = options.tokens // 4
    for part in range(4):
        uses, (needed, found) = np.array(executable.expert_uses()), executable.expert_reads()
        start = time.perf_counter()
        for token in range(part * count, (part + 1) * count):
            if token % options.stay == 0:
                subject = int(rng.integers(SUBJECTS))
            executable.run(step(1, rng, subject if options.subjects else None))
        seconds = (time.perf_counter() - start) / count
        now, (needed_now, found_now) = np.array(executable.expert_uses()), executable.expert_reads()
        counts = np.sort((now - uses).ravel())[::-1]
        best = counts[: int(min(1.0, available / size) * options.layers * EXPERTS)].sum()
        share = (found_now - found) / max(1, needed_now - needed)
        print(
            f"{part * count:4}-{(part + 1) * count:4} {seconds * 1e3:9.1f} {1 / seconds:6.1f} {share:10.1%} "
            f"{best / (count * TOP_K * options.layers):11.1%} {executable.kept_expert_bytes / 1e9:8.2f}"
        )


if __name__ == "__main__":
    main()
