"""Gemma 4, text: layers that see everything have larger heads, of which they turn a quarter, and fewer for K and V,
where V may be K; the last layers read K and V of earlier ones; tokens have vectors of each layer, or layers experts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import DecoderConfig, Layer
from tokenworks.models.families import from_gguf, from_hf, gemma, gemma_shared, mixtures
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, Form, GgufArchitecture, HfArchitecture
from tokenworks.models.parts.experts import Mixture
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.rope import Proportional, Rope
from tokenworks.models.parts.two_networks import TwoNetworks


def _read(f: Fields) -> DecoderConfig:
    f.refuse("use_bidirectional_attention", (False, "vision"), "only causal attention of texts is supported")
    count, pattern = from_hf.layer_count(f), 6
    slides = from_hf.sliding(f, lambda number: (number + 1) % pattern != 0)
    slides[-1] = False  # as in the reference, whatever the file says
    windows = from_hf.windows(f, slides, 512)
    sizes, kv_heads = _of_layers(f, slides)
    shared = gemma_shared.sources(f, slides, "num_kv_shared_layers", 0)
    of_kinds = dict(zip(slides, sizes, strict=True))
    if any(size != of_kinds[slid] for size, slid in zip(sizes, slides, strict=True)):
        raise f.wrong("per_layer_config", "one head_dim for all layers of a kind")
    ropes = _ropes(f, of_kinds)
    mixers = [
        from_hf.attention(
            f,
            ropes["local" if slides[n] else "global"],
            rope="local" if slides[n] else "global",
            head_size=sizes[n],
            kv_heads=kv_heads[n],
            scale=1.0,
            window=windows[n],
            biased=from_hf.attention_biases(f),
            qk_norm_epsilon=from_hf.norm_epsilon(f),
            v_normed=True,
            v_is_k=f.flag("attention_k_eq_v", False) and not slides[n],
            source=shared[n],
        )
        for n in range(count)
    ]
    decoder = gemma.around(
        f,
        "gemma4",
        mixers,
        [from_hf.mlp(f, activation=gemma.activation(f), width=width) for width in _mlp_widths(f, shared)],
        gemma_shared.used(ropes, mixers),
        logit_softcap=from_hf.softcap(f, "final_logit_softcapping"),
        per_layer=gemma_shared.per_layer(f),
        scaled_layers=True,
    )
    return replace(decoder, layers=_with_experts(f, decoder.layers)) if f.flag("enable_moe_block", False) else decoder


def _of_layers(f: Fields, slides: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Of each layer the size of a head, and the number of them for K and V. Files have them by layer, or older ones for
    all layers that see everything."""
    by_layer = f.section("per_layer_config")
    size, kv_heads = from_hf.head_size(f, 256), f.integer("num_key_value_heads", 4)
    sizes, counts = [], []
    for number, slid in enumerate(slides):
        own: Fields | None = f if by_layer is None and not slid else None
        size_key, count_key, size_default = "global_head_dim", "num_global_key_value_heads", 512
        if by_layer is not None:
            own = next((by_layer.section(key) for key in by_layer.table if key.isdigit() and int(key) == number), None)
            size_key, count_key, size_default = "head_dim", "num_key_value_heads", size
        sizes.append(from_hf.head_size(own, size_default, size_key) if own else size)
        takes_count = own and (by_layer is not None or f.flag("attention_k_eq_v", False))
        counts.append(own.integer(count_key, kv_heads) if own and takes_count else kv_heads)
    return sizes, counts


