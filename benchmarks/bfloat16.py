"""What `dtype: bfloat16` costs and brings: perplexity, KL and top-1 agreement, and prompt tokens per second.

    python benchmarks/bfloat16.py MODEL [--windows 8]

MODEL is a GGUF file or a checkpoint folder of a decoder whose weights have 16 or 32 bits; the text is the Python
manual's topics. The reference multiplies the weights as they are; then those rounded to bfloat16, widened again so that
inputs stay float32; then as served, where the processor has products of bfloat16 (`tokenworks doctor`: avx512_bf16 or
amx) with inputs rounded too. The KV cache is float32 in all of them.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

from tokenworks.bench.prompts import manual_texts
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.narrow import in_bfloat16
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.quant.measure import Tally, log_softmax
from tokenworks.quant.served import Served
from tokenworks.quant.text import windows

LENGTH, FIRST = 512, 256


def widened(tensor: Tensor) -> Tensor:
    if tensor.format != "BF16":
        return tensor
    return Tensor(tensor.name, "F32", tensor.shape, np.ascontiguousarray(dequantise(tensor)).view(np.uint8).reshape(-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    checkpoint, backend = open_checkpoint(given.model), CpuBackend()
    program, rounded = checkpoint.program(), in_bfloat16(checkpoint).tensors
    weights = {
        "as they are": checkpoint.tensors,
        "weights rounded": {name: widened(tensor) for name, tensor in rounded.items()},
        f"as served, {backend.isa}": rounded,
    }
    served = {name: Served(backend, program, each, "float32", given.threads) for name, each in weights.items()}
    tokens = windows(manual_texts(), load_tokenizer(given.model), count=given.windows, length=LENGTH)
    following = tokens[:, FIRST + 1 :]
    tallies = {name: Tally() for name in served}
    for steps in zip(*(each.logits(tokens, FIRST) for each in served.values()), strict=True):
        numbers, theirs = steps[0]
        reference = log_softmax(theirs)
        for tally, (_, rows) in zip(tallies.values(), steps, strict=True):
            tally.add(reference, log_softmax(rows), following[numbers].ravel())
    speeds = [{name: each.prefill_tok_s(tokens[0], 1) for name, each in served.items()} for _ in range(given.repeats)]
    for name, tally in tallies.items():
        found, speed = tally.result(), statistics.median(each[name] for each in speeds)
        print(
            f"{name:24} perplexity {found.perplexity / found.reference_perplexity - 1:+.3%}, KL {found.kl:.1e} nats, "
            f"top-1 agreement {found.top1_agreement:.2%}, {found.tokens} tokens; prompt {speed:.0f} tok/s"
        )


if __name__ == "__main__":
    main()
