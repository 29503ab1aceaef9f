"""How many bytes a model keeps per token, and so how many blocks fit a given memory."""

from collections.abc import Iterable

from tokenworks.kernels.backend import CacheType
from tokenworks.kernels.program import CacheLayer

ELEMENT_BYTES: dict[CacheType, int] = {"int8": 1, "float16": 2, "float32": 4}
SCALE_BYTES: dict[CacheType, int] = {"int8": 4, "float16": 0, "float32": 0}
"""Beside the elements of a position and KV head, for each of K and V."""


def token_bytes(layers: Iterable[CacheLayer], dtype: CacheType) -> int:
    """Bytes of K and V of one token over all layers."""
    return sum(2 * layer.kv_heads * (layer.head_size * ELEMENT_BYTES[dtype] + SCALE_BYTES[dtype]) for layer in layers)


def blocks_that_fit(cache_mb: int, layers: Iterable[CacheLayer], dtype: CacheType, block_tokens: int) -> int:
    """Whole blocks of `block_tokens` tokens in `cache_mb` MiB; at least one. 0 layers (an encoder) need none: 0."""
    per_block = token_bytes(layers, dtype) * block_tokens
    return max(1, cache_mb * 2**20 // per_block) if per_block else 0
