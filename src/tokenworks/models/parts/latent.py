"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): K and V of all heads come from one vector.

A token's latent is c = norm(x W_a), and head h would attend with K_h = c W_uk_h beside a rotary key that all heads
share, and with V_h = c W_uv_h. Neither is ever made: q_h K_h = (q_h W_uk_h) c, so queries are taken to where latents
lie ("absorbed"), and W_uv_h is applied to what they mix. To the cache it is one head whose key is [rotary key, latent]
and whose value is the latent. Prompts are run in the same way, though making K and V for a long chunk would be fewer
products: a token's bits must not depend on how its prompt is cut.

Here a head's rotary columns come first, where the paper has them last.
"""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes, linear, shapes_of

NORM_EPSILON = 1e-6
"""Of the latents' norms, whatever the model's is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Weights: q, or q_a, q_a_norm, q_b; kv_a, kv_a_norm; of each head h heads.h.k_up, heads.h.v_up; o."""

    heads: int
    rank: int
    """Of the latent."""
    turned: int
    """Columns of q and k that rotary positions turn."""
    unturned: int
    """Columns of q and k beside them."""
    value_size: int
    scale: float
    """Scores are multiplied by it before the softmax."""
    rope: str
    """Which of the model's rotary encodings."""
    turned_scale: float = 1.0
    """The turned columns are multiplied by it."""
    query_rank: int = 0
    """Queries come from a normed vector of this width; 0: from the input itself."""
    biased: frozenset[str] = frozenset()
    """Which of q_a, kv_a, o have a bias."""
    interleaved: bool = True
    """In files the two rows of a rotary pair are (2i, 2i + 1), not (i, i + turned / 2)."""

    keeps = True

    def mix(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        head, key, frequencies = self.turned + self.unturned, self.turned + self.rank, "rope." + self.rope
        first, width = ("q_a", self.query_rank) if self.query_rank else ("q", self.heads * head)
        both = linear(b, name, x, (first, "kv_a"), width + key, self.biased)
        q, k, latent = both.columns(0, width), both.columns(width, key), both.columns(width + self.turned, self.rank)
        if self.query_rank:
            q = b.linear(b.rmsnorm(q, name + "q_a_norm", NORM_EPSILON), [name + "q_b"], self.heads * head)
        b.rmsnorm(latent, name + "kv_a_norm", NORM_EPSILON, into=latent)
        b.rope(q, head, frequencies, turned=self.turned, scale=self.turned_scale)
        b.rope(k, key, frequencies, turned=self.turned, scale=self.turned_scale)
        q = b.linear_heads(q, self._of_heads(name, "k_up"), self.rank, kept=self.turned)
        return b.attend_latent(q, k, heads=self.heads, head_size=key, latent=self.rank, scale=self.scale)

    def project(self, b: ProgramBuilder, name: str, mixed: Value, width: int) -> Value:
        values = b.linear_heads(mixed, self._of_heads(name, "v_up"), self.value_size)
        return linear(b, name, values, ("o",), width, self.biased)

    def _of_heads(self, name: str, weight: str) -> list[str]:
        return [f"{name}heads.{h}.{weight}" for h in range(self.heads)]

    def shapes(self, width: int) -> Shapes:
        made = self.heads * (self.turned + self.unturned)
        maps = {"q_a": (self.query_rank, width), "q_b": (made, self.query_rank)}
        if not self.query_rank:
            maps = {"q": (made, width)}
        maps |= {"kv_a": (self.turned + self.rank, width), "o": (width, self.heads * self.value_size)}
        shapes = shapes_of(maps, self.biased & maps.keys())
        for h in range(self.heads):
            shapes[f"heads.{h}.k_up"] = (self.rank, self.unturned)
            shapes[f"heads.{h}.v_up"] = (self.value_size, self.rank)
        if self.query_rank:
            shapes["q_a_norm"] = (self.query_rank,)
        shapes["kv_a_norm"] = (self.rank,)
        return shapes
