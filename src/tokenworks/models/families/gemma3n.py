"""Gemma 3n, text: four residual streams of which layers compute one (models/parts/altup.py), a narrow map beside
attention (models/parts/laurel.py), vectors of tokens for each layer (models/parts/per_layer.py), first networks that
keep a twentieth of their gates; the last layers read K and V of earlier ones."""

from dataclasses import replace
from math import inf
from statistics import NormalDist

from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf, gemma, gemma_shared
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.parts.altup import AltUp
from tokenworks.models.parts.laurel import Laurel
from tokenworks.models.parts.mlp import Mlp
from tokenworks.protocol.errors import ModelError


def _read(f: Fields) -> DecoderConfig:
    f.refuse("altup_active_idx", (0,), "layers are expected to compute the first stream")
    epsilon, size = from_hf.norm_epsilon(f), from_hf.head_size(f, 256)
    slides = from_hf.sliding(f, lambda number: (number + 1) % 5 != 0)
    ropes = gemma.two_ropes(f, size)
    shared = gemma_shared.sources(f, slides, "num_kv_shared_layers", 15)
    attention = from_hf.attention(
        f,
        ropes["global"],
        head_size=size,
        kv_heads=f.integer("num_key_value_heads", 2),
        scale=1.0,
        biased=from_hf.attention_biases(f),
        qk_norm_epsilon=epsilon,
        v_normed=True,
    )
    mixers = gemma.with_ropes(attention, from_hf.windows(f, slides, 512), ropes)
    activation = gemma.activation(f)
    networks = [
        from_hf.mlp(f, activation=activation, width=width, deviations=NormalDist().inv_cdf(sparse) if sparse else None)
        for width, sparse in zip(_widths(f), _sparsity(f), strict=True)
    ]
    decoder = gemma.around(
        f,
        "gemma3n",
        [replace(mixer, source=source) for mixer, source in zip(mixers, shared, strict=True)],
        networks,
        gemma_shared.used(ropes, mixers),
        logit_softcap=gemma.softcap(f, "final_logit_softcapping", 30.0),
        per_layer=gemma_shared.per_layer(f),
        streams=AltUp(
            streams=f.integer("altup_num_inputs", 4),
            norm_epsilon=epsilon,
            scaled=f.flag("altup_correct_scale", True),
        ),
    )
    laurel = Laurel(rank=f.integer("laurel_rank", 64), norm_epsilon=epsilon)
    return replace(decoder, layers=tuple(replace(layer, laurel=laurel) for layer in decoder.layers))


def _gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    f.refuse("altup.active_idx", (0,), "layers are expected to compute the first stream")
    count, epsilon = from_gguf.layer_count(f), from_gguf.norm_epsilon(f)
    slides = [bool(flag) for flag in from_gguf.of_layers(f, file, "attention.sliding_window_pattern", count)]
    ropes = gemma.two_ropes_gguf(f, file, from_gguf.head_size(f))
    attention = replace(
        from_gguf.attention(f, file, ropes["global"]), scale=1.0, qk_norm_epsilon=epsilon, v_normed=True
    )
    window = f.integer("attention.sliding_window")
    mixers = gemma.with_ropes(attention, [window if slid else 0 for slid in slides], ropes)
    shared = gemma_shared.sources(f, slides, "attention.shared_kv_layers", 15)
    sparse = f.prefix + "activation_sparsity_scale"
    deviations = file.array(sparse) if sparse in file.metadata else [NormalDist().inv_cdf(0.95)] * min(count, 10)
    deviations += [-inf] * (count - len(deviations))
    widths = from_gguf.of_layers(f, file, "feed_forward_length", count)
    narrow = file.tensors.get("blk.0.laurel_l.weight")
    if narrow is None:
        raise ModelError(f"{file.path}: tensor 'blk.0.laurel_l.weight' is missing.")
    decoder = gemma.around_gguf(
        f,
        file,
        [replace(mixer, source=source) for mixer, source in zip(mixers, shared, strict=True)],
        [
            Mlp(width=width, activation="gelu_tanh", deviations=each if each > -inf else None)
            for width, each in zip(widths, deviations, strict=True)
        ],
        gemma_shared.used(ropes, mixers),
        logit_softcap=f.number("final_logit_softcapping", 30.0),
        per_layer=gemma_shared.per_layer_gguf(f, file),
        streams=AltUp(streams=f.integer("altup.num_inputs", 4), norm_epsilon=epsilon, scaled=True),
    )
    laurel = Laurel(rank=narrow.shape[0], norm_epsilon=epsilon)
    return replace(decoder, layers=tuple(replace(layer, laurel=laurel) for layer in decoder.layers))


