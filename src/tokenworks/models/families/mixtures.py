"""What config.json and GGUF metadata say of mixtures of experts, and what files call their weights, as far as families
share it.

GGUF keys and tensors: llama.cpp's gguf-py/gguf/constants.py.
"""

from typing import Any, Literal

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.families import from_hf
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER
from tokenworks.models.files.stacked import Stack
from tokenworks.models.parts.experts import Mixture


def mixture(f: Fields, **differences: Any) -> Mixture:
    """`differences`: fields of Mixture that are read another way than here."""
    fields = dict(differences)
    keys = {"top_k": "num_experts_per_tok", "experts": "num_experts", "width": "moe_intermediate_size"}
    for field, key in keys.items():
        if field not in fields:
            fields[field] = f.integer(key, maximum=MOST_EXPERTS if field == "experts" else 1 << 30)
    if "activation" not in fields:
        fields["activation"] = f.one_of("hidden_act", from_hf.ACTIVATIONS, "silu")
    if fields["top_k"] > fields["experts"]:
        raise f.wrong("num_experts_per_tok", f"at most the number of experts ({fields['experts']})")
    return Mixture(**fields)


def mixture_gguf(
    f: Fields, file: GgufFile, default_score: Literal["softmax", "sigmoid"] = "softmax", **differences: Any
) -> Mixture:
    """`default_score`: where the file says none. `differences`: fields of Mixture that are read another way."""
    experts = f.integer("expert_count", maximum=MOST_EXPERTS)
    scores: dict[str, Literal["softmax", "sigmoid"]] = {"1": "softmax", "2": "sigmoid", "3": "softmax"}
    gating = f.table.get(f"{f.prefix}expert_gating_func") or (1 if default_score == "softmax" else 2)
    if str(gating) not in scores:
        raise f.wrong("expert_gating_func", f"one of {', '.join(scores)}")
    width = next(
        (t.shape[-2] for name, t in file.tensors.items() if name.endswith((".ffn_up_exps.weight", ".ffn_up.0.weight"))),
        None,
    )
    groups = f.integer("expert_group_count", 1)
    fields: dict[str, Any] = {
        "experts": experts,
        "width": f.integer("expert_feed_forward_length", width),
        "top_k": f.integer("expert_used_count", maximum=experts),
        "activation": "silu",
        "score": scores[str(gating)],
        "normalise": f.flag("expert_weights_norm", False),
        "scale": f.number("expert_weights_scale", 1.0),
        "corrected": any(name.endswith(".exp_probs_b.bias") for name in file.tensors),
        "groups": groups,
        "kept_groups": f.integer("expert_group_used_count", 1 if groups == 1 else None, maximum=groups),
        "group_best": 1 if scores[str(gating)] == "softmax" else 2,
        **differences,
    }
    return Mixture(**fields)


def names(of_layer: str, maps: dict[str, str]) -> dict[str, str]:
    """Of experts in a file that names each: `maps` has gate, up, down; {} in `of_layer` is the layer."""
    return {f"{LAYER}experts.{{}}.{ours}": f"{of_layer}.{{}}.{theirs}.weight" for ours, theirs in maps.items()}


def stacks(of_layer: str, maps: dict[str, str]) -> tuple[Stack, ...]:
    """As transformers keeps experts in memory: gate and up in one tensor of each layer."""
    each = {ours: f"{of_layer}.{{}}.{theirs}.weight" for ours, theirs in maps.items()}
    return (
        Stack(f"{of_layer}.gate_up_proj", (each["gate"], each["up"])),
        Stack(f"{of_layer}.down_proj", (each["down"],)),
    )


HF_MAPS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}

_EACH = {m: f"blk.{{}}.ffn_{m}.{{}}.weight" for m in ("gate", "up", "down")}
GGUF_NAMES = {
    f"{LAYER}router": "blk.{}.ffn_gate_inp.weight",
    f"{LAYER}router_correction": "blk.{}.exp_probs_b.bias",
    **{f"{LAYER}experts.{{}}.{m}": name for m, name in _EACH.items()},
    **{f"{LAYER}shared.{m}": f"blk.{{}}.ffn_{m}_shexp.weight" for m in _EACH},
    f"{LAYER}shared_gate": "blk.{}.ffn_gate_inp_shexp.weight",
}
GGUF_STACKS = (
    *(Stack(f"blk.{{}}.ffn_{m}_exps.weight", (name,)) for m, name in _EACH.items()),
    Stack("blk.{}.ffn_gate_up_exps.weight", (_EACH["gate"], _EACH["up"])),
)
GGUF_RESHAPED = frozenset({GGUF_NAMES[f"{LAYER}shared_gate"]})
"""Older files have it as a vector."""
