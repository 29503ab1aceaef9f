"""Weights of different formats whose products go side by side: Q, K and V of files that keep V with more bits."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from tokenworks.kernels.cuda.products.finish import Finish


class Part(Protocol):
    """A Matrix (weights.py)."""

    out_features: int
    in_features: int
    nbytes: int

    def reserve(self, finish: Finish) -> None: ...

    def multiply(self, x: torch.Tensor, finish: Finish) -> None: ...


class StackedMatrix:
    """One product for each part, into its columns; what adapters add, and a gate, which reads across them, come after
    all."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.out_features = sum(part.out_features for part in parts)
        self.in_features = parts[0].in_features
        self.nbytes = sum(part.nbytes for part in parts)

    def reserve(self, finish: Finish) -> None:
        for part, its in self._each(finish if finish.gate is None else self._apart(len(finish.out), finish)):
            part.reserve(its)

    def multiply(self, x: torch.Tensor, finish: Finish) -> None:
        own = replace(finish, addend=None) if finish.gate is None else self._apart(len(x), finish)
        for part, its in self._each(own):
            part.multiply(x, its)
        if finish.addend is not None:
            finish.addend.add_to(own.out)
        if finish.gate is not None:
            finish.apply(own.out)

    def _apart(self, rows: int, finish: Finish) -> Finish:
        """The bare product in memory of its own."""
        out = torch.empty((rows, self.out_features), dtype=torch.bfloat16, device=finish.out.device)
        return Finish(out, finish.scratch)

    def _each(self, finish: Finish) -> Iterator[tuple[Part, Finish]]:
        at = 0
        for part in self._parts:
            own = slice(at, at + part.out_features)
            yield (
                part,
                replace(
                    finish,
                    out=finish.out[:, own],
                    residual=None if finish.residual is None else finish.residual[:, own],
                    bias=None if finish.bias is None else finish.bias[own],
                ),
            )
            at = own.stop
