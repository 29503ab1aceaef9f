"""A backend's part in running programs on several ranks."""

from collections.abc import Mapping

from tokenworks.kernels.backend import Backend, Executable, Limits, PackedPlace
from tokenworks.kernels.program import Program
from tokenworks.kernels.shard.cuts import Shard
from tokenworks.kernels.shard.divide import divide
from tokenworks.kernels.tensor import Tensor


class RankBackend:
    """Compiles its rank's share of whole programs, for `inner`, which meets the other ranks in a Group of its own."""

    def __init__(self, inner: Backend, rank: int, ranks: int) -> None:
        self.name = inner.name
        self.rank, self.ranks = rank, ranks
        self._inner = inner

    def share(self, program: Program, weights: Mapping[str, Tensor]) -> tuple[Program, Mapping[str, Tensor]]:
        """What it would compile. Raises ModelError for what cannot be divided so."""

        def described(name: str) -> tuple[tuple[int, ...], str]:
            tensor = weights[name]
            return tensor.shape, tensor.format

        part = divide(program, described, self.rank, self.ranks)
        return part.program, Shard(weights, part.cuts)

    def compile(
        self, program: Program, weights: Mapping[str, Tensor], limits: Limits, place: PackedPlace | None = None
    ) -> Executable:
        return self._inner.compile(*self.share(program, weights), limits, place)
