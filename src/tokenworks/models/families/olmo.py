"""OLMo 2 (arXiv 2501.00656): norms behind the parts only, q and k normed over all heads together. OLMo 3 has windows in
three of four layers. OLMoE (arXiv 2409.02060): 64 experts, norms before the parts."""

from dataclasses import replace

from tokenworks.models.attention import Attention
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_hf, mixtures
from tokenworks.models.fields import Fields
from tokenworks.models.files import LAYER, HfArchitecture
from tokenworks.models.rope import Rope


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
    def attention(window: int) -> Attention:
        name = "local" if window and "local" in ropes else "global"
        return from_hf.attention(
            f,
            ropes[name],
            rope=name,
            window=window,
            biased=from_hf.attention_biases(f),
            qk_norm_epsilon=from_hf.norm_epsilon(f),
            qk_norm_whole=True,
        )

    mixers = [attention(window) for window in windows]
    return from_hf.decoder(f, architecture, mixers, from_hf.mlp(f), ropes, norms="behind")


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
OLMO2 = HfArchitecture(_olmo2, _NAMES)
OLMO3 = HfArchitecture(_olmo3, _NAMES)
OLMOE = HfArchitecture(_olmoe, _MIXED)
