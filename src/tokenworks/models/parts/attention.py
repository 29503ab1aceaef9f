"""Grouped-query attention (arXiv 2305.13245) with rotary positions: what most decoders mix their tokens with."""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes, linear, shapes_of
from tokenworks.models.parts.temperature import TEMPERATURE


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
    chunked: bool = False
    """The window begins at a multiple of its length."""
    softcap: float = 0.0
    """0 is off."""
    biased: frozenset[str] = frozenset()
    """Which of q, k, v, o, q_gate have a bias."""
    qk_norm_epsilon: float = 0.0
    """q and k are RMS-normed before they are turned; 0 is off."""
    qk_norm_whole: bool = False
    """Over all heads together, not each alone."""
    norm_weights: bool = True
    """These norms have weights."""
    norms_turned: bool = False
    """q and k are normed when they are turned, not before."""
    v_normed: bool = False
    """v is RMS-normed too, each head alone, without weights."""
    v_is_k: bool = False
    """v is what the map makes for k, before its norm. Only where k has one."""
    source: int | None = None
    """The cache layer whose K and V it reads, which an earlier layer has written (arXiv 2405.12981); None: its own."""
    tempered: bool = False
    """Queries grow with their position: see models/parts/temperature.py."""
    sinks: bool = False
    """Each head has a score that no position has (kernels/program/attention.py: Attend)."""
    gated: bool = False
    """What is read is multiplied by sigmoid(q_gate(x))."""

    @property
    def keeps(self) -> bool:
        return self.source is None

    def mix(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        made = self._maps(b, name, x)
        q, k, v = made["q"], made.get("k"), made.get("v")
        if self.v_is_k:
            v = k
        if v and self.v_normed:
            v = b.rmsnorm(v, None, self.qk_norm_epsilon, group=self.head_size)
        q = self._placed(b, name + "q_norm", q)
        k = k and self._placed(b, name + "k_norm", k)
        if self.tempered:
            q = b.scale_rows(q, b.embed(TEMPERATURE, 1, index="position"))
        read = b.attend(
            q,
            k,
            v,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            sinks=name + "sinks" if self.sinks else None,
            source=self.source,
            chunked=self.chunked,
        )
        return b.gate(made["q_gate"], read, "sigmoid") if self.gated else read

    def _widths(self) -> dict[str, int]:
        """What the maps of x make."""
        q_width, kv_width = self.heads * self.head_size, self.kv_heads * self.head_size
        widths = {"q": q_width}
        if self.source is None:
            widths |= {"k": kv_width} if self.v_is_k else {"k": kv_width, "v": kv_width}
        return widths | ({"q_gate": q_width} if self.gated else {})

    def _maps(self, b: ProgramBuilder, name: str, x: Value) -> dict[str, Value]:
        widths, made, at = self._widths(), {}, 0
        together = linear(b, name, x, tuple(widths), sum(widths.values()), self.biased)
        for which, width in widths.items():
            made[which] = together.columns(at, width)
            at += width
        return made

    def _placed(self, b: ProgramBuilder, norm: str, x: Value) -> Value:
        """q or k, normed and turned."""
        if self.qk_norm_epsilon and not self.norms_turned:
            x = self._normed(b, norm, x)
        if self.rope:
            frequencies = "rope." + self.rope
            b.rope(x, self.head_size, frequencies, turned=self.turned, scale=self.turned_scale, axes=self.axes)
        return self._normed(b, norm, x) if self.norms_turned else x

    def _normed(self, b: ProgramBuilder, norm: str, x: Value) -> Value:
        weight = norm if self.norm_weights else None
        return b.rmsnorm(x, weight, self.qk_norm_epsilon, group=x.width if self.qk_norm_whole else self.head_size)

    def project(self, b: ProgramBuilder, name: str, mixed: Value, width: int) -> Value:
        return linear(b, name, mixed, ("o",), width, self.biased)

    def shapes(self, width: int) -> Shapes:
        widths = self._widths()
        maps = {which: (made, width) for which, made in widths.items()} | {"o": (width, widths["q"])}
        shapes = shapes_of(maps, self.biased & maps.keys())
        if self.qk_norm_epsilon and self.norm_weights:
            normed = [which for which in ("q", "k") if which in widths]
            shapes |= {f"{which}_norm": (widths[which] if self.qk_norm_whole else self.head_size,) for which in normed}
        if self.sinks:
            shapes["sinks"] = (self.heads,)
        return shapes
