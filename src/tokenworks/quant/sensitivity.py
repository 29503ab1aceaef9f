"""Which weights to spare: how much the model's output distribution moves when each of them is rounded.

Rounding a weight by e moves the next-token distribution by KL = 1/2 e^T F e to second order, with F the Fisher
information of the weights. Its diagonal is the mean square of the gradients of log-probabilities of tokens that the
model itself would draw, so a few hundred tokens and one backward pass for each window price every weight at once. The
size of e alone prices nothing: it does not know what the rest of the model does with a weight.
"""

from collections.abc import Mapping

import numpy as np

from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.program import Program
from tokenworks.kernels.tensor import Tensor
from tokenworks.quant.forward import Float32, Int32
from tokenworks.quant.recipe import Choice
from tokenworks.quant.torch_forward import need_torch, torch_logits

SEED = 0


def sensitivities(
    program: Program, weights: Mapping[str, Tensor], errors: Mapping[str, Float32], windows: Int32
) -> dict[str, float]:
    """Nats of KL a token that each of `errors`, the rounded weight less the weight, is expected to cost, by name.

    `windows` [count, length] is text. Deterministic. Raises InvalidRequest without PyTorch.
    """
    need_torch()
    import torch

    numbers = {name: torch.from_numpy(np.array(dequantise(tensor))) for name, tensor in weights.items()}
    priced = {name: numbers[name].requires_grad_() for name in errors}
    squares = {name: torch.from_numpy(error * error) for name, error in errors.items()}
    costs = dict.fromkeys(errors, 0.0)
    draws = torch.Generator().manual_seed(SEED)
    for window in torch.from_numpy(windows.astype(np.int64)):
        rows = torch_logits(program, numbers.__getitem__, window[None])[0].log_softmax(1)
        drawn = torch.multinomial(rows.detach().exp(), 1, generator=draws)
        gradients = torch.autograd.grad(rows.gather(1, drawn).sum(), list(priced.values()))
        for name, gradient in zip(priced, gradients, strict=True):
            costs[name] += 0.5 * float((gradient.square_() * squares[name]).sum())
    return {name: cost / windows.size for name, cost in costs.items()}


def spare(
    choices: Mapping[str, Choice], costs: Mapping[str, float], sizes: Mapping[str, int], share: float
) -> dict[str, Choice]:
    """`choices` with int8 for those weights of `costs` that cost most for their size, up to `share` of all elements.

    `sizes` are numbers of elements.
    """
    left = share * sum(sizes[name] for name in costs)
    spared: dict[str, Choice] = dict(choices)
    for name in sorted(costs, key=lambda each: costs[each] / sizes[each], reverse=True):
        if sizes[name] <= left:
            left -= sizes[name]
            spared[name] = "int8"
    return spared
