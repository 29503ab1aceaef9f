"""Whisper against transformers: spectrograms, the encoder's rows, logits; from both kinds of folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from small_checkpoints import assert_described
from speech_checkpoints import (
    BINS,
    FRAMES,
    HEARD,
    VOCABULARY,
    Float32,
    ctranslate2_file,
    noise,
    write_ctranslate2,
    write_whisper,
)
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from tokenworks.kernels.backend import Backend, Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.speech.config import SpeechConfig
from tokenworks.models.speech.decoder import HEAR, WRITE
from tokenworks.models.speech.encoder import frames_of
from tokenworks.models.speech.mel import log_mel
from tokenworks.protocol.errors import ModelError

BACKENDS = [ReferenceBackend(), CpuBackend()]
IDS = np.random.default_rng(3).integers(0, VOCABULARY, 23)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    write_whisper(folder)
    return folder


@pytest.mark.parametrize("bins", [80, 128])
def test_spectrograms_are_those_of_transformers(bins: int) -> None:
    rng = np.random.default_rng(1)
    samples = (0.2 * rng.standard_normal(30 * 16_000)).astype(np.float32)
    samples += 0.5 * np.sin(np.arange(len(samples), dtype=np.float32) * 0.3)
    want = WhisperFeatureExtractor(feature_size=bins)(samples, sampling_rate=16_000, return_tensors="np")
    ours = log_mel(samples, bins)
    assert ours.shape == (3000, bins)
    # At the end it sees the recording reversed, where ours sees silence.
    np.testing.assert_allclose(ours[:-2], want["input_features"][0].T[:-2], atol=2e-4)


def test_a_short_recordings_spectrogram() -> None:
    assert log_mel(np.zeros(0, np.float32), 80).shape == (0, 80)
    assert log_mel(np.full(170, 0.1, np.float32), 80).shape == (1, 80)


@torch.no_grad()
@pytest.mark.parametrize("frames", [FRAMES, 31])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_the_encoders_rows_are_those_of_transformers(folder: Path, backend: Backend, frames: int) -> None:
    ours = _heard(folder, backend, noise(1, frames))
    np.testing.assert_allclose(ours, _reference_rows(folder, noise(1, frames)), atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [(), (5, 36, HEARD + 1, HEARD + 8)])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_logits_are_those_of_transformers(folder: Path, backend: Backend, chunks: Sequence[int]) -> None:
    ours = _logits(folder, backend, noise(2), chunks)
    model = WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    rows = (torch.tensor(_reference_rows(folder, noise(2)))[None],)
    want = model(encoder_outputs=rows, decoder_input_ids=torch.tensor(IDS[None])).logits[0]
    got = torch.log_softmax(torch.tensor(ours), dim=1)
    np.testing.assert_allclose(got, torch.log_softmax(want, dim=1), atol=1e-3)


def test_both_kinds_of_folder_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    write_ctranslate2(folder, tmp_path)
    ours, theirs = (_logits(each, CpuBackend(), noise(2), ()) for each in (tmp_path, folder))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_weights_of_bytes_are_near(backend: Backend, tmp_path: Path) -> None:
    whole, in_bytes = tmp_path / "whole", tmp_path / "bytes"
    in_bytes.mkdir()
    write_whisper(whole, width=96, inner=128)  # whole blocks of 32, as the kernels take them
    write_ctranslate2(whole, in_bytes, in_bytes=True)
    ours, theirs = (_logits(each, backend, noise(2), ()) for each in (in_bytes, whole))
    error = np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean())
    assert 0 < error < 0.06


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cannot be read"),
        (b"\5\0\0\0", "version 6: it begins with 5"),
        (ctranslate2_file("TransformerSpec", {}), "TransformerSpec is not supported"),
        (ctranslate2_file("WhisperSpec", {}), "'decoder/embeddings/weight' is missing"),
        (ctranslate2_file("WhisperSpec", {"x": np.zeros((2, 3), np.float32)})[:-60], "is truncated"),
        (ctranslate2_file("WhisperSpec", {"x": np.zeros((2, 3), np.int8)}), "2 numbers 'x_scale' were expected"),
    ],
)
def test_a_bad_file_is_refused_with_the_cause(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(ModelError, match=complaint):
        open_checkpoint(tmp_path)


def test_a_program_that_would_read_what_is_not_there_is_stopped(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert_described(checkpoint.tensors)
    model = CpuBackend().compile(checkpoint.program(), checkpoint.tensors, Limits(8, 1, 8, 2, 4, "float32", 1))
    batch = _batch(IDS[:3], 0, np.zeros((1, 2), np.int32))
    with pytest.raises(ValueError, match="before what it reads"):
        model.run(batch, WRITE)


def _config(folder: Path) -> SpeechConfig:
    config = open_checkpoint(folder).config
    assert isinstance(config, SpeechConfig)
    assert (config.heard, config.bins) == (HEARD, BINS)
    return config


def _reference_rows(folder: Path, mels: Float32) -> Float32:
    model = WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    padded = np.zeros((FRAMES, BINS), np.float32)
    padded[: len(mels)] = mels
    return model.model.encoder(torch.tensor(padded.T[None])).last_hidden_state[0].detach().numpy()


def _heard(folder: Path, backend: Backend, mels: Float32) -> Float32:
    checkpoint = open_checkpoint(folder)
    limits = Limits(HEARD, 1, 1, 1, 1, "float32", 2)
    encoder = backend.compile(checkpoint.speech_program(), checkpoint.tensors, limits)
    places = np.arange(HEARD, dtype=np.int32)
    starts, table, none = np.array([0, HEARD], np.int32), np.empty((1, 0), np.int32), np.empty(0, np.int32)
    batch = StepBatch(0 * places, places, starts, table, none, inputs=frames_of(mels, _config(folder)))
    for part in range(encoder.parts):
        rows = encoder.run(batch, part)
    return rows.copy()


def _batch(ids: Float32, start: int, table: object, **more: object) -> StepBatch:
    places = np.arange(start, start + len(ids), dtype=np.int32)
    rows = np.arange(len(ids), dtype=np.int32)
    return StepBatch(ids.astype(np.int32), places, np.array([0, len(ids)], np.int32), table, rows, **more)  # type: ignore[arg-type]


def _logits(folder: Path, backend: Backend, mels: Float32, chunks: Sequence[int]) -> Float32:
    """[tokens, vocabulary] of IDS, in steps that also end at `chunks`."""
    checkpoint, count, size = open_checkpoint(folder), HEARD + len(IDS), 4
    blocks = -(-count // size)
    model = backend.compile(
        checkpoint.program(), checkpoint.tensors, Limits(count, 1, count, blocks, size, "float32", 2)
    )
    table = np.arange(blocks, dtype=np.int32)[::-1].copy()[None]
    heard, rows = _heard(folder, backend, mels), []
    for start, end in zip(sorted({0, HEARD, *chunks}), sorted({HEARD, count, *chunks}), strict=True):
        if end <= HEARD:
            batch = _batch(np.zeros(end - start), start, table, inputs=np.ascontiguousarray(heard[start:end]))
            model.run(batch, HEAR)
        else:
            axes = np.arange(start - HEARD, end - HEARD, dtype=np.int32)[None]
            rows.append(model.run(_batch(IDS[start - HEARD : end - HEARD], start, table, axes=axes), WRITE).copy())
    return np.concatenate(rows)
