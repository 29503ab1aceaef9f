"""Drawing tokens and log-probabilities on the GPU: the definition's choices (kernels/reference/sampling.py)."""

import numpy as np
import pytest
import torch
from kernel_support import distribution, may_choose

from tokenworks.kernels.backend import EMPTY_ROW, UNFIT_ROW, RowChange
from tokenworks.kernels.changes import apply_changes
from tokenworks.kernels.cuda.elements.rows import take_drawn
from tokenworks.kernels.cuda.sampling.change import change_rows
from tokenworks.kernels.cuda.sampling.logprobs import logprobs
from tokenworks.kernels.cuda.sampling.sample import sample
from tokenworks.kernels.reference.sampling import log_probabilities

Options = tuple[float, int, float, float]
"""Temperature, top_k, top_p, min_p."""


def draw(logits: np.ndarray, options: list[Options], uniform: list[float]) -> list[int]:
    temperature, top_k, top_p, min_p = zip(*options, strict=True)
    out = torch.full((len(logits),), -1, dtype=torch.int32)
    floats = [torch.tensor(each, dtype=torch.float32) for each in (temperature, top_p, min_p, uniform)]
    rows = torch.from_numpy(np.ascontiguousarray(logits, np.float32))
    sample(rows, floats[0], torch.tensor(top_k, dtype=torch.int32), *floats[1:], out)
    return out.tolist()


KEPT: list[Options] = [
    (1.0, 0, 1.0, 0.0),
    (0.7, 40, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (100.0, 5000, 0.999, 0.05),
    (1.0, 2, 0.0, 1.0),
    (0.01, 0, 0.5, 1e-7),
]


@pytest.mark.parametrize(
    ("kind", "size", "first"),
    [("plain", 17, 1), ("peaked", 8193, 0), ("tied", 4099, 1), ("masked", 300, 0), ("wide", 9, 1)],
)
def test_draws_are_the_definitions(kind: str, size: int, first: int) -> None:
    """Each row has options of its own."""
    kept = KEPT[first::2]
    logits = np.stack([distribution(kind, size, np.random.default_rng(seed)) for seed in range(len(kept))])
    uniform = [0.3, 0.62, 0.99999994] if first else [0.0, 0.99, 0.5]
    for row, options, u, token in zip(logits, kept, uniform, draw(logits, kept, uniform), strict=True):
        assert may_choose(row, token, options, u), (options, u, token)


def test_equal_logits_count_by_token_id() -> None:
    """Twelve ties: of the first five that top_k keeps, the third; of those that top_p keeps, the last."""
    logits = np.full((3, 6000), -5.0, np.float32)
    ties = np.arange(12) * 450 + 7
    logits[:, ties] = 2.0
    options = [(1.0, 5, 1.0, 0.0), (1.0, 12, 0.49, 0.0), (0.0, 0, 1.0, 0.0)]
    assert draw(logits, options, [0.5, 0.9999, 0.9]) == [ties[2], ties[5], ties[0]]


@pytest.mark.parametrize(
    ("kept", "uniform"), [((1.0, 0, 1.0, 0.0), 0.9995), ((1.0, 0, 1.0, 0.0), 0.2), ((8.0, 0, 0.9, 0.0), 0.7)]
)
def test_among_the_likeliest_or_below_them(kept: Options, uniform: float) -> None:
    """A few likely tokens with a long tail below, that weighs something; and more near the first than are gathered."""
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal((1, 9000)) - 12.0).astype(np.float32)
    logits[0, rng.choice(9000, 40, replace=False)] = rng.standard_normal(40).astype(np.float32)
    (token,) = draw(logits, [kept], [uniform])
    assert may_choose(logits[0], token, kept, uniform)
    assert (logits[0, token] < -6) == (uniform != 0.2)


def test_the_likeliest_token_whatever_its_sign_or_place() -> None:
    logits = np.full((4, 9000), -np.inf, np.float32)
    logits[0, 8999] = -3.0
    logits[1, [5000, 4999]] = [0.0, -0.0]
    logits[2, :] = -2.0
    logits[3, [1, 8192]] = [1e30, 3e38]
    assert draw(logits, [(0.0, 0, 1.0, 0.0)] * 4, [0.5] * 4) == [8999, 4999, 0, 8192]