def _widths(f: Fields) -> list[int]:
    """intermediate_size: of all layers, or of each."""
    key, count = "intermediate_size", from_hf.layer_count(f)
    value = f.table.get(key)
    if not isinstance(value, list):
        return [f.integer(key, 16_384)] * count
    return [int(width) for width in f.numbers(key, count)]


def _sparsity(f: Fields) -> list[float]:
    """Of each layer's gates the share that is left out."""
    key, count = "activation_sparsity_pattern", from_hf.layer_count(f)
    value = f.table.get(key)
    if value is None:
        return [0.95 if count > 10 and number < 10 else 0.0 for number in range(count)]
    if not isinstance(value, list) or len(value) != count or not all(_is_share(share) for share in value):
        raise f.wrong(key, f"a list of {count} numbers from 0 on and below 1")
    return [float(share) for share in value]


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1


_IN_LAYER = "model.layers.{}."
_NAMES = {
    **gemma.GEMMA3.files.names,
    **gemma_shared.PER_LAYER_NAMES,
    "streams.{}.in": "model.altup_projections.{}.weight",
    "streams.{}.out": "model.altup_unembed_projections.{}.weight",
    LAYER + "altup_norm": _IN_LAYER + "altup.router_norm.weight",
    LAYER + "altup_router": _IN_LAYER + "altup.modality_router.weight",
    LAYER + "altup_predict": _IN_LAYER + "altup.prediction_coefs.weight",
    LAYER + "altup_correct": _IN_LAYER + "altup.correction_coefs.weight",
    LAYER + "altup_scale": _IN_LAYER + "altup.correct_output_scale",
    LAYER + "laurel_in": _IN_LAYER + "laurel.linear_left.weight",
    LAYER + "laurel_out": _IN_LAYER + "laurel.linear_right.weight",
    LAYER + "laurel_norm": _IN_LAYER + "laurel.post_laurel_norm.weight",
}
_FILES = replace(
    gemma.GEMMA3.files,
    names=_NAMES,
    norm_offset=0.0,
    unused=(*gemma.GEMMA3.files.unused, *gemma_shared.SHARED, "model.layers.*.altup.correct_output_scale"),
)

GEMMA3N = HfArchitecture(_read, _FILES)
GEMMA3N_WHOLE = gemma_shared.whole(GEMMA3N)

_IN_GGUF = {
    "altup_norm": "altup_router_norm",
    "altup_router": "altup_router",
    "altup_predict": "altup_predict_coef",
    "altup_correct": "altup_correct_coef",
    "altup_scale": "altup_correct_scale",
    "laurel_in": "laurel_l",
    "laurel_out": "laurel_r",
    "laurel_norm": "laurel_post_norm",
}
_ALL_STREAMS = {"streams.{}.in": "altup_proj.weight", "streams.{}.out": "altup_unembd_proj.weight"}
GEMMA3N_GGUF = GgufArchitecture(
    _gguf,
    replace(
        from_gguf.NAMES,
        names={
            **from_gguf.NAMES.names,
            **gemma_shared.PER_LAYER_GGUF_NAMES,
            **_ALL_STREAMS,
            **{LAYER + ours: f"blk.{{}}.{theirs}.weight" for ours, theirs in _IN_GGUF.items()},
        },
        unused=(*from_gguf.NAMES.unused, *gemma_shared.SHARED_GGUF),
        reshaped=frozenset(_ALL_STREAMS.values()),
    ),
)
