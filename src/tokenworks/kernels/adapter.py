"""Low-rank adapters (LoRA, arXiv 2106.09685): what a fine-tuned model adds to some weights of its base model."""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenworks.kernels.program import Linear, Program
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError

MOST_RANK = 256
ADAPTER_FORMATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class LowRank:
    """The weight W [out_features, in_features] counts as W + scale * up @ down."""

    down: Tensor
    """[rank, in_features]"""
    up: Tensor
    """[out_features, rank]"""
    scale: float


Adaptation = Mapping[str, LowRank]
"""An adapter: what it does to weights, by name."""


def check_adaptation(program: Program, shapes: Mapping[str, tuple[int, ...]], adaptation: Adaptation) -> None:
    """Raises ModelError naming the first weight that `program` does not multiply with, or whose share does not fit.
    `shapes`: of the program's weights."""
    multiplied = {name for op in program.instructions if isinstance(op, Linear) for name in op.weights}
    for name, share in adaptation.items():
        if name not in multiplied:
            raise ModelError(f"The adapter changes {name!r}, which is no linear map of this model that can be adapted.")
        out_features, in_features = shapes[name]
        rank = share.down.shape[0]
        if share.down.shape != (rank, in_features) or share.up.shape != (out_features, rank):
            raise ModelError(
                f"The adapter's tensors {share.down.name!r} {list(share.down.shape)} and {share.up.name!r} "
                f"{list(share.up.shape)} do not fit {name!r}, which is {[out_features, in_features]}."
            )
        if not 0 < rank <= MOST_RANK:
            raise ModelError(
                f"The adapter's tensor {share.down.name!r} has rank {rank}; 1 to {MOST_RANK} are supported."
            )
        for tensor in (share.down, share.up):
            if tensor.format not in ADAPTER_FORMATS:
                raise ModelError(
                    f"The adapter's tensor {tensor.name!r} has type {tensor.format}; "
                    f"{', '.join(ADAPTER_FORMATS)} are supported."
                )
