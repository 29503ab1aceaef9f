"""Small programs and steps for the kernels' tests."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tokenworks.kernels.backend import Backend, Executable, Float32, Limits, StepBatch
from tokenworks.kernels.program import Program, ProgramBuilder, Value
from tokenworks.kernels.tensor import Tensor


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    found = {}
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array, np.float32)
        found[name] = Tensor(name, "F32", flat.shape, flat.reshape(-1).view(np.uint8))
    return found


def limits(**changes: object) -> Limits:
    values: dict[str, object] = {
        "step_tokens": 600, "sequences": 40, "logit_rows": 600, "blocks": 200, "block_tokens": 16,
        "cache_dtype": "float32", "threads": 2,
    }  # fmt: skip
    return Limits(**(values | changes))  # type: ignore[arg-type]


def step(
    parts: Sequence[tuple[Sequence[int], int]], tables: Sequence[Sequence[int]] | None = None, *, columns: int = 1
) -> StepBatch:
    """A step of sequences, each given as (token ids, position of the first); all rows are wanted."""
    tokens = [token for ids, _ in parts for token in ids]
    positions = [first + i for ids, first in parts for i in range(len(ids))]
    starts = np.cumsum([0] + [len(ids) for ids, _ in parts])
    table = np.full((len(parts), max([columns, *(len(t) for t in tables or [])])), -1, np.int32)
    for s, blocks in enumerate(tables or []):
        table[s, : len(blocks)] = blocks
    rows = np.arange(len(tokens), dtype=np.int32)
    return StepBatch(np.array(tokens, np.int32), np.array(positions, np.int32), starts.astype(np.int32), table, rows)


def program_of(width: int, body: Callable[[ProgramBuilder, Value], Value]) -> Program:
    """`body` of the rows of table "x", by token id."""
    builder = ProgramBuilder()
    return builder.finish(body(builder, builder.embed("x", width)))


def compiled(backend: Backend, program: Program, arrays: Mapping[str, np.ndarray], **changes: object) -> Executable:
    return backend.compile(program, tensors(arrays), limits(**changes))


def run(executable: Executable, batch: StepBatch) -> Float32:
    """A copy, which outlives the next step."""
    return executable.run(batch).copy()
