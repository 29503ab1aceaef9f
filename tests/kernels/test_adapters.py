"""Low-rank adapters on the CPU against the reference: many in one step, each row as if it were alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from kernel_support import compiled, limits, program_of, step, tensors

from tokenworks.kernels.adapter import LowRank
from tokenworks.kernels.backend import Executable, Float32, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError

WIDTH, INNER, TOKENS = 50, 37, 60
RNG = np.random.default_rng(4)
SHAPES = {"a": (INNER, WIDTH), "b": (21, WIDTH), "c": (WIDTH, INNER + 21), "head": (33, WIDTH)}
ARRAYS = {"x": RNG.standard_normal((TOKENS, WIDTH))} | {
    name: RNG.standard_normal(shape) / shape[1] ** 0.5 for name, shape in SHAPES.items()
}
RANKS = {0: 3, 1: 16, 2: 40, 5: 256}
"""Of the adapters, by slot."""


def body(b: ProgramBuilder, x: Value) -> Value:
    stacked = b.linear(x, ["a", "b"], INNER + 21)
    x = b.add(x, b.linear(stacked, ["c"], WIDTH))
    return b.linear(b.select_rows(x), ["head"], 33)


PROGRAM = program_of(WIDTH, body)


def tensor(name: str, form: str, *shape: int) -> Tensor:
    values = (RNG.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    if form == "F16":
        return Tensor(name, form, shape, values.astype(np.float16).reshape(-1).view(np.uint8))
    data = values.reshape(-1).view(np.uint8)
    return Tensor(name, form, shape, data if form == "F32" else data.reshape(-1, 4)[:, 2:].copy().reshape(-1))


def adaptation(form: str, rank: int, names: Sequence[str] = tuple(SHAPES)) -> dict[str, LowRank]:
    return {
        name: LowRank(tensor("A", form, rank, SHAPES[name][1]), tensor("B", form, SHAPES[name][0], rank), 0.8)
        for name in names
    }


def adapted(backend: CpuBackend | ReferenceBackend, adaptations: dict[int, dict[str, LowRank]]) -> Executable:
    model = compiled(backend, PROGRAM, ARRAYS)
    for slot, maps in adaptations.items():
        model.load_adapter(slot, maps)
    return model


def batch_of(parts: Sequence[tuple[Sequence[int], int]]) -> StepBatch:
    """Sequences of (tokens, slot); of each every second row is wanted, and the last."""
    batch = step([(tokens, 0) for tokens, _ in parts])
    ends = batch.row_starts[1:] - 1
    rows = sorted({*range(0, len(batch.tokens), 2), *ends.tolist()})
    return replace(batch, adapters=np.array([slot for _, slot in parts], np.int32), logit_rows=np.array(rows, np.int32))


MIXED = [([1, 2, 3], 1), ([4], -1), ([5, 6, 7, 8, 9, 10, 11], 5), ([12], 0), ([13, 14], 2), ([15], 1), ([16], -1)]


@pytest.mark.parametrize("form", ["F32", "F16", "BF16"])
def test_equals_the_reference(form: str) -> None:
    maps = {slot: adaptation(form, rank) for slot, rank in RANKS.items()}
    got, want = (adapted(b(), maps).run(batch_of(MIXED)).copy() for b in (CpuBackend, ReferenceBackend))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())
    base = adapted(ReferenceBackend(), {}).run(replace(batch_of(MIXED), adapters=None))
    rows = batch_of(MIXED).logit_rows.tolist()
    changed = (np.abs(want - base).max(axis=1) > 0.1).tolist()
    slots = [slot for tokens, slot in MIXED for _ in tokens]
    assert changed == [slots[row] >= 0 for row in rows]


def test_is_the_sum_of_the_weight_and_the_product() -> None:
    maps = adaptation("F32", 7)
    merged = {"x": ARRAYS["x"]}
    for name, share in maps.items():
        down, up = (side.data.view(np.float32).reshape(side.shape) for side in (share.down, share.up))
        merged[name] = ARRAYS[name] + share.scale * up @ down
    batch = batch_of([([1, 2, 3, 4], 3)])
    want = compiled(ReferenceBackend(), PROGRAM, merged).run(replace(batch, adapters=None))
    for backend in (CpuBackend(), ReferenceBackend()):
        np.testing.assert_allclose(adapted(backend, {3: maps}).run(batch), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_has_the_same_bits_whoever_is_beside_it(threads: int) -> None:
    maps = {slot: adaptation("BF16", rank) for slot, rank in RANKS.items()}
    maps[2].pop("a")  # an adapter may leave weights as they are
    model = compiled(CpuBackend(), PROGRAM, ARRAYS, threads=threads)
    for slot, each in maps.items():
        model.load_adapter(slot, each)

    def rows_of(parts: Sequence[tuple[Sequence[int], int]]) -> Float32:
        batch = batch_of(parts)
        everything = np.arange(len(batch.tokens), dtype=np.int32)
        return model.run(replace(batch, logit_rows=everything)).copy()

    together = rows_of(MIXED)
    alone = np.concatenate([rows_of([([token], slot)]) for tokens, slot in MIXED for token in tokens])
    np.testing.assert_array_equal(together, alone)
    same = rows_of([([token], 5) for token in range(40)])
    np.testing.assert_array_equal(same, rows_of([(range(40), 5)]))
    np.testing.assert_array_equal(rows_of([([4], -1)]), model.run(replace(batch_of([([4], -1)]), adapters=None)))


WIDE, SPLIT = 96, 56


def quantised_model(backend: CpuBackend | ReferenceBackend, threads: int = 1) -> Executable:
    """Of Q8_0 weights, with the adapters of RANKS."""

    def body(b: ProgramBuilder, x: Value) -> Value:
        stacked = b.linear(x, ["a", "b"], WIDE)
        x = b.add(x, b.linear(stacked, ["c"], WIDE))
        return b.linear(b.select_rows(x), ["head"], 33)

    shapes = {"a": (SPLIT, WIDE), "b": (WIDE - SPLIT, WIDE), "c": (WIDE, WIDE), "head": (33, WIDE)}
    rng = np.random.default_rng(8)
    weights = tensors({"x": rng.standard_normal((TOKENS, WIDE))})
    for name, (outputs, inputs) in shapes.items():
        blocks = np.empty((outputs * inputs // 32, 34), np.uint8)
        blocks[:, :2] = np.float16([0.002]).view(np.uint8)
        blocks[:, 2:] = rng.integers(-127, 128, (len(blocks), 32), dtype=np.int8).view(np.uint8)
        weights[name] = Tensor(name, "Q8_0", (outputs, inputs), blocks.reshape(-1))
    model = backend.compile(program_of(WIDE, body), weights, limits(threads=threads))
    for slot, rank in RANKS.items():
        made = np.random.default_rng(rank)
        maps = {}
        for name, (outputs, inputs) in shapes.items():
            down, up = (
                (made.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
                for shape in ((rank, inputs), (outputs, rank))
            )
            sides = [Tensor("side", "F32", each.shape, each.view(np.uint8).reshape(-1)) for each in (down, up)]
            maps[name] = LowRank(sides[0], sides[1], 0.8)
        model.load_adapter(slot, maps)
    return model


def test_beside_quantised_weights_they_are_of_eight_bits() -> None:
    got, want = (quantised_model(b()).run(batch_of(MIXED)).copy() for b in (CpuBackend, ReferenceBackend))
    error = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    assert error.max() < 0.03
    alone = adapted(CpuBackend(), {slot: adaptation("F32", rank) for slot, rank in RANKS.items()})
    assert quantised_model(CpuBackend()).adapter_bytes < alone.adapter_bytes  # for all that its maps are larger


@pytest.mark.parametrize("threads", [1, 3])
def test_beside_quantised_weights_a_row_has_the_same_bits_whoever_is_beside_it(threads: int) -> None:
    model = quantised_model(CpuBackend(), threads)

    def rows_of(parts: Sequence[tuple[Sequence[int], int]]) -> Float32:
        batch = batch_of(parts)
        return model.run(replace(batch, logit_rows=np.arange(len(batch.tokens), dtype=np.int32))).copy()

    alone = np.concatenate([rows_of([([token], slot)]) for tokens, slot in MIXED for token in tokens])
    np.testing.assert_array_equal(rows_of(MIXED), alone)
    np.testing.assert_array_equal(rows_of([([t], 5) for t in range(40)]), rows_of([(range(40), 5)]))


@pytest.mark.parametrize("backend", [CpuBackend(), ReferenceBackend()], ids=lambda each: each.name)
def test_slots_are_filled_again_and_emptied(backend: CpuBackend | ReferenceBackend) -> None:
    first, second = adaptation("F32", 5), adaptation("F32", 200, ["c"])
    model = adapted(backend, {0: first, 1: second})
    batch = [batch_of([([1, 2, 3], slot)]) for slot in (0, 1, -1)]
    of_first, of_second, plain = (model.run(each).copy() for each in batch)
    model.load_adapter(0, second)
    np.testing.assert_array_equal(model.run(batch[0]), of_second)
    model.load_adapter(1, first)
    np.testing.assert_array_equal(model.run(batch[1]), of_first)
    model.drop_adapter(0)
    model.drop_adapter(0)
    np.testing.assert_array_equal(model.run(batch[1]), of_first)
    np.testing.assert_array_equal(model.run(batch[2]), plain)
    assert model.adapter_bytes > 0
    model.drop_adapter(1)
    assert model.adapter_bytes == 0
    with pytest.raises((ValueError, KeyError)):
        model.run(batch[0])


def refused(share: LowRank, name: str = "a") -> str:
    with pytest.raises(ModelError) as error:
        adapted(CpuBackend(), {0: {name: share}})
    return error.value.message


def test_what_does_not_fit_is_named() -> None:
    fits = adaptation("F32", 4, ["a"])["a"]
    assert "'x', which is no linear map" in refused(fits, "x")
    assert "do not fit 'b', which is [21, 50]" in refused(fits, "b")
    wide = LowRank(tensor("A", "F32", 257, WIDTH), tensor("B", "F32", INNER, 257), 1.0)
    assert "'A' has rank 257; 1 to 256" in refused(wide)
    blocks = replace(fits, down=Tensor("A", "Q8_0", (4, WIDTH), np.zeros(8, np.uint8)))
    assert "'A' has type Q8_0" in refused(blocks)
