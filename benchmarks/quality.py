"""What quantisation costs: perplexity, KL and top-1 agreement of checkpoints against a reference, in float32.

    python benchmarks/quality.py REFERENCE CANDIDATE... --text FILE [--windows 16] [--tokens 256]

REFERENCE and CANDIDATE are GGUF files or checkpoint folders of the same decoder. A share is of the reference's figure.
"""

import argparse
from pathlib import Path

from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.quant.measure import compare, last_hidden
from tokenworks.quant.text import read_texts, windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("candidates", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    given = parser.parse_args()
    reference = open_checkpoint(given.reference)
    program = reference.program()
    tokens = windows(read_texts(given.text), load_tokenizer(given.reference), count=given.windows, length=given.tokens)
    hidden = last_hidden(program, reference.tensors, tokens)
    for path in given.candidates:
        found = compare(program, reference.tensors, open_checkpoint(path).tensors, tokens, reference_hidden=hidden)
        share = found.perplexity / found.reference_perplexity - 1
        print(
            f"{path}: perplexity {found.perplexity:.3f} ({share:+.2%} of {found.reference_perplexity:.3f}), "
            f"KL {found.kl:.4f} nats, top-1 agreement {found.top1_agreement:.2%}, {found.tokens} tokens",
            flush=True,
        )


if __name__ == "__main__":
    main()
