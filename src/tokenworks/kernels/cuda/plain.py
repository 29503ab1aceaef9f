"""Operations that few models have, or that take no time worth a kernel, by PyTorch's own: out given, float32 inside."""

import torch

from tokenworks.kernels.program import MatchMagnitude, Merge, MixStreams, Route, Sparsify

Rows = torch.Tensor
LEAST_SUM = 1e-20
"""Added to a sum of routing weights before they are divided by it."""


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


def route(op: Route, out: Rows, x: Rows, bias: torch.Tensor | None, scales: torch.Tensor | None) -> None:
    logits = x.float()
    scores = torch.sigmoid(logits) if op.score == "sigmoid" else torch.softmax(logits, dim=1)
    worth = scores if bias is None else scores + bias
    if op.kept_groups < op.groups:
        grouped = worth.view(len(worth), op.groups, -1)
        of_groups = grouped.sort(dim=2, descending=True).values[:, :, : op.group_best].sum(dim=2)
        dropped = of_groups.sort(dim=1, descending=True, stable=True).indices[:, op.kept_groups :]
        out_of_it = torch.zeros_like(of_groups, dtype=torch.bool).scatter_(1, dropped, True)
        worth = grouped.masked_fill(out_of_it[:, :, None], -torch.inf).view(worth.shape)
    chosen = worth.sort(dim=1, descending=True, stable=True).indices[:, : op.top_k]
    weights = scores.gather(1, chosen)
    if op.normalise:
        weights = weights / (weights.sum(dim=1, keepdim=True) + LEAST_SUM)
    if scales is not None:
        weights = weights * scales[chosen]
    out[:, : op.top_k] = chosen
    out[:, op.top_k :] = weights * op.scale


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
