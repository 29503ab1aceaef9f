"""Small random text encoders, written by transformers."""

import copy
from pathlib import Path
from typing import Any

import torch
from small_checkpoints import randomise
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    ModernBertConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

_NO_SPECIAL_ENCODER = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SMALL_ENCODER = {
    "vocab_size": 97,
    "hidden_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 64,
}
ENCODERS: dict[str, Any] = {
    "bert": BertConfig(**_SMALL_ENCODER),
    "roberta": RobertaConfig(**_SMALL_ENCODER, type_vocab_size=1, layer_norm_eps=1e-5),
    "xlm-roberta": XLMRobertaConfig(**_SMALL_ENCODER, type_vocab_size=1, layer_norm_eps=1e-5),
    "modernbert": ModernBertConfig(**_SMALL_ENCODER, local_attention=8, **_NO_SPECIAL_ENCODER),
    "modernbert-biased": ModernBertConfig(
        **_SMALL_ENCODER, local_attention=6, global_attn_every_n_layers=2, attention_bias=True, mlp_bias=True,
        norm_bias=True, classifier_bias=True, classifier_pooling="mean", **_NO_SPECIAL_ENCODER,
    ),
}  # fmt: skip


def write_encoder(name: str, folder: Path, *, scores: bool = False) -> PreTrainedModel:
    """A checkpoint of ENCODERS[name], with random weights; `scores`: with a head that scores a pair of texts."""
    config = copy.deepcopy(ENCODERS[name])
    torch.manual_seed(sum(map(ord, name)))
    if scores:
        config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    else:
        model = AutoModel.from_config(config, attn_implementation="eager")
    randomise(model)
    model.save_pretrained(folder)
    return model.eval()