def _ropes(f: Fields, sizes: Mapping[bool, int]) -> dict[str, Rope]:
    """`sizes`: of heads with a window (True) and without."""
    parameters = f.section("rope_parameters")
    ropes: dict[str, Rope] = {}
    for slid, size in sizes.items():
        section = parameters and parameters.section("sliding_attention" if slid else "full_attention")
        if section is None:
            section = Fields(f.path, {} if slid else {"rope_type": "proportional", "partial_rotary_factor": 0.25})
        base = 1e4 if slid else 1e6
        if section.table.get("rope_type") == "proportional":
            pairs = int(section.number("partial_rotary_factor", 1.0) * size // 2)
            ropes["local" if slid else "global"] = Rope(
                size=size,
                base=section.number("rope_theta", base),
                factor=section.number("factor", 1.0),
                stretched=Proportional(pairs=pairs),
            )
        else:
            ropes["local" if slid else "global"] = from_hf.rope(f, section, size, base)
    return ropes


def _mlp_widths(f: Fields, shared: Sequence[int | None]) -> list[int]:
    width, wide = f.integer("intermediate_size"), f.flag("use_double_wide_mlp", False)
    return [width * (2 if wide and source is not None else 1) for source in shared]


def _with_experts(f: Fields, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    experts = mixtures.mixture(
        f,
        experts=f.integer("num_experts", maximum=MOST_EXPERTS),
        top_k=f.integer("top_k_experts"),
        activation=gemma.activation(f),
        normalise=True,
        weighed=True,
    )
    return _beside(experts, from_hf.norm_epsilon(f), layers)


def _beside(experts: Mixture, epsilon: float, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    made = []
    for layer in layers:
        assert isinstance(layer.feed_forward, Mlp)
        both = TwoNetworks(mlp=layer.feed_forward, experts=experts, norm_epsilon=epsilon)
        made.append(replace(layer, feed_forward=both, norms_input=False))
    return tuple(made)


def _gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    count, epsilon = from_gguf.layer_count(f), from_gguf.norm_epsilon(f)
    slides = [bool(flag) for flag in from_gguf.of_layers(f, file, "attention.sliding_window_pattern", count)]
    kv_heads = from_gguf.of_layers(f, file, "attention.head_count_kv", count)
    shared = gemma_shared.sources(f, slides, "attention.shared_kv_layers", 0)
    size = from_gguf.head_size(f)
    small = f.integer("attention.key_length_swa", size)
    ropes = gemma.two_ropes_gguf(f, file, f.integer("rope.dimension_count_swa", small, maximum=small))
    mixers = []
    for number, slid in enumerate(slides):
        rope = ropes["local" if slid else "global"]
        mixer = replace(
            from_gguf.attention(f, file, rope, kv_heads=kv_heads[number]),
            rope="local" if slid else "global",
            head_size=small if slid else size,
            scale=1.0,
            window=f.integer("attention.sliding_window") if slid else 0,
            qk_norm_epsilon=epsilon,
            v_normed=True,
            v_is_k=shared[number] is None and f"blk.{number}.attn_v.weight" not in file.tensors,
            source=shared[number],
        )
        mixers.append(mixer)
    decoder = gemma.around_gguf(
        f,
        file,
        mixers,
        [
            Mlp(width=width, activation="gelu_tanh")
            for width in from_gguf.of_layers(f, file, "feed_forward_length", count)
        ],
        gemma_shared.used(ropes, mixers),
        logit_softcap=from_hf.softcap(f, "final_logit_softcapping"),
        per_layer=gemma_shared.per_layer_gguf(f, file),
        scaled_layers="blk.0.layer_output_scale.weight" in file.tensors,
    )
    if not f.count("expert_count"):
        return decoder
    # The factor for each expert is a scale of its last map there.
    experts = mixtures.mixture_gguf(f, file, activation="gelu_tanh", normalise=True)
    return replace(decoder, layers=_beside(experts, epsilon, decoder.layers))


_IN_LAYER = "model.layers.{}."
_DIVIDED = Form(lambda stored: stored * len(stored) ** -0.5, lambda seen: seen * len(seen) ** 0.5)
"""The router divides what it sees by sqrt(width)."""
_NAMES = {
    **gemma.GEMMA3.files.names,
    **gemma_shared.PER_LAYER_NAMES,
    LAYER + "layer_scale": _IN_LAYER + "layer_scalar",
    **mixtures.names(_IN_LAYER + "experts", mixtures.HF_MAPS),
    LAYER + "router": _IN_LAYER + "router.proj.weight",
    LAYER + "router_scale": _IN_LAYER + "router.scale",
    LAYER + "router_expert_scales": _IN_LAYER + "router.per_expert_scale",
    LAYER + "mlp_made_norm": _IN_LAYER + "post_feedforward_layernorm_1.weight",
    LAYER + "experts_norm": _IN_LAYER + "pre_feedforward_layernorm_2.weight",
    LAYER + "experts_made_norm": _IN_LAYER + "post_feedforward_layernorm_2.weight",
}
_FILES = replace(
    gemma.GEMMA3.files,
    names=_NAMES,
    norm_offset=0.0,
    unused=(*gemma.GEMMA3.files.unused, *gemma_shared.SHARED),
    stacks=mixtures.stacks(_IN_LAYER + "experts", mixtures.HF_MAPS),
    forms={LAYER + "router_scale": _DIVIDED},
)

GEMMA4 = HfArchitecture(_read, _FILES)
GEMMA4_WHOLE = gemma_shared.whole(GEMMA4)

_GGUF_NAMES = {
    "per_layer.embed": "per_layer_token_embd.weight",
    "per_layer.map": "per_layer_model_proj.weight",
    "per_layer.norm": "per_layer_proj_norm.weight",
    LAYER + "per_layer_gate": "blk.{}.inp_gate.weight",
    LAYER + "per_layer_out": "blk.{}.proj.weight",
    LAYER + "per_layer_norm": "blk.{}.post_norm.weight",
}
SHARED_GGUF = ("blk.*.attn_k.*", "blk.*.attn_v.*", "blk.*.attn_k_norm.*")
_GGUF_NAMES = {
    **from_gguf.NAMES.names,
    **gemma_shared.PER_LAYER_GGUF_NAMES,
    **mixtures.GGUF_NAMES,
    LAYER + "layer_scale": "blk.{}.layer_output_scale.weight",
    LAYER + "router_scale": "blk.{}.ffn_gate_inp.scale",
    LAYER + "mlp_made_norm": "blk.{}.post_ffw_norm_1.weight",
    LAYER + "experts_norm": "blk.{}.pre_ffw_norm_2.weight",
    LAYER + "experts_made_norm": "blk.{}.post_ffw_norm_2.weight",
}
GEMMA4_GGUF = GgufArchitecture(
    _gguf,
    replace(
        from_gguf.NAMES,
        names=_GGUF_NAMES,
        unused=(*from_gguf.NAMES.unused, *gemma_shared.SHARED_GGUF),
        stacks=mixtures.GGUF_STACKS,
        forms={LAYER + "router_scale": _DIVIDED},
    ),
)
