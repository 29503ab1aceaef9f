"""Logits of every architecture against the reference on the device, and by graph with the bits of plain launches.

What of a model is PyTorch's own (experts' sorting, routes, soft caps, several streams) has to hold under capture too.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from chunked_steps import BOUND, STEPS, assert_close, batch, by_graph_and_eagerly, compiled, errors_of_steps
from small_checkpoints import DECODERS, write_decoder
from small_encoders import ENCODERS, write_encoder
from small_experts import EXPERTS
from speech_checkpoints import noise, write_whisper
from test_encoders import TEXTS, encode
from test_whisper import HEARD, _logits
from vision_checkpoints import FAMILIES, drawing, our_vision_logits, prompt_of, write_vision_model

from tokenworks.kernels.backend import Backend
from tokenworks.kernels.reference import ReferenceBackend


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str, backend: Backend, tmp_path: Path) -> None:
    write_decoder(name, tmp_path, torch.bfloat16)
    ours = compiled(tmp_path, backend)
    found = errors_of_steps(ours, compiled(tmp_path, ReferenceBackend()))
    # Models as deep as these here may pass the bound by half; where two experts are all but equally good, the rounding
    # may choose the other one for a row.
    assert np.quantile(found, 0.75) < 1.5 * BOUND, found
    assert name in EXPERTS or found.max() < 2 * BOUND, found
    if ours._main.graphs is None:
        return
    for pieces in ([(0, 23, 24)], [(0, 23, 24), (2, 10, 11)], [(0, 23, 24), (1, 25, 26), (2, 10, 11), (3, 0, 1)]):
        np.testing.assert_array_equal(*by_graph_and_eagerly(ours, batch(*pieces)))


@pytest.mark.parametrize("name", ["llama", "deepseek-v3"])
def test_alone_is_as_among_others(name: str, backend: Backend, tmp_path: Path) -> None:
    write_decoder(name, tmp_path, torch.bfloat16)
    model = compiled(tmp_path, backend)
    for step in STEPS[:2]:
        model.run(step)
    together = np.array(model.run(STEPS[2]))
    for row, piece in enumerate([(2, 9, 10), (0, 22, 23)]):
        assert_close(np.array(model.run(batch(piece))), together[2 * row : 2 * row + 1])


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str, backend: Backend, tmp_path: Path) -> None:
    write_encoder(name, tmp_path)
    ours, theirs = (encode(tmp_path, each, TEXTS) for each in (backend, ReferenceBackend()))
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_see(family: str, backend: Backend, tmp_path: Path) -> None:
    write_vision_model(family, tmp_path)
    ids, pictures = prompt_of(tmp_path, [drawing(90, 31, 1), drawing(20, 23, 2)])
    assert_close(*(our_vision_logits(tmp_path, ids, pictures, each) for each in (backend, ReferenceBackend())))


def test_models_that_hear(backend: Backend, tmp_path: Path) -> None:
    write_whisper(tmp_path)
    chunks = (5, 36, HEARD + 1, HEARD + 8)
    assert_close(*(_logits(tmp_path, each, noise(2), chunks) for each in (backend, ReferenceBackend())))