@pytest.mark.parametrize(("size", "top"), [(9000, 5), (20, 20), (4097, 0)])
def test_log_probabilities(size: int, top: int) -> None:
    logits = np.stack(
        [distribution(kind, size, np.random.default_rng(3)) for kind in ("plain", "tied", "masked", "peaked")]
    )
    chosen = np.array([0, size - 1, 7, int(logits[3].argmax())], np.int32)
    values, ranks = torch.empty(4), torch.empty(4, dtype=torch.int32)
    top_ids, top_values = torch.empty(4, top, dtype=torch.int32), torch.empty(4, top)
    logprobs(torch.from_numpy(logits), torch.from_numpy(chosen), values, ranks, top_ids, top_values)
    wanted = log_probabilities(logits, chosen, top)
    np.testing.assert_array_equal(ranks.numpy(), wanted[1])
    np.testing.assert_array_equal(top_ids.numpy(), wanted[2])
    np.testing.assert_allclose(values.numpy(), wanted[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(top_values.numpy(), wanted[3], rtol=1e-5, atol=1e-5)


def test_rows_that_no_token_can_be_drawn_from() -> None:
    logits = np.zeros((5, 5000), np.float32)
    logits[0, 4500] = np.nan
    logits[1, 7] = -np.nan
    logits[2, 4999] = np.inf
    logits[3] = -np.inf
    logits[4, 0] = -np.inf
    for heat in (0.0, 0.7):
        *bad, good = draw(logits, [(heat, 0, 0.9, 0.0)] * 5, [0.5] * 5)
        assert bad == [UNFIT_ROW, UNFIT_ROW, UNFIT_ROW, EMPTY_ROW]
        assert 0 < good < 5000


def test_log_probabilities_of_no_token_read_no_other_memory() -> None:
    memory = torch.full((1 + 2 * 300,), torch.nan)
    logits = memory[1:].view(2, 300)
    logits.copy_(torch.from_numpy(np.random.default_rng(2).standard_normal((2, 300))))
    values, ranks = torch.full((2,), torch.nan), torch.empty(2, dtype=torch.int32)
    chosen, none = torch.tensor([-1, 7], dtype=torch.int32), torch.empty(2, 0)
    logprobs(logits, chosen, values, ranks, none.int(), none)
    assert values.isfinite().all(), "what lies before the first row"
    torch.testing.assert_close(values[1], logits[1].log_softmax(0)[7])


def test_changes_are_numpys() -> None:
    """A row without any, rows with some tokens changed, masks shorter than the vocabulary, and both."""
    rng = np.random.default_rng(2)
    vocabulary = 5003

    def some(row: int, count: int, words: int | None) -> RowChange:
        ids = rng.choice(vocabulary, count, replace=False).astype(np.int32)
        offsets = rng.standard_normal(count).astype(np.float32)
        offsets[: count // 5] = -np.inf
        penalties = rng.choice([1.0, 1.3, 0.5], count).astype(np.float32)
        mask = None if words is None else rng.integers(-(2**31), 2**31, words).astype(np.int32)
        return RowChange(row, ids, penalties, offsets, mask)

    changes = [some(3, 700, None), some(0, 0, 157), some(4, 5, 40), some(1, 1, None)]
    logits = rng.standard_normal((6, vocabulary)).astype(np.float32)
    ours, theirs = torch.from_numpy(logits.copy()), logits.copy()
    for some_changes in (changes, changes[:1], changes[1:2]):
        change_rows(ours, some_changes)
        assert apply_changes(theirs, some_changes) == []
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6)


def test_tokens_that_only_the_device_knows() -> None:
    drawn = torch.tensor([40, 41, UNFIT_ROW, 43], dtype=torch.int32)
    tokens = torch.tensor([7, -1, -4, 9, -3, 0, -2], dtype=torch.int32)
    take_drawn(tokens, drawn)
    assert tokens.tolist() == [7, 40, 43, 9, 0, 0, 41]
