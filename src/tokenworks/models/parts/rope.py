"""Rotary positions (arXiv 2104.09864) and the ways in which they are stretched for longer contexts."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3:
    """Llama 3.1 (arXiv 2407.21783): wavelengths beyond original_tokens / low are slowed by `factor`, those under
    original_tokens / high stay, between them it is mixed."""

    factor: float
    low: float
    high: float
    original_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Yarn:
    """YaRN (arXiv 2309.00071): pairs that turn more than `fast` times within the original context stay, those that
    turn less than `slow` times are slowed by `factor`, between them it is mixed."""

    factor: float
    fast: float
    slow: float
    original_tokens: int
    whole: bool
    """The border pairs are rounded outwards to whole ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRope:
    """LongRoPE (arXiv 2402.13753): each pair is slowed by a divisor of its own, [size / 2] of them, and by others when
    the context goes beyond the original one."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportional:
    """Gemma 4's p-RoPE: the first pairs turn as they would in a whole head, the others stand still."""

    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """One rotary encoding of a model."""

    size: int
    """How many columns of a head are turned."""
    base: float
    factor: float = 1.0
    """All frequencies are slowed by it."""
    stretched: Llama3 | Yarn | LongRope | Proportional | None = None
    divisors: tuple[float, ...] = ()
    """[size / 2], or empty: what a GGUF file has in place of `stretched`."""
    scale: float = 1.0
    """The turned columns are multiplied by it: what YaRN and LongRoPE call the attention factor."""

    def inverse_frequencies(self, context_tokens: int) -> npt.NDArray[np.float32]:
        """[size / 2] radians per position, for sequences of up to `context_tokens`."""
        inverse = self.base ** (-np.arange(0, self.size, 2, dtype=np.float64) / self.size) / self.factor
        match self.stretched:
            case Llama3() as s:
                turns = s.original_tokens * inverse / (2 * np.pi)  # whole turns within the original context
                kept = np.clip((turns - s.low) / (s.high - s.low), 0.0, 1.0)
                inverse = inverse * (kept + (1 - kept) / s.factor)
            case Yarn() as s:
                kept = 1 - _ramp(self._pair(s, s.fast), self._pair(s, s.slow), self.size, s.whole)
                inverse = inverse * (kept + (1 - kept) / s.factor)
            case Proportional(pairs=pairs):
                inverse[pairs:] = 0.0
            case LongRope() as s:
                inverse = inverse / np.asarray(s.long if context_tokens > s.original_tokens else s.short)
        if self.divisors:
            inverse = inverse / np.asarray(self.divisors)
        return inverse.astype(np.float32)

    def _pair(self, s: Yarn, turns: float) -> float:
        """The pair, counted in fractions, that turns so many times within the original context."""
        return self.size * math.log(s.original_tokens / (turns * 2 * math.pi)) / (2 * math.log(self.base))


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """How much sharper attention is made for a context `factor` times as long (arXiv 2309.00071, section 3.4)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _ramp(low: float, high: float, size: int, whole: bool) -> Float64:
    """[size / 2] from 0 at pair `low` to 1 at pair `high`."""
    if whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    return np.clip((np.arange(size // 2) - low) / (high - low), 0.0, 1.0)
