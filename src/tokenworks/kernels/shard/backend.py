"""A backend's part in running programs on several ranks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from tokenworks.kernels.adapter import Adaptation, LowRank, check_adaptation
from tokenworks.kernels.backend import Backend, Executable, Float32, Limits, PackedPlace, StepBatch
from tokenworks.kernels.check import describe_weight, needs
from tokenworks.kernels.program import Linear, Program
from tokenworks.kernels.shard.cuts import Cut, Cuts, Shard, cut_of
from tokenworks.kernels.shard.divide import divide
from tokenworks.kernels.tensor import Description, Tensor


@dataclass(frozen=True, slots=True)
class Call:
    """What the first rank is about to do, and all others must do too: a method of Executable."""

    method: str
    arguments: tuple[Any, ...]


Tell = Callable[[Call], None]


def share_of(program: Program, weights: Mapping[str, Tensor], rank: int, ranks: int) -> tuple[Program, Shard]:
    """What a rank runs of a whole program, and its weights. Raises ModelError for what cannot be divided so."""
    wanted = needs(program)

    def described(name: str) -> Description:
        return describe_weight(weights, name, wanted[name])

    part = divide(program, described, rank, ranks)
    return part.program, Shard(weights, part.cuts)


class RankBackend:
    """Compiles its rank's share of whole programs, for `inner`, which meets the other ranks in a Group of its own."""

    def __init__(self, inner: Backend, rank: int, ranks: int, tell: Tell = lambda call: None) -> None:
        """`tell`: the first rank's way to the others, which do what they hear."""
        self.name = inner.name
        self.rank, self.ranks = rank, ranks
        self._inner, self._tell = inner, tell

    def share(self, program: Program, weights: Mapping[str, Tensor]) -> tuple[Program, Shard]:
        """What it would compile."""
        return share_of(program, weights, self.rank, self.ranks)

    def compile(
        self, program: Program, weights: Mapping[str, Tensor], limits: Limits, place: PackedPlace | None = None
    ) -> Executable:
        part, shard = self.share(program, weights)
        shapes = {name: describe_weight(weights, name, wanted).shape for name, wanted in needs(program).items()}
        inner = self._inner.compile(part, shard, limits, place)
        return cast(Executable, RankExecutable(inner, program, shapes, part, shard.cuts, self._tell))


class RankExecutable:
    """One rank's Executable; on the first rank it has the others do the same. What is not here concerns `inner` alone:
    sampling is the first rank's affair."""

    def __init__(
        self,
        inner: Executable,
        whole: Program,
        shapes: Mapping[str, tuple[int, ...]],
        part: Program,
        cuts: Cuts,
        tell: Tell,
    ) -> None:
        self._inner, self._whole, self._shapes, self._cuts, self._tell = inner, whole, shapes, cuts, tell
        self._multiplied = {
            name for step in part.steps for op in step.instructions if isinstance(op, Linear) for name in op.weights
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, batch: StepBatch, part: int | None = None) -> Float32:
        self._tell(Call("run", (replace(batch, inputs=None), part)))
        return self._inner.run(batch, part)

    def run_sequel(self, batch: StepBatch) -> tuple[Float32, Float32]:
        self._tell(Call("run_sequel", (replace(batch, inputs=None),)))
        return self._inner.run_sequel(batch)

    def load_adapter(self, slot: int, adaptation: Adaptation) -> None:
        check_adaptation(self._whole, self._shapes, adaptation)
        self._tell(Call("load_adapter", (slot, dict(adaptation))))
        parts = {}
        for name in self._multiplied:
            cut = self._cuts.get(name)
            source = name if cut is None else cut.source
            if source in adaptation:
                parts[name] = _share(adaptation[source], cut) if cut is not None else adaptation[source]
        self._inner.load_adapter(slot, parts)

    def drop_adapter(self, slot: int) -> None:
        self._tell(Call("drop_adapter", (slot,)))
        self._inner.drop_adapter(slot)


def _share(whole: LowRank, cut: Cut) -> LowRank:
    """Of an adapter of a weight that is cut so."""
    if cut.axis == "rows":
        return replace(whole, up=cut_of(whole.up, cut))
    return replace(whole, down=cut_of(whole.down, cut))
