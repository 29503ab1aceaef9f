"""Steps of no sequence's, to get ready with: they see and keep nothing."""

from collections.abc import Sequence

import numpy as np
import torch

from tokenworks.kernels.backend import Limits, RowChange, SampleBatch, StateBatch, StepBatch
from tokenworks.kernels.cuda.elements.rows import take_drawn
from tokenworks.kernels.cuda.sampling.change import change_rows
from tokenworks.kernels.cuda.sampling.logits import draw, log_probabilities

PROMPTS = (4, 20, 40, 128, 300)
"""Tokens of a prompt: products have other tiles for each, and at last cuBLAS'."""
DECODES = (1, 2, 8, 32, 128)
"""Sequences that have one token in a step that has a prompt as well."""

LISTED = (0, 1, 2, 4, 8, 16, 20)
"""Likeliest tokens that requests want to be told: up to 20, each kernel for as many as the next power of two."""


def empty_step(lengths: Sequence[int]) -> StepBatch:
    """Sequences without blocks, of so many tokens each."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.concatenate([np.arange(count, dtype=np.int32) for count in lengths])
    tables = np.full((len(lengths), 1 + int(positions.max())), -1, np.int32)
    last, nowhere = starts[1:] - np.int32(1), np.full(len(lengths), -1, np.int32)
    tokens = np.zeros(len(positions), np.int32)
    return StepBatch(tokens, positions, starts, tables, last, states=StateBatch(nowhere, last, nowhere))


def kinds_of_steps(limits: Limits, decodes: Sequence[int]) -> list[list[int]]:
    """Lengths of the sequences of steps that together launch what any step launches; the largest first. `decodes`:
    sequences of the steps that only decode."""
    kinds = [[limits.step_tokens]] + [[tokens] for tokens in PROMPTS]
    kinds += [[1] * count for count in reversed(decodes)]
    kinds += [[1] * (count - 1) + [limits.step_tokens - count] for count in (2, *DECODES[1:])]
    kinds += [[1] * count + [tokens] for count in DECODES for tokens in PROMPTS]
    most = min(limits.sequences, limits.logit_rows)
    return [kind for kind in kinds if len(kind) <= most and sum(kind) <= limits.step_tokens and min(kind) > 0]


def warm_sampling(vocabulary: int, drawn: torch.Tensor) -> None:
    """Launches what sampling launches, on a row that nobody waits for. drawn: [1 or more] int32."""
    device = drawn.device
    rows, zero = torch.zeros((1, vocabulary), dtype=torch.float32, device=device), np.zeros(1, np.float32)
    draw(rows, SampleBatch(zero, np.zeros(1, np.int32), zero, zero, zero), drawn[:1])
    take_drawn(torch.zeros(1, dtype=torch.int32, device=device), drawn)
    every = np.full(-(-vocabulary // 32), -1, np.int32)
    change_rows(rows, [RowChange(0, np.zeros(1, np.int32), zero, zero, every)])
    for top in LISTED:
        log_probabilities(rows, np.zeros(1, np.int32), top)
