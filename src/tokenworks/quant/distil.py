"""Distillation: a small adapter that gives a quantised model back part of what rounding took.

The adapter is low-rank terms beside every linear map of the decoder (LoRA, Hu et al. 2021, arXiv 2106.09685). It is
trained so that the quantised model's next-token distributions come nearer to those of the original, KL(original ||
quantised) on text (Hinton et al. 2015, arXiv 1503.02531), and it begins with the terms that undo most of each map's own
error on the inputs it gets (`closest`). The codes stay as calibration left them. To train those instead was tried and
is worth less (docs/quantize.md): a code moves by whole steps, and a little text does not tell which of millions should,
while an adapter has few numbers and they are continuous.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.program import Linear, Program
from tokenworks.kernels.tensor import Tensor
from tokenworks.quant.forward import Float32, Int32
from tokenworks.quant.measure import head_of
from tokenworks.quant.torch_forward import TorchPass, need_torch
from tokenworks.quant.work import Work
from tokenworks.telemetry.machine import machine

if TYPE_CHECKING:
    import torch

    from tokenworks.quant.torch_forward import Weights

    Side = torch.Tensor
    Sides = dict[str, tuple[Side, Side]]

Progress = Callable[[str, int, int, str], None]
"""Called with what is being done, how many steps of it are finished, of how many, and a word on the next."""

RATE = 7e-4
"""Of Adam, at its highest."""
WARM_UP = 0.05
"""Share of the steps in which the rate rises; then it falls as a cosine to nothing."""
BATCH, TOGETHER = 4, 2
"""Windows in a step; windows that are in memory at a time."""
BEGIN_WINDOWS = 32
"""Whose inputs the terms to begin with are made for."""
ROWS = 256
"""Rows of logits that are in memory at a time."""
KEEP_EVERY = 10
"""Steps after which all is written down, for an interrupted run to go on from."""
_MEAN, _SQUARE = 0.9, 0.95
_RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Distilled:
    terms: dict[str, tuple[Float32, Float32]]
    """By the weight's name: [rank, in_features] and [out_features, rank], to be added as their product."""
    kl_before: float
    kl_after: float
    """Of the text that was kept back, in nats a token."""


def distil(
    program: Program,
    original: Mapping[str, Tensor],
    quantised: Mapping[str, Tensor],
    names: Sequence[str],
    rank: int,
    lessons: Int32,
    kept_back: Int32,
    work: Work,
    progress: Progress,
) -> Distilled:
    """Trains terms beside the weights `names` on `lessons` [count, length], once through; `kept_back` is for measuring.

    Deterministic on one machine with one number of threads. Raises InvalidRequest without PyTorch, or for a program
    that cannot be differentiated.
    """
    need_torch()
    job = _Job(program, original, quantised)
    kept = work.arrays("distilled")
    if kept:
        terms, adam = _resumed(kept)
    else:
        terms = job.closest(names, rank, lessons[-BEGIN_WINDOWS:], progress)
        adam = _adam(terms)
    steps = len(lessons) // BATCH
    order = np.random.default_rng(0).permutation(len(lessons))
    kl = 0.0
    for step in range(int(kept["step"]) if kept else 0, steps):
        progress("training", step, steps, f"KL {kl:.4f}" if kl else "")
        kl = job.lesson(lessons[order[step * BATCH :][:BATCH]], terms)
        falling = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        adam.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / steps / WARM_UP) * falling
        adam.step()
        adam.zero_grad()
        if (step + 1) % KEEP_EVERY == 0:
            work.keep_arrays("distilled", {"step": np.array(step + 1), **_state(terms, adam)})
    progress("measuring", 0, 1, "text that was kept back")
    before, after = job.divergence(kept_back, {}), job.divergence(kept_back, terms)
    return Distilled(
        {name: (down.detach().numpy(), up.detach().numpy()) for name, (down, up) in terms.items()}, before, after
    )


