"""Every encoder against transformers: small random checkpoints, vectors of texts and scores of pairs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_checkpoints import Float32, assert_described
from small_encoders import ENCODERS, write_encoder

from tokenworks.kernels.backend import Backend, Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.protocol.errors import ModelError

BACKENDS = [ReferenceBackend(), CpuBackend()]
IDS = np.random.default_rng(3).integers(3, 97, 40)
TEXTS = [IDS[:13], IDS[13:14], IDS[14:]]
"""The first and the last are longer than ModernBERT's windows."""


def encode(folder: Path, backend: Backend, texts: list[Any], second_from: list[int] | None = None) -> Float32:
    checkpoint = open_checkpoint(folder)
    assert_described(checkpoint.tensors)
    lengths = [len(text) for text in texts]
    places = [np.arange(n, dtype=np.int32) for n in lengths]
    axes = None
    if second_from is not None:
        axes = np.concatenate([p >= s for p, s in zip(places, second_from, strict=True)]).astype(np.int32)[None]
    limits = Limits(sum(lengths), len(texts), len(texts), 1, 4, "float32", 2)
    batch = StepBatch(
        np.concatenate(texts).astype(np.int32),
        np.concatenate(places),
        np.cumsum([0, *lengths]).astype(np.int32),
        np.full((len(texts), 1), -1, np.int32),
        np.empty(0, np.int32),
        axes=axes,
    )
    return backend.compile(checkpoint.program(), checkpoint.tensors, limits).run(batch).copy()


@torch.no_grad()
def _hidden(model: torch.nn.Module, text: Any) -> Float32:
    return model(torch.tensor(text[None])).last_hidden_state[0].numpy()


def _write_modules(folder: Path, mode: str, *, normalise: bool) -> None:
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
    modules += [{"type": "x.Normalize", "path": "2_Normalize"}] if normalise else []
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": mode == "mean", "pooling_mode_cls_token": mode == "cls"}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(("mode", "normalise"), [("mean", True), ("cls", False)])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_are_those_of_transformers(
    name: str, backend: Backend, mode: str, normalise: bool, tmp_path: Path
) -> None:
    model = write_encoder(name, tmp_path)
    _write_modules(tmp_path, mode, normalise=normalise)
    expected = []
    for text in TEXTS:
        hidden = _hidden(model, text)
        vector = hidden.mean(axis=0) if mode == "mean" else hidden[0]
        expected.append(vector / np.linalg.norm(vector) if normalise else vector)
    np.testing.assert_allclose(encode(tmp_path, backend, TEXTS), np.stack(expected), atol=3e-5)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_scores_of_pairs_are_those_of_transformers(name: str, backend: Backend, tmp_path: Path) -> None:
    model = write_encoder(name, tmp_path, scores=True)
    second_from = [5, 1, 9]
    expected = []
    for text, second in zip(TEXTS, second_from, strict=True):
        types = {"token_type_ids": (torch.arange(len(text)) >= second)[None].long()} if name == "bert" else {}
        expected.append(model(torch.tensor(text[None]), **types).logits[0].numpy())
    scores = encode(tmp_path, backend, TEXTS, second_from)
    np.testing.assert_allclose(scores, np.stack(expected), atol=3e-5)
    assert np.ptp(expected) > 0.1


def test_a_body_out_of_a_larger_model_is_found(tmp_path: Path) -> None:
    """Checkpoints of masked language models keep the encoder behind a prefix."""
    from transformers import BertForMaskedLM

    torch.manual_seed(1)
    model = BertForMaskedLM(ENCODERS["bert"]).eval()
    model.save_pretrained(tmp_path)
    hidden = _hidden(model.bert, TEXTS[0])
    np.testing.assert_allclose(encode(tmp_path, CpuBackend(), TEXTS[:1])[0], hidden.mean(axis=0), atol=3e-5)


def test_a_classifier_of_many_labels_is_refused(tmp_path: Path) -> None:
    write_encoder("bert", tmp_path, scores=True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"0": "good", "1": "bad"}}))
    with pytest.raises(ModelError, match=r"id2label is .* a single label"):
        open_checkpoint(tmp_path)
