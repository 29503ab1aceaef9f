"""Rows brought in, chosen, pooled."""

import numpy as np

from tokenworks.kernels.program import Embed, Inject, Input, Merge, Pool, SelectRows
from tokenworks.kernels.reference.step import Float64, Step, sequences


def input_rows(step: Step, op: Input) -> Float64:
    assert step.batch.inputs is not None, "this program takes inputs"
    return step.batch.inputs.astype(np.float64)


def inject(step: Step, op: Inject) -> Float64:
    x = step.load(op.x)
    rows, features = step.batch.feature_rows, step.batch.features
    if rows is not None and features is not None:
        given = features[:, op.offset : op.offset + op.x.width]
        x[rows] = given if op.how == "replace" else x[rows] + given
    return x


def merge(step: Step, op: Merge) -> Float64:
    groups = step.load(op.x).reshape(-1, op.count, op.x.width)
    return groups.reshape(len(groups), -1) if op.how == "concatenate" else np.asarray(groups.mean(axis=1))


def embed(step: Step, op: Embed) -> Float64:
    batch = step.batch
    nowhere = np.zeros_like(batch.tokens)
    axis = nowhere if batch.axes is None else batch.axes[0]
    table = step.weights[op.table]
    known = np.where(batch.tokens < len(table), batch.tokens, 0)
    indices = {
        "token": batch.tokens, "known_token": known, "position": batch.positions, "axis": axis, "zero": nowhere,
    }  # fmt: skip
    return np.asarray(table[indices[op.index]].astype(np.float64) * op.scale, np.float64)


def select_rows(step: Step, op: SelectRows) -> Float64:
    return step.load(op.x)[step.batch.logit_rows]


def pool(step: Step, op: Pool) -> Float64:
    x = step.load(op.x)
    pooled = [x[start:stop].mean(axis=0) if op.how == "mean" else x[start] for start, stop in sequences(step.batch)]
    rows = np.stack(pooled)
    if op.normalise:
        rows = rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return np.asarray(rows, np.float64)
