"""Queries that grow with the logarithm of their position, so that attention to a long context does not fade (arXiv
2501.19399; Llama 4's way of it)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TEMPERATURE = "rope.temperature"
"""The name of the factors by position. Like rotary frequencies they follow from the config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature:
    floor: float
    """Positions within so many have the same factor."""
    growth: float

    def factors(self, context_tokens: int) -> npt.NDArray[np.float32]:
        """[context_tokens, 1]"""
        positions = np.arange(context_tokens, dtype=np.float64)
        factors: npt.NDArray[np.float64] = 1.0 + self.growth * np.log1p(np.floor((positions + 1.0) / self.floor))
        return factors[:, None].astype(np.float32)
