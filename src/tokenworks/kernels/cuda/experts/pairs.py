"""Pairs of a token and an expert that it chose: how they lie in blocks, and what ends a product of such a block."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.elements.activations import activate, gated
from tokenworks.kernels.cuda.products.finish import NO_GATE, Gated


@dataclass(frozen=True, slots=True)
class Blocks:
    """The pairs of a step."""

    height: int
    pairs: torch.Tensor
    """[blocks * height] int32: token * top_k + choice; -1: none."""
    experts: torch.Tensor
    """[blocks] int32: whose they are; -1: nobody's."""


@dataclass(frozen=True, slots=True)
class PairProduct:
    """What each pair's expert makes of its row, whatever form the weights have."""

    x: torch.Tensor
    """[rows, columns of the weights], columns contiguous, float32 or bfloat16."""
    out: torch.Tensor
    """[pairs, width], columns contiguous, float32 or bfloat16."""
    blocks: Blocks
    sharing: int
    """So many pairs have the same row of x: pair p has row p // sharing."""
    bias: torch.Tensor | None
    """[experts, rows of an expert's weights] float32."""
    ends_with: Literal["gate", "activation", ""] = ""
    """With a gate an expert has 2 * width rows, as Gated says; with an activation `gate` has its name."""
    gate: Gated = NO_GATE
    routes: torch.Tensor | None = None
    """[tokens, 2 * top_k] as Route writes them: each pair is multiplied by its weight."""

    @property
    def width(self) -> int:
        return self.out.shape[1]

    def arguments(self, expert_rows: int, columns: int) -> tuple[Any, ...]:
        """Of a launch, from `x` to `offset`."""
        routes, gate = self.routes, self.gate
        return (
            self.x, self.bias, self.out, self.blocks.pairs, self.blocks.experts, routes, self.width, columns,
            self.x.stride(0), self.out.stride(0), expert_rows, 0 if routes is None else routes.stride(0),
            gate.limit, gate.offset,
        )  # fmt: skip

    @property
    def constants(self) -> dict[str, Any]:
        """The same launch's; rows of a block are its M."""
        top_k = 1 if self.routes is None else self.routes.shape[1] // 2
        named = {"ENDS_WITH": self.ends_with, "KIND": self.gate.activation, "SHARING": self.sharing, "TOP_K": top_k}
        return named | {"M": self.blocks.height}


@triton.jit
def write_pairs(
    acc, up, pair, n, valid, bias, first, width, routes, routes_stride, out, out_stride, limit, offset,
    ENDS_WITH: tl.constexpr, KIND: tl.constexpr, TOP_K: tl.constexpr,
):  # fmt: skip
    """acc [N, M], and `up` with a gate: columns n of pairs [M] -> out[pair, n]: + bias, gate or activation, times what
    the pair counts in `routes`. first: the expert's first row among all experts'."""
    if bias is not None:
        acc += tl.load(bias + first + n, mask=n < width, other=0.0)[:, None]
        if ENDS_WITH == "gate":
            up += tl.load(bias + first + n + width, mask=n < width, other=0.0)[:, None]
    if ENDS_WITH == "gate":
        acc = gated(acc, up, KIND, limit, offset)
    elif ENDS_WITH == "activation":
        acc = activate(acc, KIND)
    if routes is not None:
        at = (pair // TOP_K).to(tl.int64) * routes_stride + TOP_K + pair % TOP_K
        acc *= tl.load(routes + at, mask=valid, other=0.0)[None, :]
    of_out = out + pair.to(tl.int64)[None, :] * out_stride + n[:, None]
    tl.store(of_out, acc.to(out.dtype.element_ty), mask=(n < width)[:, None] & valid[None, :])
