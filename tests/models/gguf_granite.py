"""GGUF files of Granite: dense, with experts, and with recurrent layers."""

import re
from typing import Any

import numpy as np
from gguf_case import ARCH, Case, Weights, Writer, paired
from gguf_recurrent import recurrent, ssm

_LAYER = re.compile(r"(.*layers\.\d+\.)(.*)")


def _granite_metadata(writer: Writer, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)
    if getattr(config, "shared_intermediate_size", 0):
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)


def _granite_moe(weights: Weights, config: Any) -> Weights:
    """Gate and up apart; a network that all tokens pass is the layer's own where there are no experts."""
    for theirs in list(weights):
        if ("shared_mlp" not in theirs and "block_sparse_moe" not in theirs) or "router" in theirs:
            continue
        layer = _LAYER.fullmatch(theirs)
        assert layer
        weight = weights.pop(theirs)
        of = (
            ("mlp." if config.num_local_experts == 0 else "mlp.shared_expert.")
            if "shared" in theirs
            else "mlp.experts."
        )
        halves = np.split(weight, 2, axis=-2)
        parts = {"gate": halves[0], "up": halves[1]} if "input" in theirs else {"down": weight}
        weights |= {f"{layer[1]}{of}{m}_proj.weight": part for m, part in parts.items()}
    return paired(weights, config)


def _hybrid_metadata(writer: Writer, config: Any) -> None:
    _granite_metadata(writer, config)
    attends = [kind in ("attention", "full_attention") for kind in config.layer_types]
    writer.kv_data[0].pop(f"{writer.arch}.attention.head_count_kv")
    writer.add_head_count_kv([config.num_key_value_heads * each for each in attends])
    writer.add_rope_scaling_finetuned(config.position_embedding_type == "rope")
    size, groups = config.mamba_d_head, config.mamba_n_groups
    ssm(writer, config.mamba_d_conv, config.mamba_d_state, config.mamba_n_heads, size, groups)


def _hybrid(weights: Weights, config: Any) -> Weights:
    return recurrent(_granite_moe(weights, config), config)


GRANITE = {
    "granite": Case(ARCH.GRANITE, tensors=paired, metadata=_granite_metadata),
    "granite-moe": Case(ARCH.GRANITE_MOE, tensors=_granite_moe, metadata=_granite_metadata),
    "granite-4": Case(ARCH.GRANITE_HYBRID, tensors=_hybrid, metadata=_hybrid_metadata),
    "granite-4-dense": Case(
        ARCH.GRANITE_HYBRID, changes={"shared_intermediate_size": 52}, tensors=_hybrid, metadata=_hybrid_metadata
    ),
}
