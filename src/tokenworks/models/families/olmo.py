"""OLMo 2 (arXiv 2501.00656): norms behind the parts only, q and k normed over all heads together. OLMo 3 has windows in
three of four layers. OLMoE (arXiv 2409.02060): 64 experts, norms before the parts."""

from dataclasses import replace

from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf, mixtures
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.rope import Rope


def _olmo2(f: Fields) -> DecoderConfig:
    rope = from_hf.only_rope(f)
    return _decoder(f, "olmo2", [0] * from_hf.layer_count(f), {"global": rope})


def _olmo3(f: Fields) -> DecoderConfig:
    windows = from_hf.windows(f, from_hf.sliding(f, lambda number: (number + 1) % 4 != 0), 4096)
    size, base = from_hf.head_size(f), f.number("rope_theta", 5e5)
    parameters = f.section("rope_parameters")
    if parameters is None:
        ropes = {"global": from_hf.rope(f, f.section("rope_scaling"), size, base), "local": Rope(size=size, base=base)}
    else:
        ropes = {
            "global": from_hf.rope(f, parameters.section("full_attention"), size, base),
            "local": from_hf.rope(f, parameters.section("sliding_attention"), size, base),
        }
    return _decoder(f, "olmo3", windows, ropes)


def _olmoe(f: Fields) -> DecoderConfig:
    f.refuse("clip_qkv", (), "clipping q, k and v is not supported")
    rope = from_hf.only_rope(f)
    epsilon = f.number("rms_norm_eps", 1e-5)
    attention = from_hf.attention(
        f, rope, biased=from_hf.attention_biases(f), qk_norm_epsilon=epsilon, qk_norm_whole=True
    )
    part = mixtures.mixture(f, width=f.integer("intermediate_size"), normalise=f.flag("norm_topk_prob", False))
    mixers = [attention] * from_hf.layer_count(f)
    return from_hf.decoder(f, "olmoe", mixers, part, {"global": rope}, norm_epsilon=epsilon)


def _decoder(f: Fields, architecture: str, windows: list[int], ropes: dict[str, Rope]) -> DecoderConfig:
    epsilon = from_hf.norm_epsilon(f, 1e-5)

    def attention(window: int) -> Attention:
        name = "local" if window and "local" in ropes else "global"
        return from_hf.attention(
            f,
            ropes[name],
            rope=name,
            window=window,
            biased=from_hf.attention_biases(f),
            qk_norm_epsilon=epsilon,
            qk_norm_whole=True,
        )

    mixers = [attention(window) for window in windows]
    return from_hf.decoder(f, architecture, mixers, from_hf.mlp(f), ropes, norms="behind", norm_epsilon=epsilon)


def _olmo2_gguf(file: GgufFile) -> DecoderConfig:
    """OLMo 3's files are of architecture "olmo2"; their windows tell them from OLMo 2's."""
    f = from_gguf.fields(file)
    count, window = from_gguf.layer_count(f), f.count("attention.sliding_window")
    ropes = {"global": from_gguf.rope(f, file)}
    slides = [0] * count
    if window:
        ropes["local"] = Rope(size=ropes["global"].size, base=f.number("rope.freq_base_swa", ropes["global"].base))
        slides = from_gguf.of_layers(f, file, "attention.sliding_window_pattern", count)

    def attention(slide: int) -> Attention:
        name = "local" if slide else "global"
        plain = from_gguf.attention(f, file, ropes[name])
        epsilon = from_gguf.norm_epsilon(f)
        return replace(plain, rope=name, window=slide and window, qk_norm_epsilon=epsilon, qk_norm_whole=True)

    mixers = [attention(slide) for slide in slides]
    return from_gguf.decoder(f, file, mixers, from_gguf.mlp(f, file), ropes, norms="behind")


def _olmoe_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    f.refuse("attention.clamp_kqv", (0.0,), "clipping q, k and v is not supported")
    rope, epsilon = from_gguf.rope(f, file), from_gguf.norm_epsilon(f)
    attention = replace(from_gguf.attention(f, file, rope), qk_norm_epsilon=epsilon, qk_norm_whole=True)
    mixers = [attention] * from_gguf.layer_count(f)
    return from_gguf.decoder(f, file, mixers, mixtures.mixture_gguf(f, file), {"global": rope})


_NORMS = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
_NAMES = replace(
    from_hf.NAMES,
    names=from_hf.NAMES.names
    | {f"{LAYER}{ours}": f"model.layers.{{}}.{theirs}.weight" for ours, theirs in _NORMS.items()},
)
_EXPERTS = "model.layers.{}.mlp.experts"
_MIXED = replace(
    from_hf.NAMES,
    names=from_hf.NAMES.names
    | mixtures.names(_EXPERTS, mixtures.HF_MAPS)
    | {f"{LAYER}router": "model.layers.{}.mlp.gate.weight"},
    stacks=mixtures.stacks(_EXPERTS, mixtures.HF_MAPS),
)
_MIXED_GGUF = replace(from_gguf.NAMES, names=from_gguf.NAMES.names | mixtures.GGUF_NAMES, stacks=mixtures.GGUF_STACKS)
OLMO2 = HfArchitecture(_olmo2, _NAMES)
OLMO3 = HfArchitecture(_olmo3, _NAMES)
OLMOE = HfArchitecture(_olmoe, _MIXED)
OLMO2_GGUF = GgufArchitecture(_olmo2_gguf, from_gguf.NAMES)
OLMOE_GGUF = GgufArchitecture(_olmoe_gguf, _MIXED_GGUF)
