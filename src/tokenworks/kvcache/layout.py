"""How many bytes a model keeps per token, and so how many blocks fit a given memory."""

from collections.abc import Iterable
from typing import Literal

from tokenworks.kernels.program import CacheLayer

ELEMENT_BYTES = {"float16": 2, "float32": 4}


def token_bytes(layers: Iterable[CacheLayer], dtype: Literal["float16", "float32"]) -> int:
    """Bytes of K and V of one token over all layers."""
    return sum(2 * layer.kv_heads * layer.head_size for layer in layers) * ELEMENT_BYTES[dtype]


def blocks_that_fit(
    cache_mb: int, layers: Iterable[CacheLayer], dtype: Literal["float16", "float32"], block_tokens: int
) -> int:
    """Whole blocks of `block_tokens` tokens in `cache_mb` MiB; at least one. 0 layers (an encoder) need none: 0."""
    per_block = token_bytes(layers, dtype) * block_tokens
    return max(1, cache_mb * 2**20 // per_block) if per_block else 0
