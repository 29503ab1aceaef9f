"""What an audit finds."""

from dataclasses import dataclass

from tokenworks.quant.measure import Divergence
from tokenworks.quant.tasks import Marks

STORED = "stored"
"""The precision that a model's file has, whatever it is."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One precision of a model."""

    precision: str
    weights: str
    """The formats its matrices have, that of most numbers first."""
    weight_bytes: int
    """In memory, packed for this machine's kernels."""
    served: Divergence
    """As it is served: 8-bit activations where kernels use them, KV cache of 16 bits."""
    weights_only: Divergence
    """The same weights in float32 arithmetic: what rounding the weights costs by itself."""
    kv_int8: Divergence
    """As served, with a KV cache of 8 bits."""
    marks: Marks
    same_answers: float
    """Share of the tasks where its pick is the reference's."""
    greedy_alike: float
    """Share of its greedy continuations that lies before the first token that differs from the reference's."""
    prefill_tok_s: float
    decode_tok_s: float
    kv_int8_decode_tok_s: float
    caution: str | None
    """Why its figures may look better than they are."""

    @property
    def loss(self) -> float:
        """Perplexity above the reference's, as a share of it."""
        return self.served.perplexity / self.served.reference_perplexity - 1


@dataclass(frozen=True, slots=True)
class Audit:
    """One model's."""

    model: str
    tokens: int
    """Of text that perplexity and divergence were taken over."""
    prompts: int
    """That greedy continuations were taken of."""
    reference_perplexity: float
    reference_marks: Marks
    grid_bits: int | None
    """Of the grid that the stored weights lie on, if it is a known one."""
    kv_bytes_per_token: int
    """Of a KV cache of 16 bits."""
    kv_int8_bytes_per_token: int
    candidates: tuple[Candidate, ...]
    max_loss: float
    """Of perplexity, as a share, that a recommended one may lose."""
    recommended: str
    reasons: dict[str, str]
    """By precision."""
