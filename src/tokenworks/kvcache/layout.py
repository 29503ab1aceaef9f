"""How many bytes a model keeps per token and per sequence, and so how much of it fits a given memory."""

from collections.abc import Iterable
from dataclasses import dataclass

from tokenworks.kernels.backend import CacheType
from tokenworks.kernels.program import CacheLayer, KvLayer, StateLayer

ELEMENT_BYTES: dict[CacheType, int] = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "fp8": 1}
SCALE_BYTES: dict[CacheType, int] = {"int8": 4, "float16": 0, "bfloat16": 0, "float32": 0, "fp8": 0}
"""Beside the elements of a position and KV head, for each of K and V."""

STATES_PER_SEQUENCE = 8
"""No more slots than so many for each sequence that may run: its own, and snapshots that it may begin from."""
STATE_ONLY_BLOCKS = 1 << 16
"""Where tokens take no memory, blocks only count them, for the prefix tree."""


def token_bytes(layers: Iterable[CacheLayer], dtype: CacheType) -> int:
    """Bytes of K and V of one token over all layers."""
    return sum(_token_bytes(layer, dtype) for layer in layers if isinstance(layer, KvLayer))


def _token_bytes(layer: KvLayer, dtype: CacheType) -> int:
    if layer.latent:
        parts = (layer.head_size - layer.latent, layer.latent)
        if dtype == "int8":  # each with a scale, its codes in fours (kernels/cpu/attend/latent_cache.h)
            return layer.kv_heads * sum(-(-part // 4) * 4 + SCALE_BYTES[dtype] for part in parts)
        return layer.kv_heads * layer.head_size * ELEMENT_BYTES[dtype]
    return 2 * layer.kv_heads * (layer.head_size * ELEMENT_BYTES[dtype] + SCALE_BYTES[dtype])


def state_bytes(layers: Iterable[CacheLayer]) -> int:
    """Bytes of a sequence's recurrent state over all layers."""
    return sum(4 * layer.floats for layer in layers if isinstance(layer, StateLayer))


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What a cache holds."""

    blocks: int
    state_slots: int


def cache_that_fits(
    cache_mb: int, layers: tuple[CacheLayer, ...], dtype: CacheType, block_tokens: int, sequences: int
) -> CacheSize:
    """What fits `cache_mb` MiB: whole blocks of `block_tokens` tokens, at least one; and where layers keep states, at
    least two slots for them (one to read, one to write), in at most half of the memory if there is K and V too.

    0 layers (an encoder) need nothing.
    """
    per_block, per_slot, memory = token_bytes(layers, dtype) * block_tokens, state_bytes(layers), cache_mb * 2**20
    slots = 0
    if per_slot:
        most = memory // 2 if per_block else memory
        slots = max(2, min(most // per_slot, STATES_PER_SEQUENCE * sequences))
        memory -= slots * per_slot
    if per_block:
        return CacheSize(max(1, memory // per_block), slots)
    return CacheSize(STATE_ONLY_BLOCKS if per_slot else 0, slots)
