"""From an encoder's rows to a decoder's embeddings. Weights: "vision.connector." and a word of its own."""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts import Shapes


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Neighbours side by side, projected: Idefics 3's (arXiv 2408.12637). Weight: proj."""

    def write(self, b: ProgramBuilder, name: str, x: Value, count: int, width: int, into: Value | None) -> Value:
        return b.linear(b.merge(x, count, "concatenate"), (name + "proj",), width, into=into)

    def shapes(self, encoder_width: int, count: int, width: int) -> Shapes:
        return {"proj": (width, count * encoder_width)}
