"""Low-rank adapters on the GPU backend: what they add against float64, whole steps against the reference, by graph, and
under the engine while adapters come and go.

Bounds: `down x` is rounded to bfloat16 once (2^-9 of it) beside what products round anyway.
"""

import numpy as np
import pytest
import torch
from adapted_model import FORMS, INNER, MIXED, adaptation, batch_of, model, run

from tokenworks.kernels.cuda.adapters.adapt import AdaptedRows, LowRankAddend, Room, Table, blocks_of
from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.cuda.products import blocks
from tokenworks.kernels.cuda.products import dense as products
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.protocol.errors import ModelError

CPU = torch.device("cpu")


def test_what_is_added_is_that_of_each_rows_own_adapter() -> None:
    heights, width, ranks = (37, 150), 600, {0: (3, 0), 2: (16, 100), 3: (70, 5)}
    table, rng = Table(4, 100, heights, width, CPU), np.random.default_rng(1)
    slots = np.array([2, -1, 3, 3, 2, 0, -1, *[3] * 17], np.int32)
    x = torch.from_numpy(rng.standard_normal((len(slots), width)).astype(np.float32)).to(torch.bfloat16)
    right = np.zeros((len(slots), sum(heights)))
    for slot, of_slot in ranks.items():
        for segment, rank in enumerate(of_slot):
            down, up = (
                torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).to(torch.bfloat16)
                for shape in ((rank, width), (heights[segment], rank))
            )
            table.put(slot, segment, down, up, 0.5 + slot)
            columns, whose = slice(37 * segment, 37 + 150 * segment), slots == slot
            made = x[whose].double().numpy() @ down.double().numpy().T @ up.double().numpy().T
            right[whose, columns] = (0.5 + slot) * made
    room = Room(CPU)
    room.reserve(*table.numbers(len(slots)))
    room.added(len(slots), sum(heights))[:] = torch.nan
    blocks, owners = blocks_of(slots, 4)
    rows = AdaptedRows(*(torch.from_numpy(each) for each in (slots, blocks, owners)))
    addend = LowRankAddend(table, rows, x, room)
    added, whose = addend.added()
    has = slots >= 0
    np.testing.assert_array_equal(whose.numpy(), slots)
    error = np.abs(added.numpy()[has] - right[has]).max(axis=1)
    assert (error < 2**-8 * np.abs(right[has]).max(axis=1)).all()
    product = torch.full((len(slots), 200), 7.0)[:, : sum(heights)]
    addend.add_to(product)
    np.testing.assert_allclose(product.numpy()[has] - 7, added.numpy()[has], atol=1e-3)
    assert (product.numpy()[~has] == 7).all()


