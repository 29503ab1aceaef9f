"""Small models with random weights, one for each kind of part that layers are made of. Another part: a row here."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from tokenworks.engine.engine import Engine
from tokenworks.kernels.backend import Backend, Limits
from tokenworks.kernels.program import Program
from tokenworks.kernels.tensor import Tensor
from tokenworks.kvcache.layout import state_bytes
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.config import DecoderConfig, Layer
from tokenworks.models.decoder import decoder_program, decoder_shapes
from tokenworks.models.parts.altup import AltUp
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.delta import DeltaNet
from tokenworks.models.parts.experts import Mixture
from tokenworks.models.parts.gated_convolution import GatedConvolution
from tokenworks.models.parts.latent import Latent
from tokenworks.models.parts.laurel import Laurel
from tokenworks.models.parts.mamba import Mamba2
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import FeedForward, Mixer
from tokenworks.models.parts.per_layer import PerLayer
from tokenworks.models.parts.rope import Rope
from tokenworks.models.parts.side_by_side import Side, SideBySide
from tokenworks.models.parts.temperature import TEMPERATURE, Temperature

WIDTH, VOCABULARY, EOS, CONTEXT_TOKENS = 64, 128, 127, 200
_ATTENTION = Attention(heads=4, kv_heads=2, head_size=16, scale=0.25, rope="global", turned=16)
_LATENT = Latent(heads=5, rank=24, turned=16, unturned=9, value_size=11, scale=0.2, rope="global", query_rank=20)
_MLP = Mlp(width=96, activation="silu")


_MAMBA = Mamba2(heads=6, head_size=16, groups=2, state_size=20, kernel=4, norm_epsilon=1e-5, biased=frozenset({"conv"}))
_DELTA = DeltaNet(heads=4, key_heads=2, key_size=20, value_size=16, kernel=3, norm_epsilon=1e-5)


def _decoder(*layers: tuple[Mixer | None, FeedForward | None]) -> DecoderConfig:
    return DecoderConfig(
        architecture="small",
        vocabulary=VOCABULARY,
        context_tokens=CONTEXT_TOKENS,
        width=WIDTH,
        layers=tuple(Layer(mixer=mixer, feed_forward=feed_forward) for mixer, feed_forward in layers),
        ropes={"global": Rope(size=16, base=1e4)},
        norm_epsilon=1e-5,
        tied_head=False,
    )


def _gemma_3n() -> DecoderConfig:
    """The last two layers read what the first two have kept; three streams."""
    kept = [replace(_ATTENTION, qk_norm_epsilon=1e-5, v_normed=True, window=window) for window in (5, 0)]
    reading = [replace(attention, source=source) for source, attention in enumerate(kept)]
    base = _decoder(*[(mixer, _MLP) for mixer in kept + reading])
    return replace(
        base,
        layers=tuple(replace(layer, laurel=Laurel(rank=8, norm_epsilon=1e-5)) for layer in base.layers),
        norms="around",
        per_layer=PerLayer(vocabulary=90, size=8, layers=4, activation="gelu_tanh", norm_epsilon=1e-5),
        streams=AltUp(streams=3, norm_epsilon=1e-5, scaled=True),
    )


_BESIDE = SideBySide(
    sides=(Side(mixer=_MAMBA, width=96, output_scale=0.7), Side(mixer=_ATTENTION, width=64, input_scale=2.0))
)


_ONE_EXPERT = Mixture(
    experts=5, width=32, top_k=1, activation="silu", normalise=False, score="sigmoid", weighs_input=True, shared=_MLP
)

MODELS = {
    "layers that read others' K and V": _gemma_3n(),
    "chunks, and queries that grow": replace(
        _decoder(
            (
                replace(
                    _ATTENTION, window=7, chunked=True, qk_norm_epsilon=1e-5, norm_weights=False, norms_turned=True
                ),
                _MLP,
            ),
            (replace(_ATTENTION, rope="", tempered=True), _ONE_EXPERT),
        ),
        temperature=Temperature(floor=6, growth=0.4),
    ),
    "Mamba-2 beside attention": _decoder((_BESIDE, _MLP), (_BESIDE, None)),
    "Mamba-2": _decoder((_MAMBA, None), (_MAMBA, _MLP)),
    "Mamba-2 and attention": _decoder(
        (_MAMBA, None),
        (None, Mlp(width=96, activation="relu2", gated=False)),
        (replace(_ATTENTION, rope=""), None),
        (_MAMBA, _MLP),
    ),
    "delta nets and gated attention": _decoder((_DELTA, _MLP), (replace(_ATTENTION, gated=True), _MLP), (_DELTA, None)),
    "gated convolutions and attention": _decoder(
        (GatedConvolution(kernel=3), _MLP), (_ATTENTION, _MLP), (GatedConvolution(kernel=4), None)
    ),
    "latent attention": _decoder((_LATENT, _MLP), (_LATENT, _MLP)),
    "experts": _decoder(
        *[(_ATTENTION, Mixture(experts=6, width=32, top_k=2, activation="silu", normalise=True))] * 2,
    ),
    "experts in groups, and a shared network": _decoder(
        (_ATTENTION, _MLP),
        (
            _ATTENTION,
            Mixture(
                experts=8,
                width=32,
                top_k=3,
                activation="silu",
                normalise=True,
                score="sigmoid",
                scale=1.8,
                corrected=True,
                groups=4,
                kept_groups=2,
                group_best=2,
                shared=Mlp(width=48, activation="silu"),
                shared_gated=True,
            ),
        ),
    ),
}


@cache
def _model(name: str) -> tuple[Program, dict[str, Tensor]]:
    config, rng = MODELS[name], np.random.default_rng(3)
    weights = {}
    for weight, shape in decoder_shapes(config).items():
        values = rng.standard_normal(shape)
        values = (
            1 + 0.1 * values if len(shape) == 1 else values * (1.0 if weight == "embed" else 2.5 / shape[-1] ** 0.5)
        )
        if weight.endswith("decay"):
            values = -0.1 * np.abs(values)  # a long memory
        weights[weight] = _float32(weight, values.astype(np.float32))
    if config.temperature is not None:
        weights[TEMPERATURE] = _float32(TEMPERATURE, config.temperature.factors(CONTEXT_TOKENS))
    for rope, how in config.ropes.items():
        weights[f"rope.{rope}"] = _float32(f"rope.{rope}", how.inverse_frequencies(CONTEXT_TOKENS))
    return decoder_program(config), weights


def _float32(name: str, values: np.ndarray) -> Tensor:
    return Tensor(name, "F32", values.shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def of_checkpoint(folder: Path, backend: Backend, sizes: Limits) -> Engine:
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint.config, DecoderConfig)
    program, vocabulary = checkpoint.program(), checkpoint.config.vocabulary
    return _engine(program, checkpoint.tensors, backend, sizes, CONTEXT_TOKENS, vocabulary)


def engine_of(name: str, backend: Backend, sizes: Limits, context_tokens: int = CONTEXT_TOKENS) -> Engine:
    return _engine(*_model(name), backend, sizes, context_tokens, VOCABULARY)


def _engine(
    program: Program,
    weights: Mapping[str, Tensor],
    backend: Backend,
    sizes: Limits,
    context_tokens: int,
    vocabulary: int,
) -> Engine:
    if state_bytes(program.cache_layers) and not sizes.state_slots:
        sizes = replace(sizes, state_slots=20)

    def no_tokenizer() -> str:
        raise AssertionError("no grammar was asked for")

    return Engine(
        backend.compile(program, weights, sizes),
        sizes,
        eos_token_ids=frozenset({EOS}),
        context_tokens=context_tokens,
        vocabulary=vocabulary,
        tokenizer_json=no_tokenizer,
    )
