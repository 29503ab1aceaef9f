"""Rounds one weight: each number to its nearest, or column by column with errors compensated (GPTQ).

GPTQ (Frantar et al. 2022, arXiv 2210.17323) rounds the columns of a weight in turn and spreads each column's error over
the columns still to come, so that the layer's output on the calibration text changes least. What it needs to know of
the text is H = X^T X of the layer's inputs. A block's scale is chosen when its first column's turn comes, from the
weights as they are then.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenworks.quant.schemes import (
    BLOCK,
    GRIDS,
    Bytes,
    Float32,
    Quantised,
    SchemeName,
    block_scales,
    encode,
    row_scales,
)

Float64 = npt.NDArray[np.float64]

DAMPING = 0.01
"""Of H's mean diagonal, added to it: keeps directions that the text hardly shows from being bent at will."""
_ROW_COLUMNS = 32
"""Columns rounded between two updates of all later ones, where blocks do not say."""


def round_to_nearest(
    scheme: SchemeName,
    weight: Float32,
    importance: Float32 | None = None,
    *,
    peak: float = 0.0,
    search: bool = True,
) -> Quantised:
    """`weight` is [out_features, in_features]; `importance` [in_features] weighs errors in the choice of scales (mean
    squares of inputs), all alike if None. Without `search`, scales map the largest numbers to the grid's largest."""
    weigh = np.ones(weight.shape[1], np.float32) if importance is None else importance
    rows = row_scales(scheme, weight, weigh, peak)
    scaled = weight / rows[:, None]
    if not BLOCK[scheme]:
        return Quantised(scheme, encode(scheme, scaled), None, rows)
    blocks = scaled.reshape(-1, BLOCK[scheme])
    weights_of_blocks = np.tile(weigh.reshape(-1, BLOCK[scheme]), (len(weight), 1))
    codes, numbers = block_scales(scheme, blocks, weights_of_blocks, search=search)
    rounded = encode(scheme, blocks / numbers[:, None]).reshape(weight.shape)
    return Quantised(scheme, rounded, codes.reshape(len(weight), -1), rows)


@dataclass(frozen=True, slots=True)
class Curvature:
    """What a layer's inputs X [rows, in_features] say about which errors matter; made once for weights that share X."""

    diagonal: Float32
    """[in_features] of H = X^T X / rows, damped."""
    compensation: Float32
    """[in_features, in_features], upper triangular: Cholesky's factor of the inverse of H, each row divided by its
    diagonal: row j says what an error in column j asks of the later columns."""
    gains: Float32
    """[in_features]: squares of that factor's diagonal; 1 / gains weighs a column's error after compensation."""


def gram(x: Float32) -> Float64:
    """X^T X / rows of inputs [rows, in_features]: all that rounding must know of a text."""
    return (x.T @ x).astype(np.float64) / len(x)


def curvature(h: Float64) -> Curvature:
    """Of a gram matrix."""
    h = h.copy()
    h[np.diag_indices_from(h)] += max(DAMPING * float(h.diagonal().mean()), 1e-12)
    # H = R R^T with R upper triangular: Cholesky's factor of H read from its far end. Then H^-1 = U^T U with U = R^-1.
    root = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    factor = np.triu(np.linalg.inv(root))
    spread = factor.diagonal()
    return Curvature(
        h.diagonal().astype(np.float32),
        (factor / spread[:, None]).astype(np.float32),
        (spread * spread).astype(np.float32),
    )


def compensate(scheme: SchemeName, weight: Float32, text: Curvature, *, peak: float = 0.0) -> Quantised:
    """Rounds `weight` [out_features, in_features] column by column. `peak` is that of `row_scales`."""
    rows = row_scales(scheme, weight, text.diagonal, peak)
    block = BLOCK[scheme] or _ROW_COLUMNS
    # Columns are worked on as rows of the transposed matrix: contiguous in memory.
    left = np.ascontiguousarray((weight / rows[:, None]).T)
    codes = np.empty(left.shape, np.uint8)
    scales: list[Bytes] = []
    importance = np.float32(1) / text.gains
    grid = GRIDS[scheme]
    for start in range(0, len(left), block):
        stop = min(start + block, len(left))
        numbers = np.ones(left.shape[1], np.float32)
        if BLOCK[scheme]:
            chosen, numbers = block_scales(scheme, np.ascontiguousarray(left[start:stop].T), importance[start:stop])
            scales.append(chosen)
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for column in range(start, stop):
            codes[column] = encode(scheme, left[column] / numbers)
            errors[column - start] = left[column] - grid[codes[column]] * numbers
            if column + 1 < stop:
                left[column + 1 : stop] -= np.outer(
                    text.compensation[column, column + 1 : stop], errors[column - start]
                )
        if stop < len(left):
            left[stop:] -= text.compensation[start:stop, stop:].T @ errors
    return Quantised(scheme, np.ascontiguousarray(codes.T), np.stack(scales, axis=1) if scales else None, rows)
