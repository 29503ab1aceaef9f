"""The real models against transformers: the weights dequantised by the `gguf` package, named by transformers' own map.

The reference backend computes with the same numbers as transformers, so it must agree closely. The CPU backend rounds
activations to 8 bits for the quantised formats; how far that may move the distribution is stated here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from small_checkpoints import Float32, greedy, log_softmax, our_logits, reference_logits, reference_model
from transformers import AutoModel, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from tokenworks.kernels.backend import Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.text.tokenizer import load_tokenizer

TEXT = """The lighthouse keeper counted the steps twice: 217 going up, 216 coming down.
"One is missing," he told the cat.
def count(steps: int) -> int:
    return steps - 1  # she knows
Der Leuchtturm steht seit 1874 auf der Klippe; seitdem hat ihn niemand gefragt, was er davon hält."""

GEMMA3_ROWS = 32
"""Logits compared, at the end of a prompt that is longer than the window."""
MAX_KL_NATS, MIN_AGREEMENT = 0.01, 0.9
"""Of the CPU backend with 8-bit activations: mean divergence from the exact distribution, and how often its likeliest
token is the same. Measured over 500 tokens: SmolLM2 Q4_1 0.0038 and 0.95, Gemma 3 Q4_K_M 0.0013 and 0.99.
With F16 weights, which keep float activations, SmolLM2 diverges by 5e-11 and always agrees."""


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """GGUF name -> float32, by the gguf package alone."""
    return {
        tensor.name: torch.from_numpy(
            np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(
                tensor.shape.tolist()[::-1]
            )
        )
        for tensor in gguf.GGUFReader(path).tensors
    }


def _load(
    kind: type[PreTrainedModel], config: Any, weights: dict[str, torch.Tensor], arch: gguf.MODEL_ARCH
) -> PreTrainedModel:
    """A transformers model, filled through the gguf package's map of names."""
    with no_init_weights():  # every weight is replaced
        model = kind(config)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    state = {}
    for name in model.state_dict():
        if name == "lm_head.weight":
            continue
        state[name] = weights.pop(names.get_name(name, try_suffixes=(".weight", ".bias")))
    assert not weights
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model.eval()


def _smollm2(path: Path) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5}, attn_implementation="eager",
    )  # fmt: skip
    weights = _weights(path)
    for name, weight in weights.items():  # rotary pairs lie side by side in GGUF's q and k
        if "attn_q" in name or "attn_k" in name:
            pairs = weight.view(-1, 32, 2, 576)
            weights[name] = torch.cat((pairs[:, :, 0], pairs[:, :, 1]), dim=1).reshape(-1, 576)
    return _load(LlamaForCausalLM, config, weights, gguf.MODEL_ARCH.LLAMA)


def _gemma3(path: Path) -> PreTrainedModel:
    config = Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, max_position_embeddings=32768, rms_norm_eps=1e-6, sliding_window=512,
        query_pre_attn_scalar=256, attn_implementation="eager",
    )  # fmt: skip
    weights = _weights(path)
    weights = {name: weight - 1 if "norm" in name else weight for name, weight in weights.items()}
    return _load(Gemma3ForCausalLM, config, weights, gguf.MODEL_ARCH.GEMMA3)


