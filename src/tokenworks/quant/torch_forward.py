"""A decoder's Program in PyTorch, for what needs gradients: sensitivity and distillation. Needs the extra `torch`."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tokenworks.kernels.program import (
    Activate,
    Activation,
    Add,
    Attend,
    Embed,
    Gate,
    Linear,
    Multiply,
    Program,
    RmsNorm,
    Rope,
    Scale,
    SelectRows,
    Softcap,
    Value,
)
from tokenworks.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

    Weights = Callable[[str], torch.Tensor]
    """A weight by name, as this pass is to use it: matrices in float32 or bfloat16, the rest in float32."""
    Changes = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """Low-rank terms by the name of the weight they are added to: [rank, in_features], [out_features, rank]."""
    Watch = Callable[[Linear, torch.Tensor], None]
    """Called with each linear map and its input [rows, in_features]."""


def need_torch() -> None:
    """Raises InvalidRequest saying how to get PyTorch where it is missing."""
    if importlib.util.find_spec("torch") is None:
        raise InvalidRequest("This needs PyTorch: `pip install 'tokenworks[torch]'`.")


def torch_logits(program: Program, weights: "Weights", tokens: "torch.Tensor") -> "torch.Tensor":
    """[windows, length, vocabulary] from tokens [windows, length], each window a sequence; float32 arithmetic."""
    step = TorchPass(weights, tuple(tokens.shape), tokens)
    for instruction in program.instructions:
        step.run(instruction)
    return step.read(program.result).reshape(*tokens.shape, -1)


class TorchPass:
    """Runs instructions one by one over windows of text, `shape` (windows, length); Embed needs their `tokens`."""

    def __init__(
        self,
        weights: "Weights",
        shape: tuple[int, ...],
        tokens: "torch.Tensor | None" = None,
        changes: "Changes | None" = None,
        watch: "Watch | None" = None,
    ) -> None:
        self._weights, self._shape, self._tokens = weights, shape, tokens
        self._changes, self._watch = changes or {}, watch
        self._values: dict[tuple[int, int, int], torch.Tensor] = {}
        """By buffer, offset and width. A part that was written by itself hides those columns of the whole."""

        self._kept: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = {}
        """K and V by cache layer."""

    def read(self, value: Value) -> "torch.Tensor":
        """[windows * length, width]"""
        part = self._values.get((value.buffer, value.offset, value.width))
        if part is not None:
            return part
        return self._values[value.buffer, 0, value.stride][:, value.offset : value.offset + value.width]

    def write(self, value: Value, rows: "torch.Tensor") -> None:
        """What instructions before the first one that is run would have left."""
        self._values[value.buffer, value.offset, value.width] = rows

    def run(self, instruction: object) -> None:
        match instruction:
            case Embed():
                out = self._embed(instruction)
            case Linear():
                out = self._linear(instruction)
            case RmsNorm(x=x, weight=weight, epsilon=epsilon, group=group):
                groups = self.read(x).reshape(len(self.read(x)), -1, group)
                scale = (groups.square().mean(2, keepdim=True) + epsilon).rsqrt()
                out = (groups * scale * (1.0 if weight is None else self._weights(weight))).flatten(1)
            case Rope():
                out = self._rope(instruction)
            case Attend():
                out = self._attend(instruction)
            case Gate(gate=gate, up=up, activation=kind):
                out = self._activated(kind, self.read(gate)) * self.read(up)
            case Activate(x=x, activation=kind):
                out = self._activated(kind, self.read(x))
            case Add(a=a, b=b):
                out = self.read(a) + self.read(b)
            case Scale(x=x, factor=factor):
                out = self.read(x) * factor
            case Multiply(x=x, weight=weight):
                out = self.read(x) * self._weights(weight)
            case Softcap(x=x, cap=cap):
                out = cap * (self.read(x) / cap).tanh()
            case SelectRows(x=x):  # every row's logits are wanted
                out = self.read(x)
            case _:
                raise InvalidRequest(f"{type(instruction).__name__} has no gradients here: decoders only.")
        to: Value = instruction.output
        self._values[to.buffer, to.offset, to.width] = out

    def _embed(self, op: Embed) -> "torch.Tensor":
        assert self._tokens is not None
        table, tokens = self._weights(op.table), self._tokens.flatten()
        if op.index == "known_token":
            tokens = tokens * (tokens < len(table))
        return table[tokens].float() * op.scale

    def _linear(self, op: Linear) -> "torch.Tensor":
        from torch import cat

        x = self.read(op.x)
        if self._watch is not None:
            self._watch(op, x)
        biases = op.biases or (None,) * len(op.weights)
        parts = [self._product(x, name, bias) for name, bias in zip(op.weights, biases, strict=True)]
        return parts[0] if len(parts) == 1 else cat(parts, 1)

    def _product(self, x: "torch.Tensor", name: str, bias: str | None) -> "torch.Tensor":
        from torch.nn.functional import linear

        weight = self._weights(name)
        x = x.to(weight.dtype)
        out = linear(x, weight)
        if name in self._changes:
            down, up = (side.to(weight.dtype) for side in self._changes[name])
            out = out + linear(linear(x, down), up)
        return out.float() if bias is None else out.float() + self._weights(bias)

    def _rope(self, op: Rope) -> "torch.Tensor":
        import torch

        windows, length = self._shape
        angles = torch.arange(length)[:, None] * self._weights(op.inverse_frequencies)
        cos, sin = op.scale * angles.cos()[:, None], op.scale * angles.sin()[:, None]
        heads = self.read(op.x).reshape(windows, length, -1, op.head_size)
        first, second = heads[..., : op.turned].chunk(2, 3)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat((*turned, heads[..., op.turned :]), 3).reshape(windows * length, -1)

    def _attend(self, op: Attend) -> "torch.Tensor":
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        windows, length = self._shape
        if op.k is not None and op.v is not None:
            self._kept[op.cache_layer] = self.read(op.k), self.read(op.v)
        rows = (self.read(op.q), *self._kept[op.cache_layer])
        q, k, v = (each.reshape(windows, length, -1, op.head_size).transpose(1, 2) for each in rows)
        k, v = (each.repeat_interleave(op.heads // op.kv_heads, 1) for each in (k, v))
        distance = torch.arange(length)[:, None] - torch.arange(length)
        reach: int | torch.Tensor = op.window or length
        if op.window and op.chunked:
            reach = torch.arange(length)[:, None] % op.window + 1
        hidden = (distance < 0) | (distance >= reach)
        if not op.softcap and op.sinks is None:
            shared = scaled_dot_product_attention(q, k, v, attn_mask=~hidden, scale=op.scale)
            return shared.transpose(1, 2).reshape(windows * length, -1)
        scores = op.scale * (q @ k.transpose(2, 3))
        if op.softcap:
            scores = op.softcap * torch.tanh(scores / op.softcap)
        scores = scores.masked_fill(hidden, -torch.inf)
        if op.sinks is not None:
            sinks = self._weights(op.sinks)[:, None, None].expand(windows, -1, length, 1)
            scores = torch.cat((scores, sinks), 3)
        shares = scores.softmax(3)[..., :length]
        return (shares @ v).transpose(1, 2).reshape(windows * length, -1)

    def _activated(self, kind: Activation, x: "torch.Tensor") -> "torch.Tensor":
        from torch.nn.functional import gelu, silu

        if kind == "silu":
            return silu(x)
        if kind not in ("gelu", "gelu_tanh"):
            raise InvalidRequest(f"The activation {kind!r} has no gradients here.")
        return gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")
