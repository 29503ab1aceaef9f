"""Every family's GGUF file is the same model as its safetensors checkpoint."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import CASES, write_checkpoint, write_gguf
from small_checkpoints import log_softmax, our_logits
from test_multi_token_layers import step as batch_of
from test_multi_token_layers import write as write_guessing

from tokenworks.kernels.backend import Limits
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.config import DecoderConfig
from tokenworks.models.parts.attention import Attention
from tokenworks.protocol.errors import ModelError

IDS = np.random.default_rng(3).integers(0, 101, 37).tolist()


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"gemma3"}))
def test_a_gguf_file_is_the_same_model_as_its_checkpoint(name: str, tmp_path: Path) -> None:
    write_checkpoint(name, tmp_path)
    write_gguf(tmp_path, name, tmp_path / "m.gguf")
    ours, theirs = (log_softmax(our_logits(path, IDS, CpuBackend())) for path in (tmp_path / "m.gguf", tmp_path))
    assert np.ptp(theirs, axis=-1).min() > 1
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)


def test_gemma3_but_for_what_gguf_cannot_say(tmp_path: Path) -> None:
    """query_pre_attn_scalar: there the head size rules."""
    write_checkpoint("gemma3", tmp_path)
    write_gguf(tmp_path, "gemma3", tmp_path / "m.gguf")
    a, b = (open_checkpoint(path).config for path in (tmp_path / "m.gguf", tmp_path))
    assert isinstance(a, DecoderConfig)
    assert isinstance(b, DecoderConfig)
    assert a.ropes == b.ropes
    for ours, checkpoints in zip(a.layers, b.layers, strict=True):
        assert isinstance(ours.mixer, Attention)
        assert isinstance(checkpoints.mixer, Attention)
        assert ours.mixer.scale == 10**-0.5
        epsilon = checkpoints.mixer.qk_norm_epsilon  # a float32 in GGUF
        assert ours.mixer.qk_norm_epsilon == pytest.approx(epsilon)
        mixer = replace(ours.mixer, scale=7**-0.5, qk_norm_epsilon=epsilon)
        assert replace(ours, mixer=mixer) == checkpoints


def test_a_layer_behind_the_last_one_guesses_as_the_checkpoints(tmp_path: Path) -> None:
    layers = write_guessing("glm4-moe", tmp_path)
    keys = {"nextn_predict_layers": 1}
    write_gguf(tmp_path, "glm4-moe", tmp_path / "m.gguf", layers=layers + 1, keys=keys)
    made = []
    for path in (tmp_path, tmp_path / "m.gguf"):
        checkpoint = open_checkpoint(path)
        model = CpuBackend().compile(
            checkpoint.program(guesses=True), checkpoint.tensors, Limits(40, 1, 40, 10, 4, "float32", 1)
        )
        logits = model.run(batch_of(IDS, 0)).copy()
        made.append((logits, model.run_sequel(batch_of(IDS[1:], 0, model.hidden[:-1].copy()))[0].copy()))
    for ours, theirs in zip(*made, strict=True):
        assert np.ptp(theirs, axis=-1).min() > 1
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("deepseek-v3", {"attention.key_length_mla": None}, "convert the model anew"),
        ("deepseek-v3", {"attention.key_length_mla": 6}, r"key_length_mla is 6; more than rope.dimension_count \(6\)"),
        ("nemotron-3", {"moe_latent_size": 8}, "narrower stream"),
        ("nemotron-h", {"attention.head_count_kv": [0, 0]}, "head_count_kv .* an integer, or 5 of them"),
        ("qwen3-5", {"ssm.group_count": 4}, r"group_count is 4; a divisor of ssm.time_step_rank \(6\)"),
        ("mamba2", {"ssm.conv_kernel": 1}, "conv_kernel is 1; 2 or more"),
        ("olmo3", {"attention.sliding_window_pattern": [True]}, "an integer, or 5 of them"),
        ("glm4-moe", {"nextn_predict_layers": 4}, "nextn_predict_layers is 4; less than block_count"),
        ("glm4-moe", {"expert_group_used_count": 5}, "expert_group_used_count is 5; an integer from 1 to 4"),
        ("glm4-moe", {"expert_gating_func": 4}, "expert_gating_func is 4; one of 1, 2, 3"),
    ],
)
def test_metadata_that_does_not_fit(name: str, keys: dict[str, object], message: str, tmp_path: Path) -> None:
    write_checkpoint(name, tmp_path)
    write_gguf(tmp_path, name, tmp_path / "m.gguf", keys=keys)
    with pytest.raises(ModelError, match=message) as error:
        open_checkpoint(tmp_path / "m.gguf")
    assert str(tmp_path) in error.value.message


def test_a_mistral_whose_queries_grow_is_refused(tmp_path: Path) -> None:
    write_checkpoint("llama", tmp_path)
    write_gguf(tmp_path, "llama", tmp_path / "m.gguf", arch=gguf.MODEL_ARCH.MISTRAL3)
    plain = our_logits(tmp_path / "m.gguf", IDS, CpuBackend())
    np.testing.assert_array_equal(plain, our_logits(tmp_path, IDS, CpuBackend()))
    keys = {"attention.temperature_scale": 0.1}
    write_gguf(tmp_path, "llama", tmp_path / "grows.gguf", arch=gguf.MODEL_ARCH.MISTRAL3, keys=keys)
    with pytest.raises(ModelError, match="queries that grow"):
        open_checkpoint(tmp_path / "grows.gguf")


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-next"])
def test_layers_that_are_not_run_are_left_out(name: str, tmp_path: Path) -> None:
    """Those that guess further tokens, where that is not supported from GGUF."""
    write_checkpoint(name, tmp_path)
    write_gguf(tmp_path, name, tmp_path / "few.gguf")
    extra = {"blk.3.nextn.eh_proj.weight": np.ones((40, 80), np.float32), "blk.3.attn_norm.weight": np.ones(40, "<f4")}
    write_gguf(tmp_path, name, tmp_path / "more.gguf", layers=4, extra=extra, keys={"nextn_predict_layers": 1})
    few, more = (our_logits(tmp_path / f"{each}.gguf", IDS, ReferenceBackend()) for each in ("few", "more"))
    np.testing.assert_array_equal(few, more)
