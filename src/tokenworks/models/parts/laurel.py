"""Learned augmented residual layers (LAuReL, arXiv 2411.07501), in their low-rank form: beside a layer's mixer, a
narrow linear map of the same input joins the stream."""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Laurel:
    """Weights: laurel_in, laurel_out, laurel_norm."""

    rank: int
    norm_epsilon: float

    def write(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        """Normed [R, width] -> [R, width], x itself included."""
        made = b.linear(b.linear(x, (name + "laurel_in",), self.rank), (name + "laurel_out",), x.width)
        return b.add(x, b.rmsnorm(made, name + "laurel_norm", self.norm_epsilon))

    def shapes(self, width: int) -> Shapes:
        return {"laurel_in": (self.rank, width), "laurel_out": (width, self.rank), "laurel_norm": (width,)}
