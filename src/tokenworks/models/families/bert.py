"""BERT (arXiv 1810.04805) and the sentence encoders built on it."""

from typing import Any

from tokenworks.models.config import MAX_LAYERS, EncoderConfig
from tokenworks.models.families.from_hf import ACTIVATIONS
from tokenworks.models.fields import Fields
from tokenworks.models.files import FileNames, HfArchitecture, weights_and_biases
from tokenworks.models.json_file import read_json, read_json_value
from tokenworks.protocol.errors import ModelError


def _read(f: Fields) -> EncoderConfig:
    f.refuse("position_embedding_type", ("absolute",), "only absolute position embeddings are supported")
    f.refuse("is_decoder", (False,), "only encoders are supported for this architecture")
    width, heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    if width % heads:
        raise f.wrong("num_attention_heads", f"a divisor of hidden_size ({width})")
    positions = f.integer("max_position_embeddings", 512)
    limit_path = f.path.parent / "sentence_bert_config.json"
    limits = Fields(limit_path, read_json(limit_path) if limit_path.exists() else {})
    pooling, normalise = _sentence_modules(f)
    return EncoderConfig(
        architecture="bert",
        vocabulary=f.integer("vocab_size"),
        context_tokens=min(positions, limits.integer("max_seq_length", positions)),
        positions=positions,
        token_types=f.integer("type_vocab_size", 2),
        width=width,
        heads=heads,
        head_size=width // heads,
        mlp_width=f.integer("intermediate_size"),
        layers=f.integer("num_hidden_layers", maximum=MAX_LAYERS),
        activation=f.one_of("hidden_act", ACTIVATIONS, "gelu"),
        norm_epsilon=f.number("layer_norm_eps", 1e-12),
        pooling=pooling,
        normalise=normalise,
    )


def _sentence_modules(f: Fields) -> tuple[Any, bool]:
    """How modules.json (sentence-transformers) says vectors are made of a text's rows: (pooling, normalise).

    A checkpoint without it gets what that library then does: the mean, not normalised.
    """
    folder = f.path.parent
    path = folder / "modules.json"
    if not path.exists():
        return "mean", False
    pooling, normalise = "mean", False
    modules = read_json_value(path)
    for module in modules if isinstance(modules, list) else [modules]:
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        if kind == "Pooling":
            pooling = _pooling(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            raise ModelError(f"{path}: module {module!r} is not supported; Transformer, Pooling and Normalize are.")
    return pooling, normalise


def _pooling(path: Any) -> str:
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
    chosen = [key for key, value in read_json(path).items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in modes:
        raise ModelError(f"{path}: pooling {chosen} is not supported; exactly one of {', '.join(modes)} is.")
    return modes[chosen[0]]


_NAMES = {
    "embed": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "token_types": "embeddings.token_type_embeddings.weight",
    "norm": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
    **weights_and_biases(
        {
            "q": "encoder.layer.{}.attention.self.query",
            "k": "encoder.layer.{}.attention.self.key",
            "v": "encoder.layer.{}.attention.self.value",
            "o": "encoder.layer.{}.attention.output.dense",
            "attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
            "up": "encoder.layer.{}.intermediate.dense",
            "down": "encoder.layer.{}.output.dense",
            "mlp_norm": "encoder.layer.{}.output.LayerNorm",
        }
    ),
}
BERT = HfArchitecture(_read, FileNames(_NAMES, ("embeddings.position_ids", "pooler.dense.*")))
