"""Llama (arXiv 2302.13971, 2407.21783)."""

from dataclasses import replace

from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf
from tokenworks.models.fields import Fields
from tokenworks.models.files import GgufArchitecture, HfArchitecture
from tokenworks.models.gguf import GgufFile


def _read(f: Fields) -> DecoderConfig:
    mlp = frozenset({"gate", "up", "down"}) if f.flag("mlp_bias", False) else frozenset[str]()
    attention = from_hf.attention(f, biased=from_hf.attention_biases(f))
    return from_hf.decoder(f, "llama", attention, from_hf.mlp(f, biased=mlp))


def _read_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    return from_gguf.decoder(f, file, from_gguf.attention(f, file), from_gguf.mlp(f, file))


LLAMA = HfArchitecture(_read, from_hf.NAMES)
LLAMA_GGUF = GgufArchitecture(_read_gguf, replace(from_gguf.NAMES, interleaved_rotary=True))
