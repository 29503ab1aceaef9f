"""What Gemma 3n and Gemma 4 have alike: the last layers read K and V of earlier ones, tokens have vectors of each
layer, and checkpoints may see and hear too."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokenworks.models.config import ModelConfig
from tokenworks.models.families import from_gguf, from_hf, gemma
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, HfArchitecture
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.per_layer import PerLayer
from tokenworks.models.parts.rope import Rope
from tokenworks.models.vision.settings import required
from tokenworks.protocol.errors import ModelError


def sources(f: Fields, slides: Sequence[bool], key: str, default: int) -> list[int | None]:
    """Of each layer whose K and V it reads: the last ones read those of the last layer before them of their kind."""
    count = f.count(key, default)
    first = len(slides) - count
    if first < 1 or any(kind not in slides[:first] for kind in slides[first:]):
        raise f.wrong(key, "a number that leaves a layer of each kind before those")
    last = {kind: number for number, kind in enumerate(slides[:first])}
    return [None if number < first else last[kind] for number, kind in enumerate(slides)]


def used(ropes: Mapping[str, Rope], mixers: Sequence[Attention]) -> dict[str, Rope]:
    """Those that some layer turns by."""
    return {name: rope for name, rope in ropes.items() if any(mixer.rope == name for mixer in mixers)}


def whole(text: HfArchitecture) -> HfArchitecture:
    """`text` as part of a checkpoint that sees and hears too."""

    def read(f: Fields) -> ModelConfig:
        section = required(f, "text_config")
        tied = {"tie_word_embeddings": f.flag("tie_word_embeddings", True)}
        return text.read(Fields(section.path, {**tied, **section.table}))

    unused = (*text.files.unused, *_OTHER_SENSES)
    return HfArchitecture(read, replace(text.files, unused=unused, prefixes=_TEXT_OF_WHOLE))


def per_layer(f: Fields) -> PerLayer | None:
    size = f.count("hidden_size_per_layer_input", 256)
    if not size:
        return None
    return PerLayer(
        vocabulary=f.integer("vocab_size_per_layer_input", 262_144),
        size=size,
        layers=from_hf.layer_count(f),
        activation=gemma.activation(f),
        norm_epsilon=from_hf.norm_epsilon(f),
    )


def per_layer_gguf(f: Fields, file: GgufFile) -> PerLayer | None:
    size, table = f.count("embedding_length_per_layer_input"), file.tensors.get("per_layer_token_embd.weight")
    if not size:
        return None
    if table is None:
        raise ModelError(f"{file.path}: tensor 'per_layer_token_embd.weight' is missing.")
    return PerLayer(
        vocabulary=table.shape[0],
        size=size,
        layers=from_gguf.layer_count(f),
        activation="gelu_tanh",
        norm_epsilon=from_gguf.norm_epsilon(f),
    )


_IN_LAYER = "model.layers.{}."
PER_LAYER_NAMES = {
    "per_layer.embed": "model.embed_tokens_per_layer.weight",
    "per_layer.map": "model.per_layer_model_projection.weight",
    "per_layer.norm": "model.per_layer_projection_norm.weight",
    LAYER + "per_layer_gate": _IN_LAYER + "per_layer_input_gate.weight",
    LAYER + "per_layer_out": _IN_LAYER + "per_layer_projection.weight",
    LAYER + "per_layer_norm": _IN_LAYER + "post_per_layer_input_norm.weight",
}
SHARED = tuple(f"model.layers.*.self_attn.{name}" for name in ("[kv]_proj.*", "[kv]_norm.*"))
"""What files may have of layers that read the K and V of others."""
_OTHER_SENSES = ("model.vision_tower.*", "model.audio_tower.*", "model.embed_vision.*", "model.embed_audio.*")
_TEXT_OF_WHOLE = (("model.language_model.", "model."), ("language_model.model.", "model."))

PER_LAYER_GGUF_NAMES = {
    "per_layer.embed": "per_layer_token_embd.weight",
    "per_layer.map": "per_layer_model_proj.weight",
    "per_layer.norm": "per_layer_proj_norm.weight",
    LAYER + "per_layer_gate": "blk.{}.inp_gate.weight",
    LAYER + "per_layer_out": "blk.{}.proj.weight",
    LAYER + "per_layer_norm": "blk.{}.post_norm.weight",
}
SHARED_GGUF = ("blk.*.attn_k.*", "blk.*.attn_v.*", "blk.*.attn_k_norm.*")
