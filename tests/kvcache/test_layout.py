from tokenworks.kernels.program import CacheLayer
from tokenworks.kvcache.layout import blocks_that_fit, token_bytes

SMOLLM2 = (CacheLayer(kv_heads=3, head_size=64, window=0),) * 30


def test_bytes_of_a_token() -> None:
    assert token_bytes(SMOLLM2, "float16") == 11_520 * 2
    assert token_bytes(SMOLLM2, "float32") == 11_520 * 4
    assert token_bytes(SMOLLM2, "int8") == 11_520 + 30 * 2 * 3 * 4  # and a scale for each KV head


def test_blocks_fill_the_memory_and_no_more() -> None:
    blocks = blocks_that_fit(1024, SMOLLM2, "float16", 16)
    assert blocks * 16 * token_bytes(SMOLLM2, "float16") <= 1024 * 2**20
    assert (blocks + 1) * 16 * token_bytes(SMOLLM2, "float16") > 1024 * 2**20
    assert blocks_that_fit(1, SMOLLM2, "float32", 1024) == 1


def test_an_encoder_keeps_nothing() -> None:
    assert blocks_that_fit(1024, (), "float16", 16) == 0
