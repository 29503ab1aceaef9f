"""What configurations of small models share. Shapes that nothing divides: odd head counts, one KV head, prime
vocabularies."""

_SHARED = {
    "vocab_size": 101,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "max_position_embeddings": 256,
}
NO_SPECIAL = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}

SMALL = _SHARED | {"num_key_value_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-5}

# For configurations that lack some of these.
BARE = _SHARED | NO_SPECIAL
ONE_KV = BARE | {"num_key_value_heads": 1}
ONE_KV_RMS = ONE_KV | {"rms_norm_eps": 1e-5}

HALF = {"rope_type": "default", "rope_theta": 1e2, "partial_rotary_factor": 0.5}
"""Of each head turns."""
