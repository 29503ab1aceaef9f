"""What LoRA adapters cost: a batch of different ones against the base model alone, decode steps in turn.

    python benchmarks/lora.py MODEL [--adapters 16] [--rank 16] [--format BF16] [--threads 2] [--steps 40]

Each sequence of the batch has an adapter of its own, of all seven maps of every layer, with random weights. The two
kinds of step alternate, so that both meet the same machine; on one thread the time is that thread's processor time.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tokenworks.kernels.adapter import LowRank
from tokenworks.kernels.backend import Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.config import DecoderConfig
from tokenworks.models.decoder import decoder_shapes

POSITION, BLOCK_TOKENS = 128, 16
RNG = np.random.default_rng(0)


def tensor(form: str, *shape: int) -> Tensor:
    values = RNG.standard_normal(shape).astype(np.float32) * np.float32(0.02)
    data = values.reshape(-1).view(np.uint8)
    return Tensor("random", form, shape, data if form == "F32" else data.reshape(-1, 4)[:, 2:].copy().reshape(-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--format", choices=("F32", "BF16"), default="BF16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    checkpoint, count = open_checkpoint(given.model), given.adapters
    assert isinstance(checkpoint.config, DecoderConfig)
    blocks = -(-(POSITION + given.steps) // BLOCK_TOKENS)
    limits = Limits(512, 64, 64, count * blocks, BLOCK_TOKENS, "int8", given.threads)
    model = CpuBackend().compile(checkpoint.program(), checkpoint.tensors, limits)
    shapes = decoder_shapes(checkpoint.config)
    maps = {name: shape for name, shape in shapes.items() if name.startswith("layers.") and len(shape) == 2}
    for slot in range(count):
        shares = {
            name: LowRank(tensor(given.format, given.rank, inner), tensor(given.format, outer, given.rank), 2.0)
            for name, (outer, inner) in maps.items()
        }
        model.load_adapter(slot, shares)
    rows = np.arange(count, dtype=np.int32)
    clock = time.thread_time if given.threads == 1 else time.perf_counter
    spent: dict[bool, list[float]] = {False: [], True: []}
    for position in range(POSITION, POSITION + given.steps):
        tokens = RNG.integers(1000, 40000, count).astype(np.int32)
        plain = StepBatch(
            tokens, np.full(count, position, np.int32), np.arange(count + 1, dtype=np.int32),
            np.arange(count * blocks, dtype=np.int32).reshape(count, blocks), rows,
        )  # fmt: skip
        for adapted in spent:
            batch = replace(plain, adapters=rows) if adapted else plain
            start = clock()
            model.run(batch)
            spent[adapted].append(clock() - start)
    base, mixed = (np.array(times[5:]) * 1e3 for times in spent.values())
    print(
        f"{count} adapters of rank {given.rank}, {model.adapter_bytes / 1e6:.0f} MB beside "
        f"{model.weight_bytes / 1e6:.0f} MB of weights: {np.median(mixed):.1f} ms a step, the base alone "
        f"{np.median(base):.1f} ms; "
        f"{np.median(base) / np.median(mixed):.0%} of its throughput (fastest steps: {base.min() / mixed.min():.0%})"
    )


if __name__ == "__main__":
    main()
