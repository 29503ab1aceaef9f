"""Tensors of a file that hold several weights, or a weight's rows in another order: how quantised ones are put back."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tokenworks.models.checkpoint import Checkpoint, layer_of, rotary_heads
from tokenworks.models.config import DecoderConfig
from tokenworks.models.files.names import FileNames
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.quant.schemes import Quantised


def by_tensor(source: Checkpoint, names: FileNames) -> dict[str, list[str]]:
    """For each tensor of the file, the weights of texts that lie in it, in order."""
    parts: dict[str, list[str]] = {}
    for canonical in source.tensors:
        if not canonical.startswith(("rope.", "vision.")):  # the former follow from the config
            parts.setdefault(names.of(canonical), []).append(canonical)
    return parts


def whole(
    source: Checkpoint, names: FileNames, name: str, parts: Sequence[str], quantised: Mapping[str, Quantised]
) -> Quantised | None:
    """Tensor `name` of its `parts`, or None where none is quantised.

    Raises InvalidRequest when they have different formats, or some have none.
    """
    chosen = [quantised[part] for part in parts if part in quantised]
    if not chosen:
        return None
    if len(chosen) < len(parts):
        raise InvalidRequest(f"{', '.join(parts)} are one tensor in a file, {name}: give all one format.")
    return _reordered(_joined(name, chosen), file_order(source, names, parts))


def file_order(source: Checkpoint, names: FileNames, parts: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """Which row of all parts, one under the other, is each of the tensor's; None: they lie there like that."""
    rows = [(names.rows_of(part), part) for part in parts]
    if rows[0][0] is None:
        return _in_pairs(source, parts) if names.interleaved_rotary else None
    assert isinstance(source.config, DecoderConfig)
    layers = source.config.all_layers
    return np.argsort(np.concatenate([of(layers[layer_of(part)].mixer) for of, part in rows if of is not None]))


def _in_pairs(source: Checkpoint, parts: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """Rows of heads that rotary positions turn, from all first members of pairs, then all second ones, to pair after
    pair."""
    if not any(rotary_heads(source.config, part) for part in parts):
        return None
    orders, first = [], 0
    for part in parts:
        rows = np.arange(source.tensors[part].shape[0])
        if heads := rotary_heads(source.config, part):
            rows = rows.reshape(heads, 2, -1).swapaxes(1, 2).ravel()
        orders.append(first + rows)
        first += len(rows)
    order: npt.NDArray[np.int64] = np.concatenate(orders)
    return order


def _joined(name: str, parts: Sequence[Quantised]) -> Quantised:
    """Rows under rows."""
    if len({part.scheme for part in parts}) > 1:
        raise InvalidRequest(f"{name} is one tensor in a file: its weights need one format.")
    blocks = [part.block_scales for part in parts if part.block_scales is not None]
    return Quantised(
        parts[0].scheme,
        np.concatenate([part.codes for part in parts]),
        np.concatenate(blocks) if blocks else None,
        np.concatenate([part.row_scales for part in parts]),
    )


def _reordered(weight: Quantised, order: npt.NDArray[np.int64] | None) -> Quantised:
    if order is None:
        return weight
    blocks = None if weight.block_scales is None else weight.block_scales[order]
    return Quantised(weight.scheme, weight.codes[order], blocks, weight.row_scales[order])
