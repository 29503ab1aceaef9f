"""Grouped-query attention (arXiv 2305.13245) with rotary positions: what most decoders mix their tokens with."""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts import Shapes, linear, shapes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Heads share K and V in groups of heads / kv_heads. Weights: q, k, v, o; q_norm, k_norm; sinks; q_gate."""

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    """Scores are multiplied by it before the softmax."""
    rope: str
    """Which of the model's rotary encodings turns q and k; "": none does."""
    turned: int
    """How many columns of a head it turns."""
    axes: tuple[int, ...] = ()
    """For each pair of those, along which axis its position runs (M-RoPE); empty: there is one position only."""
    turned_scale: float = 1.0
    """These are multiplied by it."""
    window: int = 0
    """A token sees so many positions up to its own; 0: all."""
    softcap: float = 0.0
    """0 is off."""
    biased: frozenset[str] = frozenset()
    """Which of q, k, v, o, q_gate have a bias."""
    qk_norm_epsilon: float = 0.0
    """q and k are RMS-normed before they are turned; 0 is off."""
    qk_norm_whole: bool = False
    """Over all heads together, not each alone."""
    sinks: bool = False
    """Each head has a score that no position has (kernels/program/attention.py: Attend)."""
    gated: bool = False
    """What is read is multiplied by sigmoid(q_gate(x))."""

    def mix(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        size, q_width, kv_width = self.head_size, self.heads * self.head_size, self.kv_heads * self.head_size
        maps = ("q", "k", "v", "q_gate") if self.gated else ("q", "k", "v")
        qkv = linear(b, name, x, maps, q_width + 2 * kv_width + self.gated * q_width, self.biased)
        q, k, v = qkv.columns(0, q_width), qkv.columns(q_width, kv_width), qkv.columns(q_width + kv_width, kv_width)
        if self.qk_norm_epsilon:
            q = b.rmsnorm(q, name + "q_norm", self.qk_norm_epsilon, group=q_width if self.qk_norm_whole else size)
            k = b.rmsnorm(k, name + "k_norm", self.qk_norm_epsilon, group=kv_width if self.qk_norm_whole else size)
        if self.rope:
            frequencies = "rope." + self.rope
            q = b.rope(q, size, frequencies, turned=self.turned, scale=self.turned_scale, axes=self.axes)
            k = b.rope(k, size, frequencies, turned=self.turned, scale=self.turned_scale, axes=self.axes)
        read = b.attend(
            q,
            k,
            v,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=size,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            sinks=name + "sinks" if self.sinks else None,
        )
        return b.gate(qkv.columns(q_width + 2 * kv_width, q_width), read, "sigmoid") if self.gated else read

    def project(self, b: ProgramBuilder, name: str, mixed: Value, width: int) -> Value:
        return linear(b, name, mixed, ("o",), width, self.biased)

    def shapes(self, width: int) -> Shapes:
        q_width, kv_width = self.heads * self.head_size, self.kv_heads * self.head_size
        maps = {"q": (q_width, width), "k": (kv_width, width), "v": (kv_width, width), "o": (width, q_width)}
        if self.gated:
            maps["q_gate"] = (q_width, width)
        shapes = shapes_of(maps, self.biased)
        if self.qk_norm_epsilon:
            whole = self.qk_norm_whole
            shapes["q_norm"] = (q_width if whole else self.head_size,)
            shapes["k_norm"] = (kv_width if whole else self.head_size,)
        if self.sinks:
            shapes["sinks"] = (self.heads,)
        return shapes
