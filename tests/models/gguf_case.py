"""What GGUF files of the families have in common: a case of the table in gguf_files.py, and what becomes of numbers in
more than one family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf

Weights = dict[str, Any]
Writer = Any
ARCH = gguf.MODEL_ARCH


@dataclass
class Case:
    """A model of DECODERS, with what GGUF cannot say of it left out, as `arch`."""

    arch: Any
    of: str = ""
    changes: dict[str, Any] | None = None
    tensors: Callable[[Weights, Any], Weights] = lambda weights, _: weights
    metadata: Callable[[Writer, Any], None] = lambda *_: None


def paired(weights: Weights, config: Any) -> Weights:
    """q and k with a rotary pair in rows that follow each other."""

    def reordered(name: str, weight: Any) -> Any:
        if "q_proj" not in name and "k_proj" not in name:
            return weight
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
        return halves.swapaxes(1, 2).reshape(weight.shape)

    return {name: reordered(name, weight) for name, weight in weights.items()}


def plus_one(weights: Weights, config: Any) -> Weights:
    """Gemma's norms."""
    return {name: weight + 1 if "norm" in name else weight for name, weight in weights.items()}


def renamed(weights: Weights, **words: str) -> Weights:
    def of(name: str) -> str:
        for theirs, ours in words.items():
            name = name.replace(theirs, ours)
        return name

    return {of(name): weight for name, weight in weights.items()}


def window(writer: Writer, config: Any) -> None:
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)


def router_metadata(writer: Writer, config: Any) -> None:
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    if config.n_group:
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
