"""Decoders that differ from Llama in a few numbers, or in where norms and positions are.

EXAONE 4 (arXiv 2507.11407)    norms behind the parts; windows, and no positions in layers that see everything
Seed-OSS                       biases
ERNIE 4.5                      rotary pairs (2i, 2i + 1)
Hunyuan                        q and k normed when they are turned; frequencies stretched by a fixed `alpha`
"""

from dataclasses import replace

from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf, olmo
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.parts.rope import Rope

_MLP_MAPS = frozenset({"gate", "up", "down"})


def _exaone4(f: Fields) -> DecoderConfig:
    rope, pattern = from_hf.only_rope(f), f.table.get("sliding_window_pattern", 4)
    has_windows = f.has("sliding_window") or "sliding_window" not in f.table

    def slides(number: int) -> bool:
        if isinstance(pattern, str) and set(pattern) <= {"L", "G"} and pattern:
            return pattern[number % len(pattern)] == "L"
        if not isinstance(pattern, int) or pattern < 1:
            raise f.wrong("sliding_window_pattern", "a positive integer, or letters L and G")
        return (number + 1) % pattern != 0

    attention = from_hf.attention(f, rope, qk_norm_epsilon=f.number("rms_norm_eps", 1e-5))
    windows = from_hf.windows(f, from_hf.sliding(f, slides), 4096) if has_windows else [0] * from_hf.layer_count(f)
    mixers = [replace(attention, window=w, rope="global" if w or not has_windows else "") for w in windows]
    epsilon = f.number("rms_norm_eps", 1e-5)
    return from_hf.decoder(f, "exaone4", mixers, from_hf.mlp(f), {"global": rope}, norms="behind", norm_epsilon=epsilon)


def _seed_oss(f: Fields) -> DecoderConfig:
    size = from_hf.head_size(f, 128)
    rope = from_hf.only_rope(f, size)
    biased = frozenset("qkv") if f.flag("attention_bias", True) else frozenset[str]()
    if f.flag("attention_out_bias", False):
        biased |= {"o"}
    attention = from_hf.attention(f, rope, head_size=size, scale=size**-0.5, biased=biased)
    mlp = from_hf.mlp(f, biased=_MLP_MAPS if f.flag("mlp_bias", False) else frozenset())
    return from_hf.decoder(f, "seed_oss", [attention] * from_hf.layer_count(f), mlp, {"global": rope})


def ernie(f: Fields, size: int) -> DecoderConfig:
    """`size`: of a head."""
    rope, biases = from_hf.only_rope(f, size, base=5e5), f.flag("use_bias", False)
    attention = from_hf.attention(
        f, rope, head_size=size, scale=size**-0.5, biased=frozenset("qkvo") if biases else frozenset()
    )
    mlp = from_hf.mlp(f, biased=_MLP_MAPS if biases else frozenset())
    return from_hf.decoder(
        f,
        "ernie4_5",
        [attention] * from_hf.layer_count(f),
        mlp,
        {"global": rope},
        norm_epsilon=f.number("rms_norm_eps", 1e-5),
        tied_head=f.flag("tie_word_embeddings", True),
    )


def _hunyuan(f: Fields) -> DecoderConfig:
    epsilon, size = f.number("rms_norm_eps", 1e-5), from_hf.head_size(f)
    rope, section = from_hf.only_rope(f), f.section("rope_parameters") or f.section("rope_scaling")
    if section is not None and section.has("alpha"):
        # "dynamic" in files, but for all lengths the same (NTK-aware scaling).
        rope = replace(rope, base=rope.base * section.number("alpha") ** (size / (size - 2)))
    attention = from_hf.attention(
        f, rope, biased=from_hf.attention_biases(f), qk_norm_epsilon=epsilon, norms_turned=True
    )
    mixers = [attention] * from_hf.layer_count(f)
    return from_hf.decoder(f, "hunyuan_v1_dense", mixers, from_hf.mlp(f), {"global": rope}, norm_epsilon=epsilon)


def _exaone4_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope, count, epsilon = from_gguf.rope(f, file), from_gguf.layer_count(f), from_gguf.norm_epsilon(f)
    window, key = f.count("attention.sliding_window"), "attention.sliding_window_pattern"
    slides = [False] * count
    if window:
        given = f"{f.prefix}{key}" in file.metadata
        slides = [
            bool(flag)
            for flag in (from_gguf.of_layers(f, file, key, count) if given else [(n + 1) % 4 for n in range(count)])
        ]
    attention = replace(from_gguf.attention(f, file, rope), qk_norm_epsilon=epsilon)
    mixers = [
        replace(attention, window=window if slid else 0, rope="global" if slid or not window else "") for slid in slides
    ]
    return from_gguf.decoder(f, file, mixers, from_gguf.mlp(f, file), {"global": rope}, norms="behind")


def _plain_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    mixers = [from_gguf.attention(f, file, rope)] * from_gguf.layer_count(f)
    return from_gguf.decoder(f, file, mixers, from_gguf.mlp(f, file), {"global": rope})


def _hunyuan_gguf(file: GgufFile) -> DecoderConfig:
    """There the stretching is in the base."""
    f = from_gguf.fields(file)
    base, size = f.number("rope.freq_base", 1e4), from_gguf.head_size(f)
    rope = Rope(size=f.integer("rope.dimension_count", size, maximum=size), base=base)
    attention = replace(
        from_gguf.attention(f, file, rope), qk_norm_epsilon=from_gguf.norm_epsilon(f), norms_turned=True
    )
    mixers = [attention] * from_gguf.layer_count(f)
    return from_gguf.decoder(f, file, mixers, from_gguf.mlp(f, file), {"global": rope})


_IN_LAYER = "model.layers.{}.self_attn."
_HUNYUAN = {
    LAYER + "q_norm": _IN_LAYER + "query_layernorm.weight",
    LAYER + "k_norm": _IN_LAYER + "key_layernorm.weight",
}

EXAONE4 = HfArchitecture(_exaone4, olmo.OLMO2.files)
SEED_OSS = HfArchitecture(_seed_oss, from_hf.NAMES)
ERNIE4_5 = HfArchitecture(
    lambda f: ernie(f, from_hf.head_size(f, 128)), replace(from_hf.NAMES, rows=from_hf.PAIRED_ROWS)
)
HUNYUAN = HfArchitecture(_hunyuan, replace(from_hf.NAMES, names=from_hf.NAMES.names | _HUNYUAN))
EXAONE4_GGUF = GgufArchitecture(_exaone4_gguf, from_gguf.NAMES)
SEED_OSS_GGUF = GgufArchitecture(
    _plain_gguf,
    replace(from_gguf.NAMES, names=from_gguf.NAMES.names | {LAYER + "mlp_norm": "blk.{}.post_attention_norm.weight"}),
)
ERNIE4_5_GGUF = GgufArchitecture(_plain_gguf, replace(from_gguf.NAMES, interleaved_rotary=True))
HUNYUAN_GGUF = GgufArchitecture(_hunyuan_gguf, from_gguf.NAMES)
