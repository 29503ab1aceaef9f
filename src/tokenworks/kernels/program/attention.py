"""Rotary positions; attention to a sequence's tokens, and to what it begins with."""

from dataclasses import dataclass

from tokenworks.kernels.program.value import Value


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotates pairs (i, i + turned/2) of every head by position * inverse_frequencies[i] (arXiv 2104.09864), and
    multiplies them by `scale`; a head's columns from `turned` on stay.

    `inverse_frequencies` names a float32 weight of turned/2 elements. In place: output is x.
    With `axes`, one for each frequency, pair i is turned by row axes[i] of StepBatch.axes, if the step has them: a
    token's place in a picture (M-RoPE, arXiv 2409.12191).
    """

    output: Value
    x: Value
    head_size: int
    turned: int
    inverse_frequencies: str
    scale: float
    axes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Attend:
    """Grouped-query attention. softmax(softcap(scale * q·k)) v, heads share K/V in groups of heads / kv_heads.

    With `cache_layer` set, the step's K and V are first written to that layer's cache through the block tables, and a
    token at position p sees positions (p - window, p], or [0, p] when `window` is 0; in place of p + 1 they end where
    StepBatch.ends says, if the step has it. With `cache_layer` None (encoders) every token sees all tokens of its own
    sequence in this step, or with `windows` of its own window (StepBatch.window_starts).
    Of these only the ones less than `window` places away, unless `window` is 0.
    `softcap` 0 is off, else softcap * tanh(s / softcap). `sinks` names a weight [heads]: one more score for each head,
    which takes its share of the softmax and adds nothing (arXiv 2309.17453, learned as in gpt-oss).
    With `latent` other than 0, V is the last `latent` columns of each head of K (so are the columns of `v`) and is kept
    with it, once; out has `latent` columns for each head (arXiv 2405.04434). Only with a cache.
    With k and v None nothing is written: the cache layer is that of another instruction, which has written it already.
    Then q may have the selected rows alone.
    With a cache and `chunked`, the window does not move with the token: it begins at a multiple of its length.
    With a cache, no position before `begin` is seen; with `end` other than 0 all in [begin, end) are, whatever the
    token's own, which must be behind them.
    """

    output: Value
    q: Value
    k: Value | None
    v: Value | None
    cache_layer: int | None
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    window: int
    softcap: float
    windows: bool = False
    sinks: str | None = None
    portion: tuple[int, int] = (0, 1)
    """(i, n): the i-th of n portions of the rows alone; together all rows. So that a run can pause between them."""
    latent: int = 0
    begin: int = 0
    end: int = 0
    chunked: bool = False

    @property
    def value_size(self) -> int:
        """Columns of a head's result."""
        return self.latent or self.head_size


@dataclass(frozen=True, slots=True)
class Keep:
    """Writes K and V of the step's rows to the layer's cache, at their positions.

    For what a sequence begins with and does not come from its tokens: a decoder's attention to its encoder (arXiv
    1706.03762, 3.2.3) is over such K and V.
    """

    k: Value
    v: Value
    cache_layer: int
