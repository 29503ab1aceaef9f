"""Weights rounded to bfloat16 when a model is loaded."""

from pathlib import Path

import numpy as np
import torch
from small_checkpoints import assert_described

from tokenworks.config import EngineSettings
from tokenworks.engine.encoder import EncoderEngine
from tokenworks.fleet.load import load
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.kernels.formats import dequantise
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.narrow import in_bfloat16
from tokenworks.protocol.messages import Embed

IDS = tuple(tuple(range(1000 + n, 1100 + 7 * n)) for n in range(4))


def test_matrices_are_rounded_as_torch_rounds_them_and_vectors_stay(minilm: Path) -> None:
    plain = open_checkpoint(minilm).tensors
    rounded = in_bfloat16(open_checkpoint(minilm)).tensors
    assert_described(rounded)
    assert list(rounded) == list(plain)
    kinds = set()
    for name, tensor in plain.items():
        kinds.add((len(tensor.shape), rounded[name].format))
        ours = dequantise(rounded[name])
        theirs = torch.from_numpy(dequantise(tensor))
        np.testing.assert_array_equal(ours, (theirs.bfloat16().float() if theirs.ndim > 1 else theirs).numpy())
    assert kinds == {(1, "F32"), (2, "BF16")}


def test_what_is_quantised_stays_so(smollm2: Path) -> None:
    plain, rounded = open_checkpoint(smollm2).tensors, in_bfloat16(open_checkpoint(smollm2)).tensors
    assert {name: tensor.format for name, tensor in plain.items()} == {n: t.format for n, t in rounded.items()}


def test_embeddings_are_nearly_the_same_in_half_the_memory(minilm: Path) -> None:
    vectors, weight_bytes = {}, {}
    for dtype in ("auto", "bfloat16"):
        settings = EngineSettings(dtype=dtype, threads=2)
        engine, ready, _ = load(WorkerSettings(path=str(minilm), engine=settings), {})
        assert isinstance(engine, EncoderEngine)
        engine.add(Embed("0", IDS))
        done = []
        while not done:
            done, _ = engine.step()
        vectors[dtype] = np.frombuffer(done[0].vectors, "<f4").reshape(len(IDS), -1)
        weight_bytes[dtype] = ready.weight_bytes
    assert weight_bytes["bfloat16"] < 0.51 * weight_bytes["auto"]
    likeness = (vectors["auto"] * vectors["bfloat16"]).sum(axis=1)
    assert 0.9995 < likeness.min() < likeness.max() < 1 - 1e-7