class _Job:
    def __init__(self, program: Program, original: Mapping[str, Tensor], quantised: Mapping[str, Tensor]) -> None:
        head = head_of(program)
        at = program.instructions.index(head)
        self._body, self._tail = program.instructions[:at], program.instructions[at:]
        self._hidden, self._result = head.x, program.result
        self._original, self._quantised = _weights(original), _weights(quantised)
        self._numbers = original, quantised

    def closest(self, names: Sequence[str], rank: int, windows: Int32, progress: Progress) -> "Sides":
        """The terms of this rank that undo most of each weight's error on the inputs x that it gets: with R the root of
        the mean of x x^T, from the first singular vectors of (original - quantised) R (QERA, Zhang et al. 2024, arXiv
        2410.06040)."""
        import torch

        moments: dict[str, torch.Tensor] = {}

        def watch(op: Linear, x: "torch.Tensor") -> None:
            if wanted := [name for name in op.weights if name in chosen]:
                moment = x.T @ x
                for name in wanted:
                    moments[name] = moments.get(name, 0) + moment

        chosen = set(names)
        with torch.no_grad():
            for number, window in enumerate(windows):
                progress("reading inputs", number, len(windows), "")
                self._hidden_rows(self._quantised, window[None], {}, watch)
        terms: Sides = {}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for number, name in enumerate(names):
                progress("finding a start", number, len(names), name)
                error = torch.from_numpy(dequantise(self._numbers[0][name]) - dequantise(self._numbers[1][name]))
                terms[name] = _closest(error, moments[name] / windows.size, rank)
        return terms

    def lesson(self, windows: Int32, terms: "Sides") -> float:
        """KL(original || quantised) on `windows`, whose gradients it leaves at the terms."""
        import torch

        total = 0.0
        for some in np.split(windows, range(TOGETHER, len(windows), TOGETHER)):
            with torch.no_grad():
                exact = self._hidden_rows(self._original, some, {})
            ours = self._hidden_rows(self._quantised, some, terms)
            gradient = torch.empty_like(ours)
            for at in range(0, len(ours), ROWS):
                rows = ours[at : at + ROWS].detach().requires_grad_()
                loss = self._divergence(exact[at : at + ROWS], rows) / windows.size
                (gradient[at : at + ROWS],) = torch.autograd.grad(loss, rows)
                total += float(loss.detach())
            torch.autograd.backward(ours, gradient)
        return total

    def divergence(self, windows: Int32, terms: "Sides") -> float:
        """Nats a token."""
        import torch

        total = 0.0
        with torch.no_grad():
            for window in windows:
                exact = self._hidden_rows(self._original, window[None], {})
                ours = self._hidden_rows(self._quantised, window[None], terms)
                for at in range(0, len(ours), ROWS):
                    total += float(self._divergence(exact[at : at + ROWS], ours[at : at + ROWS]))
        return total / windows.size

    def _hidden_rows(self, weights: "Weights", windows: Int32, terms: "Sides", watch: "Any" = None) -> "torch.Tensor":
        """[rows, width]: the vocabulary head's input."""
        import torch

        step = TorchPass(weights, windows.shape, torch.from_numpy(windows.astype(np.int64)), terms, watch)
        for instruction in self._body:
            step.run(instruction)
        return step.read(self._hidden)

    def _divergence(self, exact: "torch.Tensor", ours: "torch.Tensor") -> "torch.Tensor":
        """The sum over rows."""
        import torch

        with torch.no_grad():
            wanted = self._log_probabilities(self._original, exact)
        return (wanted.exp() * (wanted - self._log_probabilities(self._quantised, ours))).sum()

    def _log_probabilities(self, weights: "Weights", hidden: "torch.Tensor") -> "torch.Tensor":
        step = TorchPass(weights, (len(hidden), 1))
        step.write(self._hidden, hidden)
        for instruction in self._tail:
            step.run(instruction)
        return step.read(self._result).log_softmax(1)


def _weights(tensors: Mapping[str, Tensor]) -> "Weights":
    """Matrices in bfloat16 where the machine multiplies it fast."""
    import torch

    fast = {"avx512_bf16", "amx_bf16"} & {*machine().instruction_sets}
    made = {name: torch.from_numpy(np.array(dequantise(tensor))) for name, tensor in tensors.items()}
    return {
        name: each.to(torch.bfloat16) if fast and each.ndim == 2 else each for name, each in made.items()
    }.__getitem__


def _closest(error: "torch.Tensor", moment: "torch.Tensor", rank: int) -> "tuple[Side, Side]":
    import torch

    moment = moment.double()
    moment.diagonal().add_(_RIDGE * moment.diagonal().mean())
    values, vectors = torch.linalg.eigh(moment)
    root, inverse = ((vectors * scale) @ vectors.T for scale in (values.sqrt(), values.rsqrt()))
    rank = min(rank, *error.shape)
    left, sizes, right = torch.svd_lowrank((error.double() @ root).float(), rank + 8, niter=4)
    share = sizes[:rank].sqrt()
    down, up = share[:, None] * right[:, :rank].T @ inverse.float(), left[:, :rank] * share
    return down.contiguous().requires_grad_(), up.contiguous().requires_grad_()


def _adam(terms: "Sides") -> "torch.optim.Adam":
    import torch

    return torch.optim.Adam([side for both in terms.values() for side in both], RATE, (_MEAN, _SQUARE))


def _state(terms: "Sides", adam: "torch.optim.Adam") -> dict[str, npt.NDArray[Any]]:
    """All that `_resumed` needs."""
    arrays = {"names": np.array(list(terms))}
    for number, side in enumerate(adam.param_groups[0]["params"]):
        kept = adam.state[side]
        arrays |= {f"side {number}": side.detach().numpy()}
        arrays |= {f"mean {number}": kept["exp_avg"].numpy(), f"square {number}": kept["exp_avg_sq"].numpy()}
    return arrays


def _resumed(kept: Mapping[str, npt.NDArray[Any]]) -> "tuple[Sides, torch.optim.Adam]":
    import torch

    def side(number: int) -> "Side":
        return torch.from_numpy(kept[f"side {number}"]).requires_grad_()

    terms = {str(name): (side(2 * at), side(2 * at + 1)) for at, name in enumerate(kept["names"])}
    adam = _adam(terms)
    for number, each in enumerate(adam.param_groups[0]["params"]):
        adam.state[each] = {
            "step": torch.tensor(float(kept["step"])),
            "exp_avg": torch.from_numpy(kept[f"mean {number}"]),
            "exp_avg_sq": torch.from_numpy(kept[f"square {number}"]),
        }
    return terms, adam
