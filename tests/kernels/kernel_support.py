"""Small programs and steps for the kernels' tests."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tokenworks.kernels.backend import Backend, Executable, Float32, Limits, StepBatch
from tokenworks.kernels.program import Program, ProgramBuilder, Value
from tokenworks.kernels.reference.sampling import sample_row
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


def may_choose(logits: Float32, token: int, options: tuple[float, int, float, float], uniform: float) -> bool:
    """Whether `token` is the definition's choice, or could be with numbers moved by a rounding. options: temperature,
    top_k, top_p, min_p."""
    temperature, top_k, top_p, min_p = options
    place = np.empty(len(logits), np.int64)
    place[np.argsort(-logits, kind="stable")] = np.arange(len(logits))
    nudges = (0.0, -3e-6, 3e-6)
    for p in nudges:
        for m in nudges:
            first, last = (
                place[sample_row(logits, temperature, top_k, min(1.0, top_p * (1 + p)), min_p * (1 + m), uniform + u)]
                for u in (-3e-6, 3e-6)
            )
            if first <= place[token] <= last:
                return True
    return False


def distribution(kind: str, size: int, rng: np.random.Generator) -> Float32:
    """Logits of some shape: plain, peaked, tied, masked, one, wide."""
    logits = rng.standard_normal(size).astype(np.float32)
    match kind:
        case "peaked":
            logits *= 8
        case "tied":
            logits = np.round(logits * 2)
        case "masked":
            logits[rng.random(size) < 0.9] = -np.inf
            logits[0] = 0.0
        case "one":
            logits[:] = -np.inf
            logits[size // 2] = 1.0
        case "wide":
            logits *= 1e4
    return logits.astype(np.float32)
