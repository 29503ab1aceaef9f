"""BERT, RoBERTa and XLM-RoBERTa, ModernBERT: encoders that make vectors, or scores of pairs of texts (cross-encoders).

A checkpoint whose config.json names a class ...ForSequenceClassification scores; any other makes vectors, as the files
of the sentence-transformers library beside it say.
"""

from typing import Any

from tokenworks.models.config import EncoderConfig
from tokenworks.models.encoder import ScoreHead, VectorHead
from tokenworks.models.families import from_hf
from tokenworks.models.families.from_hf import ACTIVATIONS
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.json_file import read_json, read_json_value
from tokenworks.models.files.names import FileNames, HfArchitecture, weights_and_biases
from tokenworks.models.parts.bert import BertBody
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.modernbert import ModernBertBody
from tokenworks.protocol.errors import ModelError

_ROBERTA_FIRST_POSITION = 2
"""Rows of the position table before the first token's: its positions begin behind the padding token's id, 1."""


def _bert(f: Fields) -> EncoderConfig:
    return _classic(f, "bert", f.integer("max_position_embeddings", 512))


def _roberta(f: Fields) -> EncoderConfig:
    f.refuse("pad_token_id", (1,), "positions are counted from the padding token's id, which must be 1")
    return _classic(f, "roberta", f.integer("max_position_embeddings", 514) - _ROBERTA_FIRST_POSITION)


def _classic(f: Fields, architecture: str, positions: int) -> EncoderConfig:
    f.refuse("position_embedding_type", ("absolute",), "only absolute position embeddings are supported")
    f.refuse("is_decoder", (False,), "only encoders are supported for this architecture")
    epsilon = f.number("layer_norm_eps", 1e-12)
    body = BertBody(
        vocabulary=f.integer("vocab_size"),
        positions=positions,
        token_types=f.integer("type_vocab_size", 2),
        width=f.integer("hidden_size"),
        heads=_heads(f),
        mlp=Mlp(
            width=f.integer("intermediate_size"),
            activation=f.one_of("hidden_act", ACTIVATIONS, "gelu"),
            gated=False,
            biased=frozenset({"up", "down"}),
        ),
        layers=from_hf.layer_count(f),
        norm_epsilon=epsilon,
    )
    head = ScoreHead(
        pooling="first", activation="tanh", dense_biased=True, norm="", norm_epsilon=epsilon, sigmoid=_sigmoid(f)
    )
    return _encoder(f, architecture, positions, body, head)


