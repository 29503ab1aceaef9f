"""Operations that few models have, or that take no time worth a kernel, by PyTorch's own: out given, float32 inside."""

import torch

from tokenworks.kernels.program import MatchMagnitude, Merge, MixStreams, Sparsify

Rows = torch.Tensor


def add(out: Rows, a: Rows, b: Rows) -> None:
    torch.add(a, b, out=out)


def multiply(out: Rows, x: Rows, by: Rows | float) -> None:
    torch.mul(x, by, out=out)


def mix_streams(op: MixStreams, out: Rows, x: Rows, coefficients: Rows) -> None:
    streams = x.float().reshape(len(x), op.inputs, -1)
    mixed = (coefficients.float() + op.offset).reshape(len(x), op.outputs, op.inputs) @ streams
    out.copy_(mixed.reshape(len(x), -1))


def match_magnitude(op: MatchMagnitude, out: Rows, x: Rows, like: Rows) -> None:
    x, like = x.float(), like.float()
    found, wanted = ((value * value).mean(dim=1, keepdim=True) for value in (x, like))
    out.copy_(x * wanted.sqrt() / found.clamp(min=op.least).sqrt())


def sparsify(op: Sparsify, out: Rows, x: Rows) -> None:
    x = x.float()
    cut = x.mean(dim=1, keepdim=True) + op.deviations * x.std(dim=1, keepdim=True, correction=0)
    out.copy_((x - cut).clamp(min=0.0))


def merge(op: Merge, out: Rows, x: Rows) -> None:
    groups = x.reshape(-1, op.count, x.shape[1])
    out.copy_(groups.reshape(len(groups), -1) if op.how == "concatenate" else groups.float().mean(dim=1))


def pool(out: Rows, x: Rows, row_starts: torch.Tensor, how: str, normalise: bool) -> None:
    """One row for each of the sequences between row_starts [S + 1]."""
    starts = row_starts.long()
    if how == "mean":
        rows = torch.segment_reduce(x.float(), "mean", lengths=starts.diff(), axis=0)
    else:
        rows = x[starts[:-1]].float()
    if normalise:
        rows = rows / (rows * rows).sum(dim=1, keepdim=True).sqrt()
    out.copy_(rows)


def linear_heads(out: Rows, x: Rows, weights: torch.Tensor, kept: int) -> None:
    """weights: [heads, outputs, inputs] bfloat16."""
    heads, outputs, inputs = weights.shape
    given = x.to(torch.bfloat16).reshape(len(x), heads, kept + inputs)
    made = torch.bmm(given[:, :, kept:].transpose(0, 1), weights.transpose(1, 2))
    to = out.view(len(x), heads, kept + outputs)
    to[:, :, :kept] = given[:, :, :kept]
    to[:, :, kept:] = made.transpose(0, 1)


def softcap(out: Rows, x: Rows, cap: float) -> None:
    out.copy_(torch.tanh(x.float() / cap) * cap)