@pytest.mark.parametrize("rows", ["few", "many"])
@pytest.mark.parametrize("forms", FORMS)
def test_steps_of_many_adapters_equal_the_reference(forms: str, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if rows == "many":  # what larger steps run
        monkeypatch.setattr(products, "SKINNY_ROWS", 0)
        monkeypatch.setattr(blocks, "FUSED_ROWS", 0)
    ours, theirs = model(CudaBackend("cpu"), forms), model(ReferenceBackend(), forms)
    made, right = run(ours, MIXED), run(theirs, MIXED)
    np.testing.assert_allclose(made, right, rtol=0, atol=0.012 * np.ptp(right))
    without = run(theirs, [(tokens, -1) for tokens, _ in MIXED])
    assert (np.abs(without - right).max(axis=1) > 0.05 * np.ptp(right)).sum() == 8, "adapters make a difference"


@pytest.mark.parametrize("forms", ["bf16", "packed"])
def test_alone_is_as_among_others(forms: str) -> None:
    ours = model(CudaBackend("cpu"), forms)
    together = run(ours, MIXED)
    wanted = batch_of(MIXED).logit_rows.tolist()
    each = [([token], slot) for tokens, slot in MIXED for token in tokens]
    for at in (wanted.index(row) for row in (0, 8)):
        np.testing.assert_array_equal(run(ours, [each[wanted[at]]])[0], together[at])


def test_slots_are_filled_again_and_emptied() -> None:
    ours = model(CudaBackend("cpu"), "packed", slots=[0])
    first, second, plain = ([([1], slot)] for slot in (0, 1, -1))
    of_first, of_nobody, least = run(ours, first), run(ours, plain), ours.adapter_bytes
    with pytest.raises(ValueError, match="no adapter in slot 1"):
        run(ours, second)
    ours.load_adapter(1, adaptation(1, ["down"]))
    np.testing.assert_array_equal(run(ours, first), of_first)
    of_second = run(ours, second)
    ours.load_adapter(0, adaptation(1, ["down"]))
    np.testing.assert_array_equal(run(ours, first), of_second)
    ours.load_adapter(0, adaptation(0))
    np.testing.assert_array_equal(run(ours, first), of_first)
    ours.drop_adapter(1)
    ours.drop_adapter(1)
    np.testing.assert_array_equal(run(ours, first), of_first)
    assert ours.adapter_bytes > least > 0
    ours.drop_adapter(0)
    assert ours.adapter_bytes == 0
    np.testing.assert_array_equal(run(ours, plain), of_nobody)
    with pytest.raises(ModelError, match="'x', which is no linear map"):
        ours.load_adapter(0, {"x": adaptation(0, ["a"])["a"]})


def test_no_room_for_another_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = model(CudaBackend("cpu"), "bf16", slots=[0])
    of_first, put = run(ours, [([1, 2, 3], 0)]), Table.put

    def lacking(self: Table, slot: int, segment: int, *given: object) -> None:
        if self.width == INNER:
            raise torch.OutOfMemoryError("none left")
        put(self, slot, segment, *given)

    monkeypatch.setattr(Table, "put", lacking)
    with pytest.raises(ModelError, match=r"no room for another adapter \(adapter_slots, cache_mb\): none left"):
        ours.load_adapter(1, adaptation(1))
    monkeypatch.setattr(Table, "put", put)
    np.testing.assert_array_equal(run(ours, [([1, 2, 3], 0)]), of_first)
    with pytest.raises(ValueError, match="no adapter in slot 1"):
        run(ours, [([1, 2, 3], 1)])


def fail(*given: object) -> None:
    raise torch.OutOfMemoryError("none left")


def test_graphs_of_steps_with_adapters(captured: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (model(backend, "bf16", slots=[0, 1]) for backend in (CudaBackend("cpu"), ReferenceBackend()))
    ours._make_graphs(None)

    def decodes(*slots: int, rows: int = 1) -> None:
        parts = [(range(5 + 2 * at, 5 + 2 * at + rows), slot) for at, slot in enumerate(slots)]
        right = run(theirs, parts)
        np.testing.assert_allclose(run(ours, parts), right, rtol=0, atol=0.012 * np.ptp(right))

    decodes(0, -1, 1)
    decodes(1, 1, 0, -1)
    assert len(captured) == 1, "whatever the mix"
    decodes(-1, -1, -1)
    decodes(0, -1, rows=2)
    assert len(captured) == 2, "without adapters there is another"
    for each in (ours, theirs):
        each.load_adapter(1, adaptation(3) | adaptation(1, ["a"]))
    decodes(0, 1, 1)
    assert len(captured) == 2, "the table has room"
    for each in (ours, theirs):
        each.load_adapter(2, adaptation(0) | adaptation(1, ["a"]))
    decodes(0, 2, 1)
    assert len(captured) == 3, "it has moved"
    decodes(-1, -1, -1)
    assert len(captured) == 3, "those without do not read it"
    decodes(0, 2, 1, 0, 1)
    monkeypatch.setattr(Table, "__init__", fail)
    with pytest.raises(ModelError, match="no room"):
        ours.load_adapter(4, adaptation(0))
    decodes(1, -1, 0, 2, 2)
    assert len(captured) == 5, "arrays lie where so many slots have them, though there was no room for tables"
