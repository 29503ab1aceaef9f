"""Pairs of a token and an expert that it chose: how they lie in blocks, and what ends a product of such a block."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.elements.activations import activate, gated
from tokenworks.kernels.program import Activation

Kind = tuple[str, Activation, float, float]
"""gate, activate or nothing, and Gate's activation, limit and offset."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The pairs of a step."""

    height: int
    pairs: torch.Tensor
    """[blocks * height] int32: token * top_k + choice; -1: none."""
    experts: torch.Tensor
    """[blocks] int32: whose they are; -1: nobody's."""


@triton.jit
def write_pairs(
    acc, up, pair, n, valid, bias, first, width, routes, routes_stride, out, out_stride, limit, offset,
    HOW: tl.constexpr, KIND: tl.constexpr, TOP_K: tl.constexpr,
):  # fmt: skip
    """acc [N, M], and `up` with a gate: columns n of pairs [M] -> out[pair, n]: + bias, gate or activation, times what
    the pair counts in `routes`. first: the expert's first row among all experts'."""
    if bias is not None:
        acc += tl.load(bias + first + n, mask=n < width, other=0.0)[:, None]
        if HOW == "gate":
            up += tl.load(bias + first + n + width, mask=n < width, other=0.0)[:, None]
    if HOW == "gate":
        acc = gated(acc, up, KIND, limit, offset)
    elif HOW == "activate":
        acc = activate(acc, KIND)
    if routes is not None:
        at = (pair // TOP_K).to(tl.int64) * routes_stride + TOP_K + pair % TOP_K
        acc *= tl.load(routes + at, mask=valid, other=0.0)[None, :]
    of_out = out + pair.to(tl.int64)[None, :] * out_stride + n[:, None]
    tl.store(of_out, acc.to(out.dtype.element_ty), mask=(n < width)[:, None] & valid[None, :])
