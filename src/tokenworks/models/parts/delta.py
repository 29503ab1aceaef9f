"""Gated delta nets (arXiv 2412.06464): a state that maps keys to values, and is corrected by what it gets wrong.

Queries, keys and values go through a short convolution; each head of values decays its state by a step of its own, and
moves it by a rate. What it reads is RMS-normed in each head, then gated.
"""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes, linear


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNet:
    """Weights: queries, keys, values, gate_z, rates, steps, out; conv, over the first three side by side; decay
    (negative), step_bias; scan_weight, the norm's."""

    heads: int
    """Of values, each with a state of its own; they share queries and keys in groups."""
    key_heads: int
    key_size: int
    value_size: int
    kernel: int
    """Tokens that the short convolution sees."""
    norm_epsilon: float
    alternating: bool = False
    """Heads take queries and keys in turn: head h those of h % key_heads, not of h // (heads / key_heads)."""

    def _widths(self) -> dict[str, int]:
        keys, values = self.key_heads * self.key_size, self.heads * self.value_size
        return {
            "queries": keys, "keys": keys, "values": values, "gate_z": values, "rates": self.heads, "steps": self.heads,
        }  # fmt: skip

    keeps = True

    def mix(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        widths = self._widths()
        made = linear(b, name, x, tuple(widths), sum(widths.values()), frozenset())
        keys, values = widths["keys"], widths["values"]
        qkv = b.short_convolution(made.columns(0, 2 * keys + values), name + "conv", None, self.kernel)
        gate_at = 2 * keys + values
        read = b.delta_rule(
            qkv.columns(0, keys),
            qkv.columns(keys, keys),
            qkv.columns(2 * keys, values),
            made.columns(gate_at + values + self.heads, self.heads),
            made.columns(gate_at + values, self.heads),
            decay=name + "decay",
            step_bias=name + "step_bias",
            heads=self.heads,
            key_heads=self.key_heads,
            alternating=self.alternating,
        )
        normed = b.rmsnorm(read, name + "scan_weight", self.norm_epsilon, group=self.value_size)
        return b.gate(made.columns(gate_at, values), normed, "silu")

    def project(self, b: ProgramBuilder, name: str, mixed: Value, width: int) -> Value:
        return linear(b, name, mixed, ("out",), width, frozenset())

    def shapes(self, width: int) -> Shapes:
        widths = self._widths()
        convolved = 2 * widths["keys"] + widths["values"]
        return {
            **{name: (rows, width) for name, rows in widths.items()},
            "out": (width, widths["values"]),
            "conv": (convolved, self.kernel),
            "decay": (self.heads,),
            "step_bias": (self.heads,),
            "scan_weight": (self.value_size,),
        }
