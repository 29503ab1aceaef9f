"""What a KV cache of fewer bits costs by itself: perplexity, KL and top-1 agreement against one of float32.

    python benchmarks/cache.py MODEL [--windows 8] [--arithmetic float32]

MODEL is a GGUF file or a checkpoint folder of a decoder; the text is the Python manual's topics. With float32
arithmetic (weights widened, so that no activation is rounded) the cache is all that differs; `served` runs the
weights as they are, where rounded activations answer any small change with noise of their own. Positions 256 to 510
count.
"""

import argparse
from pathlib import Path

import numpy as np

from tokenworks.bench.prompts import manual_texts
from tokenworks.kernels.backend import CacheType
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.quant.measure import Tally, log_softmax
from tokenworks.quant.recipe import Recipe
from tokenworks.quant.served import Served
from tokenworks.quant.text import windows

LENGTH, FIRST = 512, 256
SMALLER: tuple[CacheType, ...] = ("float16", "bfloat16", "int8")


def widened(tensor: Tensor) -> Tensor:
    numbers = np.ascontiguousarray(dequantise(tensor))
    return Tensor(tensor.name, "F32", tensor.shape, numbers.view(np.uint8).reshape(-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--arithmetic", choices=("float32", "served"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.model)
    program, weights = checkpoint.program(), dict(checkpoint.tensors)
    if given.arithmetic == "float32":
        weights |= {name: widened(weights[name]) for name in Recipe((("*", "keep"),)).of(program)}
    tokens = windows(manual_texts(), load_tokenizer(given.model), count=given.windows, length=LENGTH)
    following = tokens[:, FIRST + 1 :]
    caches: tuple[CacheType, ...] = ("float32", *SMALLER)
    served = [Served(CpuBackend(), program, weights, cache, given.threads) for cache in caches]
    tallies = [Tally() for _ in SMALLER]
    for steps in zip(*(each.logits(tokens, FIRST) for each in served), strict=True):
        numbers, theirs = steps[0]
        reference = log_softmax(theirs)
        for tally, (_, rows) in zip(tallies, steps[1:], strict=True):
            tally.add(reference, log_softmax(rows), following[numbers].ravel())
    for cache, tally in zip(SMALLER, tallies, strict=True):
        found = tally.result()
        share = found.perplexity / found.reference_perplexity - 1
        print(
            f"{cache}: perplexity {found.perplexity:.4f} ({share:+.3%} of {found.reference_perplexity:.4f}), "
            f"KL {found.kl:.2e} nats, top-1 agreement {found.top1_agreement:.2%}, {found.tokens} tokens",
            flush=True,
        )


if __name__ == "__main__":
    main()
