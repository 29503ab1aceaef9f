"""Falcon-H1 (arXiv 2507.22448): attention and Mamba-2 side by side in each layer, and factors on what maps take and
make, in the way of maximal update parametrisation (arXiv 2203.03466)."""

from dataclasses import replace

from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import bamba, from_gguf, from_hf, mamba
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.parts.mamba import Mamba2, Normed
from tokenworks.models.parts.side_by_side import Side, SideBySide


def _read(f: Fields) -> DecoderConfig:
    rope = from_hf.only_rope(f)
    attention = from_hf.attention(f, rope, biased=from_hf.attention_biases(f))
    # A factor on keys is one on scores.
    attention = replace(attention, scale=attention.scale * _factor(f, "key_multiplier"))
    scan = _mamba2(f)
    mixer = SideBySide(
        sides=(
            Side(
                mixer=scan,
                width=scan.heads * scan.head_size,
                input_scale=_factor(f, "ssm_in_multiplier"),
                output_scale=_factor(f, "ssm_out_multiplier"),
            ),
            Side(
                mixer=attention,
                width=attention.heads * attention.head_size,
                input_scale=_factor(f, "attention_in_multiplier"),
                output_scale=_factor(f, "attention_out_multiplier"),
            ),
        )
    )
    gate_scale, output_scale = _factors(f, "mlp_multipliers", 2)
    mlp = from_hf.mlp(
        f,
        biased=frozenset({"gate", "up", "down"}) if f.flag("mlp_bias", False) else frozenset(),
        gate_scale=gate_scale,
        output_scale=output_scale,
    )
    return from_hf.decoder(
        f,
        "falcon_h1",
        [mixer] * from_hf.layer_count(f),
        mlp,
        {"global": rope},
        norm_epsilon=f.number("rms_norm_eps", 1e-5),
        embedding_scale=_factor(f, "embedding_multiplier"),
        logit_scale=_factor(f, "lm_head_multiplier"),
    )


def _mamba2(f: Fields) -> Mamba2:
    heads = f.integer("mamba_n_heads", 128)
    given = f.has("mamba_d_ssm") or "mamba_d_ssm" not in f.table
    inner = f.integer("mamba_d_ssm", 1024) if given else f.integer("mamba_expand", 2) * f.integer("hidden_size")
    size = inner // heads if f.table.get("mamba_d_head", "auto") == "auto" else f.integer("mamba_d_head")
    if heads * size != inner:
        raise f.wrong("mamba_d_head", f"mamba_d_ssm / mamba_n_heads ({inner / heads:g})")
    normed: Normed = "no"
    if f.flag("mamba_rms_norm", False):
        normed = "before gate" if f.flag("mamba_norm_before_gate", True) else "behind gate"
    biased = {"in": "mamba_proj_bias", "out": "projectors_bias", "conv": "mamba_conv_bias"}
    return mamba.mamba2(
        f,
        heads=heads,
        head_size=size,
        groups=f.integer("mamba_n_groups", 1),
        state_size=f.integer("mamba_d_state", 256),
        kernel=f.integer("mamba_d_conv", 4),
        norm_epsilon=f.number("rms_norm_eps", 1e-5),
        normed=normed,
        factors=_factors(f, "ssm_multipliers", 5),
        biased=frozenset(ours for ours, key in biased.items() if f.flag(key, ours == "conv")),
    )


def _gguf(file: GgufFile) -> DecoderConfig:
    """There the factors are in the weights."""
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    attention, scan = from_gguf.attention(f, file, rope), mamba.mamba2_gguf(f, file)
    if "blk.0.ssm_norm.weight" not in file.tensors:
        scan = replace(scan, normed="no")
    sides = (
        Side(mixer=scan, width=scan.heads * scan.head_size),
        Side(mixer=attention, width=attention.heads * attention.head_size),
    )
    mixers = [SideBySide(sides=sides)] * from_gguf.layer_count(f)
    return from_gguf.decoder(f, file, mixers, from_gguf.mlp(f, file), {"global": rope})


def _factor(f: Fields, key: str) -> float:
    return f.number(key, 1.0)


def _factors(f: Fields, key: str, count: int) -> tuple[float, ...]:
    return f.numbers(key, count) if f.has(key) else (1.0,) * count


FALCON_H1 = HfArchitecture(_read, bamba.BAMBA.files)
FALCON_H1_GGUF = GgufArchitecture(
    _gguf,
    replace(
        from_gguf.NAMES,
        names=from_gguf.NAMES.names | mamba.GGUF_NAMES | {LAYER + "mlp_norm": "blk.{}.ffn_norm"},
        respelt=(("ffn_norm.weight", "ffn_norm"),),  # what a file should call it
        reshaped=mamba.GGUF_RESHAPED,
    ),
)
