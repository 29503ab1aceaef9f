from tokenworks.kernels.program import KvLayer, StateLayer
from tokenworks.kvcache.layout import cache_that_fits, state_bytes, token_bytes

SMOLLM2 = (KvLayer(kv_heads=3, head_size=64, window=0),) * 30
HYBRID = (*SMOLLM2[:4], StateLayer(3 * 1792), StateLayer(24 * 64 * 128)) * 6
STATES = HYBRID[4:6] * 6


def test_bytes_of_a_token() -> None:
    assert token_bytes(SMOLLM2, "float16") == 11_520 * 2
    assert token_bytes(SMOLLM2, "float32") == 11_520 * 4
    assert token_bytes(SMOLLM2, "int8") == 11_520 + 30 * 2 * 3 * 4  # and a scale for each KV head
    latent = KvLayer(kv_heads=1, head_size=576, window=0, latent=512)
    assert token_bytes([latent], "float16") == 576 * 2
    assert token_bytes([latent], "int8") == 576 + 2 * 4  # each part has a scale
    assert token_bytes([KvLayer(1, 20, 0, 11)], "int8") == 12 + 12 + 2 * 4
    assert token_bytes(HYBRID, "float32") == 24 * 2 * 3 * 64 * 4
    assert token_bytes(STATES, "int8") == 0


def test_bytes_of_a_state() -> None:
    assert state_bytes(SMOLLM2) == 0
    assert state_bytes(HYBRID) == state_bytes(STATES) == 6 * 4 * (3 * 1792 + 24 * 64 * 128)


def test_blocks_fill_the_memory_and_no_more() -> None:
    blocks = cache_that_fits(1024, SMOLLM2, "float16", 16, 64).blocks
    assert blocks * 16 * token_bytes(SMOLLM2, "float16") <= 1024 * 2**20
    assert (blocks + 1) * 16 * token_bytes(SMOLLM2, "float16") > 1024 * 2**20
    small = cache_that_fits(1, SMOLLM2, "float32", 1024, 64)
    assert (small.blocks, small.state_slots) == (1, 0)


def test_blocks_and_states_share_the_memory() -> None:
    for cache_mb, sequences in ((256, 64), (1024, 64), (1024, 4)):
        size = cache_that_fits(cache_mb, HYBRID, "int8", 16, sequences)
        states, block = size.state_slots * state_bytes(HYBRID), 16 * token_bytes(HYBRID, "int8")
        assert cache_mb * 2**20 - block < states + size.blocks * block <= cache_mb * 2**20
        assert size.state_slots <= 8 * sequences
        if size.state_slots < 8 * sequences:
            assert cache_mb * 2**19 - state_bytes(HYBRID) < states <= cache_mb * 2**19
    assert cache_that_fits(1, HYBRID, "int8", 16, 64).state_slots == 2, "less will not do"


def test_states_alone_take_all_the_memory_and_blocks_only_count() -> None:
    size = cache_that_fits(256, STATES, "int8", 16, 64)
    assert size.state_slots == 256 * 2**20 // state_bytes(STATES)
    assert size.blocks * 16 >= 2**20


def test_an_encoder_keeps_nothing() -> None:
    size = cache_that_fits(1024, (), "float16", 16, 64)
    assert (size.blocks, size.state_slots) == (0, 0)
