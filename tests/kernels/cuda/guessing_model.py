"""A small model with a layer that guesses, and steps of both."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from tokenworks.kernels.backend import Executable, Float32, Limits, StepBatch, join_rows
from tokenworks.kernels.program import Program
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.config import DecoderConfig, Layer
from tokenworks.models.decoder import decoder_program, decoder_shapes
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.experts import Mixture
from tokenworks.models.parts.latent import Latent
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.multi_token import multi_token_program, multi_token_shapes
from tokenworks.models.parts.rope import Rope

WIDTH, VOCABULARY = 64, 40
LATENT = Latent(heads=4, rank=32, turned=16, unturned=16, value_size=16, scale=0.2, rope="global")
LAYERS = {
    "latent attention": Layer(
        mixer=LATENT, feed_forward=Mixture(experts=4, width=32, top_k=2, activation="silu", normalise=True)
    ),
    "grouped queries": Layer(
        mixer=Attention(heads=4, kv_heads=2, head_size=16, scale=0.25, rope="global", turned=16),
        feed_forward=Mlp(width=64, activation="silu"),
    ),
}
LIMITS = Limits(16, 8, 8, 32, 4, "bfloat16", 1)


@cache
def model(layer: str, *, certain: bool = False) -> tuple[Program, dict[str, Tensor]]:
    """One layer, and one that guesses. `certain`: token t is followed by t + 1, and the layer knows that."""
    config = DecoderConfig(
        architecture="small", vocabulary=VOCABULARY, context_tokens=64, width=WIDTH, layers=(LAYERS[layer],),
        ropes={"global": Rope(size=16, base=1e4)}, norm_epsilon=1e-5, tied_head=False, multi_token=LAYERS[layer],
    )  # fmt: skip
    rng, values = np.random.default_rng(3), {}
    for name, shape in (decoder_shapes(config) | multi_token_shapes(config, LAYERS[layer])).items():
        scale = 1.0 if name == "embed" else 1.5 / shape[-1] ** 0.5
        values[name] = 1 + 0.1 * rng.standard_normal(shape) if len(shape) == 1 else rng.standard_normal(shape) * scale
        if certain and name.endswith((".o", ".out", ".down")):
            values[name] *= 0
    if certain:
        values["head"] = values["embed"][np.arange(VOCABULARY) - 1]
        values["layers.1.join"] = np.eye(WIDTH, 2 * WIDTH)
    values["rope.global"] = config.ropes["global"].inverse_frequencies(64)
    weights = {}
    for name, array in values.items():
        array = torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(torch.bfloat16).float().numpy()
        weights[name] = Tensor(name, "F32", array.shape, array.reshape(-1).view(np.uint8))
    sequel = multi_token_program(config, LAYERS[layer])
    return replace(decoder_program(config, hands_out=True), sequel=sequel), weights


def batch(*pieces: tuple[int, int, int], hidden: Float32 | None = None, wanted: list[int] | None = None) -> StepBatch:
    """(sequence, from, to) of tokens 5 * position + sequence."""
    where = [(sequence, at) for sequence, first, end in pieces for at in range(first, end)]
    starts = np.cumsum([0, *(end - first for _, first, end in pieces)], dtype=np.int32)
    tables = np.array([8 * sequence + np.arange(8)[::-1] for sequence, _, _ in pieces], np.int32)
    tokens = np.array([(5 * at + sequence) % VOCABULARY for sequence, at in where], np.int32)
    rows = np.array(range(len(where)) if wanted is None else wanted, np.int32)
    return StepBatch(tokens, np.array([at for _, at in where], np.int32), starts, tables, rows, inputs=hidden)


def passes(model: Executable) -> list[np.ndarray]:
    """Prompts; then two pairs of one sequence and three of the other; then the guess behind each."""
    prompts = batch((2, 0, 4), (0, 0, 3), wanted=[3, 6])
    made = [np.asarray(model.run(prompts)).copy()]
    hidden = model.hidden
    made.append(np.asarray(hidden).copy())
    pairs = join_rows((hidden[2:4], hidden[4:7]))
    logits, further = model.run_sequel(batch((2, 3, 5), (0, 1, 4), hidden=pairs, wanted=[1, 4]))
    assert logits.argmax(axis=1).tolist() == np.asarray(logits).argmax(axis=1).tolist()
    made += [np.asarray(logits).copy(), np.asarray(further).copy()]
    inputs = join_rows([further[1:2], further[:1]])
    made += [np.asarray(each).copy() for each in model.run_sequel(batch((0, 4, 5), (2, 5, 6), hidden=inputs))]
    made.append(np.asarray(model.run(batch((2, 4, 5)))).copy())
    return made
