"""Products with weights."""

import numpy as np

from tokenworks.kernels.program import Linear, LinearHeads
from tokenworks.kernels.reference.step import Float64, Floats, Operands, Step

LINEAR_SLAB = 4096
"""Output features of a linear layer that are widened to float64 at a time, so that a large head needs little memory."""


def linear(step: Step, op: Linear) -> Float64:
    x = step.load(op.x)
    biases = op.biases or (None,) * len(op.weights)
    parts: list[Float64] = []
    for name, bias in zip(op.weights, biases, strict=True):
        weight = step.weights[name]
        slabs = [x @ weight[at : at + LINEAR_SLAB].T.astype(np.float64) for at in range(0, len(weight), LINEAR_SLAB)]
        product = np.concatenate(slabs, axis=1)
        for adapter, rows in step.adapted_rows(len(x)):
            if name in adapter:
                down, up = adapter[name]
                product[rows] += x[rows] @ down.T @ up.T
        parts.append(product if bias is None else product + step.weight(bias))
    return np.concatenate(parts, axis=1)


def linear_heads(step: Operands, op: LinearHeads) -> Floats:
    x = step.load(op.x)
    heads = x.reshape(len(x), len(op.weights), op.kept + op.inputs)
    made = np.stack([heads[:, h, op.kept :] @ step.weight(name).T for h, name in enumerate(op.weights)], axis=1)
    whole: Floats = np.concatenate((heads[..., : op.kept], made), axis=2)
    return whole.reshape(len(x), op.output.width)