def _modernbert(f: Fields) -> EncoderConfig:
    every, near = f.integer("global_attn_every_n_layers", 3), f.integer("local_attention", 128) // 2 + 1
    slides = from_hf.sliding(f, lambda number: number % every != 0)
    width, heads = f.integer("hidden_size"), _heads(f)
    epsilon, norm_biased = f.number("norm_eps", 1e-5), f.flag("norm_bias", False)
    parameters = f.section("rope_parameters")
    ropes = {}
    for name, kind, base in (("global", "full_attention", 1.6e5), ("local", "sliding_attention", 1e4)):
        section = None if parameters is None else parameters.section(kind)
        ropes[name] = from_hf.rope(f, section, width // heads, f.number(name + "_rope_theta", base))
    activation = f.one_of("hidden_activation", ACTIVATIONS, "gelu")
    body = ModernBertBody(
        vocabulary=f.integer("vocab_size"),
        width=width,
        heads=heads,
        mlp=Mlp(
            width=f.integer("intermediate_size"),
            activation=activation,
            biased=frozenset({"gate", "up", "down"}) if f.flag("mlp_bias", False) else frozenset(),
        ),
        windows=tuple(near if each else 0 for each in slides),
        biased=from_hf.attention_biases(f),
        norm_biased=norm_biased,
        norm_epsilon=epsilon,
    )
    head = ScoreHead(
        pooling=f.one_of("classifier_pooling", {"cls": "first", "mean": "mean"}, "cls"),
        activation=f.one_of("classifier_activation", ACTIVATIONS, "gelu"),
        dense_biased=f.flag("classifier_bias", False),
        norm="weight and bias" if norm_biased else "weight",
        norm_epsilon=epsilon,
        sigmoid=_sigmoid(f),
    )
    return _encoder(f, "modernbert", f.integer("max_position_embeddings", 8192), body, head, ropes=ropes)


def _heads(f: Fields) -> int:
    width, heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    if width % heads:
        raise f.wrong("num_attention_heads", f"a divisor of hidden_size ({width})")
    return heads


def _sigmoid(f: Fields) -> bool:
    """Whether the score of a pair goes through a sigmoid: the files say so in one of two places, else it does."""
    section = f.section("sentence_transformers")
    old, new = f.table.get("sbert_ce_default_activation_function"), section and section.table.get("activation_fn")
    return not str(new or old).endswith("Identity")


def _encoder(f: Fields, architecture: str, positions: int, body: Any, score: ScoreHead, **more: Any) -> EncoderConfig:
    path = f.path.parent / "sentence_bert_config.json"
    limits = Fields(path, read_json(path) if path.exists() else {})
    classes = f.table.get("architectures")
    scores = isinstance(classes, list) and any(str(name).endswith("ForSequenceClassification") for name in classes)
    labels = f.table.get("id2label")
    if scores and (not isinstance(labels, dict) or len(labels) != 1):
        raise f.wrong("id2label", "a single label (a model that scores pairs of texts)")
    return EncoderConfig(
        architecture=architecture,
        vocabulary=body.vocabulary,
        context_tokens=min(positions, limits.integer("max_seq_length", positions)),
        width=body.width,
        body=body,
        head=score if scores else VectorHead(*_sentence_modules(f)),
        kind="score" if scores else "embed",
        **more,
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


def _both(maps: dict[str, str]) -> dict[str, str]:
    return {
        f"{ours}{end}": f"{theirs}.{what}"
        for ours, theirs in maps.items()
        for end, what in (("", "weight"), (".bias", "bias"))
    }


_CLASSIC_MAPS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_CLASSIC = {
    "embed": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "token_types": "embeddings.token_type_embeddings.weight",
    **_both({"norm": "embeddings.LayerNorm"}),
    **weights_and_biases({ours: "encoder.layer.{}." + theirs for ours, theirs in _CLASSIC_MAPS.items()}),
}
_UNUSED = ("embeddings.position_ids", "pooler.dense.*", "cls.*", "lm_head.*")
_BERT = FileNames(_CLASSIC | _both({"dense": "pooler.dense", "classifier": "classifier"}), _UNUSED, prefix="bert.")
_ROBERTA = FileNames(
    _CLASSIC | _both({"dense": "classifier.dense", "classifier": "classifier.out_proj"}),
    _UNUSED,
    prefix="roberta.",
    first_rows={"positions": _ROBERTA_FIRST_POSITION},
)
_MODERN_MAPS = {
    **dict.fromkeys("qkv", "attn.Wqkv"),
    "o": "attn.Wo",
    "attention_norm": "attn_norm",
    **dict.fromkeys(("gate", "up"), "mlp.Wi"),
    "down": "mlp.Wo",
    "mlp_norm": "mlp_norm",
}
_MODERNBERT = FileNames(
    {
        "embed": "embeddings.tok_embeddings.weight",
        **_both({"norm": "embeddings.norm", "final_norm": "final_norm"}),
        **weights_and_biases({ours: "layers.{}." + theirs for ours, theirs in _MODERN_MAPS.items()}),
        **_both({"dense": "head.dense", "dense_norm": "head.norm", "classifier": "classifier"}),
    },
    ("head.*", "decoder.*"),
    prefix="model.",
)

BERT = HfArchitecture(_bert, _BERT)
ROBERTA = HfArchitecture(_roberta, _ROBERTA)
MODERNBERT = HfArchitecture(_modernbert, _MODERNBERT)