def _long_prompt(path: Path, tokens: int) -> list[int]:
    ids = load_tokenizer(path).encode(TEXT)
    return (ids * (tokens // len(ids) + 1))[:tokens]


def _divergence(ours: Float32, theirs: Float32) -> tuple[float, float]:
    """Mean KL(theirs || ours) in nats, and how often the likeliest token is the same."""
    p, q = log_softmax(theirs), log_softmax(ours)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean()), float((p.argmax(-1) == q.argmax(-1)).mean())


@pytest.fixture(scope="module")
def smollm2_logits(smollm2: Path) -> tuple[list[int], Float32]:
    ids = _long_prompt(smollm2, 200)
    return ids, reference_logits(_smollm2(smollm2), ids)


@pytest.fixture(scope="module")
def gemma3_logits(gemma3: Path) -> tuple[list[int], Float32]:
    # Past the window of 512, so that sliding and global layers see different tokens.
    ids = _long_prompt(gemma3, 530)
    return ids, reference_logits(_gemma3(gemma3), ids, last=GEMMA3_ROWS)


def test_smollm2_reference_backend(smollm2: Path, smollm2_logits: tuple[list[int], Float32]) -> None:
    ids, theirs = smollm2_logits
    ours = our_logits(smollm2, ids[:40], ReferenceBackend())
    np.testing.assert_allclose(log_softmax(ours), log_softmax(theirs[:40]), atol=1e-3, rtol=0)


def test_smollm2_cpu_backend(smollm2: Path, smollm2_logits: tuple[list[int], Float32]) -> None:
    ids, theirs = smollm2_logits
    kl, agreement = _divergence(our_logits(smollm2, ids, CpuBackend(), chunk_tokens=48), theirs)
    assert kl < MAX_KL_NATS
    assert agreement > MIN_AGREEMENT


def test_gemma3_reference_backend(gemma3: Path, gemma3_logits: tuple[list[int], Float32]) -> None:
    ids, theirs = gemma3_logits
    ours = our_logits(gemma3, ids, ReferenceBackend(), last=GEMMA3_ROWS)
    np.testing.assert_allclose(log_softmax(ours), log_softmax(theirs), atol=1e-3, rtol=0)


def test_gemma3_cpu_backend(gemma3: Path, gemma3_logits: tuple[list[int], Float32]) -> None:
    ids, theirs = gemma3_logits
    kl, agreement = _divergence(our_logits(gemma3, ids, CpuBackend(), chunk_tokens=100, last=GEMMA3_ROWS), theirs)
    assert kl < MAX_KL_NATS
    assert agreement > MIN_AGREEMENT


@pytest.mark.parametrize(("load", "model"), [(_smollm2, "smollm2"), (_gemma3, "gemma3")], ids=["smollm2", "gemma3"])
def test_greedy_continuation_with_float_weights(
    load: Callable[[Path], PreTrainedModel], model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same weights without their quantisation: then the CPU backend's activations stay float32, too."""
    path: Path = request.getfixturevalue(model)
    load(path).half().save_pretrained(tmp_path)
    prompt = load_tokenizer(path).encode(TEXT)
    made = greedy(tmp_path, prompt, 200, CpuBackend())
    # One pass over all of it shows what the reference would have chosen at every place.
    theirs = reference_logits(reference_model(tmp_path), prompt + made, last=len(made) + 1)
    assert theirs[:-1].argmax(axis=-1).tolist() == made
    assert len(set(made)) > 20


def test_minilm_vectors(minilm: Path) -> None:
    tokenizer = load_tokenizer(minilm)
    texts = ["A cat sat on the mat.", "x", TEXT, "Quarterly revenue grew by 12% in the third quarter of 2023."]
    inputs = [np.array(tokenizer.encode(text), np.int32) for text in texts]
    model, expected = AutoModel.from_pretrained(minilm).eval(), []
    for ids in inputs:
        with torch.no_grad():
            hidden = model(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0].mean(dim=0)
        expected.append((hidden / hidden.norm()).numpy())
    checkpoint, count, sequences = open_checkpoint(minilm), sum(map(len, inputs)), len(texts)
    assert checkpoint.config.context_tokens == 256
    limits = Limits(count, sequences, sequences, 1, 16, "float32", 2)
    for backend in (ReferenceBackend(), CpuBackend()):
        run = backend.compile(checkpoint.program(), checkpoint.tensors, limits).run
        vectors = run(
            StepBatch(
                np.concatenate(inputs),
                np.concatenate([np.arange(len(ids), dtype=np.int32) for ids in inputs]),
                np.cumsum([0, *map(len, inputs)]).astype(np.int32),
                np.full((sequences, 1), -1, np.int32),
                np.empty(0, np.int32),
            )
        )
        cosines = (vectors * np.stack(expected)).sum(axis=1)
        assert cosines.min() > 0.99999
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
