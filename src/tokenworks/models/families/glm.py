"""GLM-4 (arXiv 2406.12793) and GLM-4-0414: Llama with half of each head turned, in pairs (2i, 2i + 1), and gate and up
stored as one map. The later one norms what the parts make too."""

from dataclasses import replace

from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.protocol.errors import ModelError


def _glm(f: Fields) -> DecoderConfig:
    return _read(f, "glm")


def _glm4(f: Fields) -> DecoderConfig:
    return replace(_read(f, "glm4"), norms="around")


def _read(f: Fields, name: str) -> DecoderConfig:
    size = from_hf.head_size(f, 128)
    rope = from_hf.only_rope(f, size, share=0.5)
    biased = frozenset("qkv") if f.flag("attention_bias", True) else frozenset[str]()
    heads = f.integer("num_key_value_heads", 2)
    attention = from_hf.attention(f, rope, head_size=size, kv_heads=heads, scale=size**-0.5, biased=biased)
    mixers = [attention] * from_hf.layer_count(f)
    return from_hf.decoder(
        f, name, mixers, from_hf.mlp(f), {"global": rope}, norm_epsilon=f.number("rms_norm_eps", 1.5625e-7)
    )


def _glm4_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    if file.metadata.get(f"{f.prefix}rope.dimension_sections") is not None:
        raise ModelError(f"{file.path}: positions along several axes are not supported for architecture 'glm4'.")
    rope = from_gguf.rope(f, file)
    mixers = [from_gguf.attention(f, file, rope)] * from_gguf.layer_count(f)
    return from_gguf.decoder(f, file, mixers, from_gguf.mlp(f, file), {"global": rope}, norms="around")


_IN_LAYER = "model.layers.{}."
_FILES = replace(
    from_hf.NAMES,
    names={
        **from_hf.NAMES.names,
        **{LAYER + m: _IN_LAYER + "mlp.gate_up_proj.weight" for m in ("gate", "up")},
        LAYER + "attention_post_norm": _IN_LAYER + "post_self_attn_layernorm.weight",
        LAYER + "mlp_post_norm": _IN_LAYER + "post_mlp_layernorm.weight",
    },
    rows=from_hf.PAIRED_ROWS,
)

GLM = HfArchitecture(_glm, _FILES)
GLM4 = HfArchitecture(_glm4, _FILES)
GLM4_GGUF = GgufArchitecture(
    _glm4_gguf,
    replace(
        from_gguf.NAMES,
        names=from_gguf.NAMES.names | {LAYER + m: "blk.{}.ffn_up.weight" for m in ("gate", "up")},
        rows=_FILES.rows,
        further_layers="blk.{}.",
    ),
)
