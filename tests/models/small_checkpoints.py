"""Small random checkpoints written by transformers, and ways to run a checkpoint that the tests share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from small_dense import DENSE
from small_experts import EXPERTS
from small_gemma import GEMMA
from small_recurrent import RECURRENT
from transformers import AutoModelForCausalLM, PreTrainedModel

from tokenworks.kernels.backend import Backend, Int32, Limits, StateBatch, StepBatch
from tokenworks.kernels.tensor import Describing, Tensor
from tokenworks.models.checkpoint import open_checkpoint

torch.set_num_threads(1)  # models this small have threads wait for each other

Float32 = npt.NDArray[np.float32]
BLOCK_TOKENS = 4
DECODERS: dict[str, Any] = DENSE | GEMMA | EXPERTS | RECURRENT


def write_decoder(name: str, folder: Path, dtype: torch.dtype = torch.float32, config: Any = None, **how: Any) -> None:
    """A checkpoint of DECODERS[name], or of `config`, with random weights, biases and norms, large enough that each one
    matters."""
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(config or DECODERS[name])
    randomise(model)
    model.to(dtype).save_pretrained(folder, **how)


@torch.no_grad()
def randomise(model: PreTrainedModel) -> None:
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.add_(0.3 * torch.randn_like(weight))
        else:
            weight.normal_(std=0.5 if "embed" in name else weight.shape[1] ** -0.5)
    for name, buffer in model.named_buffers():
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            buffer.add_(0.1 * torch.randn_like(buffer))
        if name.endswith("layer_scalar"):
            buffer.mul_(0.5 + torch.rand_like(buffer))


def reference_model(folder: Path) -> PreTrainedModel:
    """The published arithmetic: transformers, float32, its plain attention and plain loop over experts."""
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **plain).eval()


@torch.no_grad()
def reference_logits(model: PreTrainedModel, ids: Sequence[int], last: int = 0) -> Float32:
    """[tokens, vocabulary], or of the `last` tokens only."""
    # transformers' Gemma 3 keeps its attention soft cap to itself unless its attention is handed it.
    cap = getattr(model.config, "attn_logit_softcapping", None) if model.config.model_type != "gemma2" else None
    logits = model(torch.tensor([list(ids)]), logits_to_keep=last, **({"softcap": cap} if cap else {})).logits
    return np.asarray(logits[0].float().numpy(), np.float32)


def our_logits(
    path: Path,
    ids: Sequence[int],
    backend: Backend,
    chunk_tokens: int | None = None,
    last: int | None = None,
    context_tokens: int | None = None,
) -> Float32:
    """[tokens, vocabulary], or of the `last` tokens only: the whole prompt in one step, or in steps of `chunk_tokens`.

    The KV cache is float32.
    """
    checkpoint = open_checkpoint(path, context_tokens)
    assert_described(checkpoint.tensors)
    count, step = len(ids), chunk_tokens or len(ids)
    blocks = -(-count // BLOCK_TOKENS)
    limits = Limits(step, 1, step, blocks, BLOCK_TOKENS, "float32", 2, state_slots=2)
    model = backend.compile(checkpoint.program(), checkpoint.tensors, limits)
    # Blocks in falling order, so that a table that is not followed shows.
    table = np.arange(blocks, dtype=np.int32)[::-1].copy()[None]
    rows = []
    for start in range(0, count, step):
        tokens = np.asarray(ids[start : start + step], np.int32)
        wanted = np.arange(max(start, count - (last or count)), start + len(tokens), dtype=np.int32) - start
        rows.append(model.run(_batch(tokens, start, table, wanted)).copy())
    return np.concatenate(rows)


def assert_described(weights: Mapping[str, Tensor]) -> None:
    """What is said of weights before they are made is what they are then."""
    assert isinstance(weights, Describing)
    for name, tensor in weights.items():
        assert weights.describe(name) == tensor.description, name


def greedy(path: Path, prompt: Sequence[int], count: int, backend: Backend) -> list[int]:
    """`count` tokens after the prompt, likeliest first; KV cache in float32."""
    checkpoint = open_checkpoint(path)
    blocks = -(-(len(prompt) + count) // BLOCK_TOKENS)
    limits = Limits(len(prompt), 1, len(prompt), blocks, BLOCK_TOKENS, "float32", 2, state_slots=2)
    model = backend.compile(checkpoint.program(), checkpoint.tensors, limits)
    table = np.arange(blocks, dtype=np.int32)[None]
    ids, done = list(prompt), 0
    while len(ids) < len(prompt) + count:
        tokens = np.asarray(ids[done:], np.int32)
        logits = model.run(_batch(tokens, done, table, np.array([len(tokens) - 1], np.int32)))
        done = len(ids)
        ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :]


def _batch(tokens: Int32, start: int, table: Int32, logit_rows: Int32) -> StepBatch:
    positions = np.arange(start, start + len(tokens), dtype=np.int32)
    # Recurrent states, for those that have any: from one slot into the other.
    begin, row = np.array([start % 2 if start else -1], np.int32), np.array([len(tokens) - 1], np.int32)
    states = StateBatch(begin, row, np.array([(start + len(tokens)) % 2], np.int32))
    return StepBatch(tokens, positions, np.array([0, len(tokens)], np.int32), table, logit_rows, states=states)


def log_softmax(logits: Float32) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))
