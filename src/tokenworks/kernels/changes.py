"""Changing rows of logits, where they lie in numpy's memory."""

from collections.abc import Sequence

import numpy as np

from tokenworks.kernels.backend import Float32, RowChange


def apply_changes(logits: Float32, changes: Sequence[RowChange]) -> list[int]:
    """Changes rows of `logits` [R, vocabulary] in place; returns those that have no token left."""
    empty = []
    for change in changes:
        row = logits[change.row]
        if len(change.ids):
            values = row[change.ids]
            values = np.where(values > 0, values / change.penalties, values * change.penalties)
            row[change.ids] = values + change.offsets
        if change.allowed is not None:
            bits = np.unpackbits(change.allowed.view(np.uint8), bitorder="little")[: len(row)]
            np.copyto(row[: len(bits)], -np.inf, where=bits == 0)
            row[len(bits) :] = -np.inf
        if row.max() == -np.inf:
            empty.append(change.row)
    return empty
