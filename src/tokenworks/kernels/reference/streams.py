"""Several residual streams beside each other, and networks that keep a few of their numbers only."""

import numpy as np

from tokenworks.kernels.program import MatchMagnitude, MixStreams, Sparsify
from tokenworks.kernels.reference.step import Floats, Operands


def mix_streams(step: Operands, op: MixStreams) -> Floats:
    x, coefficients = step.load(op.x), step.load(op.coefficients) + op.offset
    streams = x.reshape(len(x), op.inputs, op.x.width // op.inputs)
    mixed = coefficients.reshape(len(x), op.outputs, op.inputs) @ streams
    return np.asarray(mixed.reshape(len(x), op.output.width))


def match_magnitude(step: Operands, op: MatchMagnitude) -> Floats:
    x, like = step.load(op.x), step.load(op.like)
    found, wanted = (np.mean(value**2, axis=1, keepdims=True) for value in (x, like))
    return np.asarray(x * np.sqrt(wanted) / np.sqrt(np.maximum(found, op.least)))


def sparsify(step: Operands, op: Sparsify) -> Floats:
    x = step.load(op.x)
    cut = x.mean(axis=1, keepdims=True) + op.deviations * x.std(axis=1, keepdims=True)
    return np.asarray(np.maximum(x - cut, 0.0))
