"""Sentence embeddings, ours beside onnxruntime on the same weights: python benchmarks/embed.py FOLDER [--threads 2]

FOLDER is a MiniLM checkpoint (`tokenworks models pull minilm-l6` shows where it lies). Needs torch, transformers, onnx
and onnxruntime. Texts are paragraphs of the Python manual, sorted by length and 32 at a time, so that onnxruntime pads
little; ours packs them without padding. A line each: float32 weights in both, then ours in bfloat16 (`dtype: bfloat16`)
and in int8 (`tokenworks quantize --to int8`) with what they change: the cosine to float32's vectors, and how many of
the ten nearest texts stay.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tokenworks.bench.prompts import manual_texts
from tokenworks.engine.encoder import EncoderEngine
from tokenworks.kernels.backend import Limits
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.models.checkpoint import Checkpoint, open_checkpoint
from tokenworks.models.narrow import in_bfloat16
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.protocol.messages import Embed
from tokenworks.quant.recipe import read_recipe
from tokenworks.quant.run import quantise_model

BATCH = 32
Vectors = Any
Run = Callable[[list[list[int]]], Vectors]


def ours(checkpoint: Checkpoint, threads: int) -> Run:
    program = checkpoint.program()
    limits = Limits(BATCH * 256, BATCH, BATCH, 0, 16, "float32", threads)
    executable = CpuBackend().compile(program, checkpoint.tensors, limits)
    width = program.result.width
    engine = EncoderEngine(executable, limits, width=width, vocabulary=checkpoint.config.vocabulary)

    def run(inputs: list[list[int]]) -> Vectors:
        engine.add(Embed("0", tuple(map(tuple, inputs))))
        done: list[Any] = []
        while not done:
            done, _ = engine.step()
        return np.frombuffer(done[0].vectors, "<f4").reshape(-1, width)

    return run


def theirs(folder: Path, threads: int, scratch: Path) -> Run:
    import onnxruntime
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()

    class Sentence(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            rows, weights = self.model(ids, mask).last_hidden_state, mask[..., None].float()
            return torch.nn.functional.normalize((rows * weights).sum(1) / weights.sum(1), dim=1)

    ids = torch.ones(2, 9, dtype=torch.int64)
    axes = {0: "texts", 1: "tokens"}
    path = str(scratch / "model.onnx")
    torch.onnx.export(
        Sentence(), (ids, ids), path, input_names=["ids", "mask"], output_names=["vectors"],
        dynamic_axes={"ids": axes, "mask": axes, "vectors": {0: "texts"}}, dynamo=False,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: list[list[int]]) -> Vectors:
        padded = np.zeros((len(inputs), max(map(len, inputs))), np.int64)
        mask = np.zeros_like(padded)
        for row, each in enumerate(inputs):
            padded[row, : len(each)], mask[row, : len(each)] = each, 1
        return session.run(None, {"ids": padded, "mask": mask})[0]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processor-time", action="store_true", help="for a machine that others use too")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    tokenizer = load_tokenizer(options.folder)
    paragraphs = [part for text in manual_texts() for part in text.split("\n\n") if len(part) > 60][: 8 * BATCH]
    inputs = sorted((tokenizer.encode(text)[:256] for text in paragraphs), key=len)
    batches = [inputs[at : at + BATCH] for at in range(0, len(inputs), BATCH)]
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "int8"
        recipe = read_recipe("standard", "int8")
        quantise_model(options.folder, small, recipe, "compressed-tensors", [], lambda *_: None)
        runs = {
            "onnxruntime, float32": theirs(options.folder, options.threads, Path(scratch)),
            "ours, float32": ours(open_checkpoint(options.folder), options.threads),
            "ours, bfloat16": ours(in_bfloat16(open_checkpoint(options.folder)), options.threads),
            "ours, int8": ours(open_checkpoint(small), options.threads),
        }
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    vectors: dict[str, Vectors] = {}
    for _ in range(options.repeats):
        for name, run in runs.items():
            begin = clock()
            vectors[name] = np.concatenate([run(batch).copy() for batch in batches])
            speeds[name].append(sum(map(len, inputs)) / (clock() - begin))
    peer = statistics.median(speeds["onnxruntime, float32"])
    exact = vectors["onnxruntime, float32"]
    near = _nearest(exact)
    for name, measured in speeds.items():
        speed, cosines = statistics.median(measured), (vectors[name] * exact).sum(axis=1)
        kept = np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(near, _nearest(vectors[name]), strict=True)])
        alike = f"cosine {cosines.mean():.5f}, least {cosines.min():.5f}, nearest kept {kept:.1%}"
        print(f"{name:22} {speed:8.0f} tok/s  {speed / peer:5.2f}x  {alike}")


def _nearest(vectors: Vectors) -> Vectors:
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    return np.argsort(-likeness, axis=1)[:, :10]


if __name__ == "__main__":
    main()
