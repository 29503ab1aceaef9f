"""What adapters launch in an 8B model's step, and the products that take it in, as they are compiled."""

import pytest

pytest.importorskip("triton")

import torch
from compile_gate import CHIPS, assert_compiles, launches_of

from tokenworks.kernels.cuda.adapt import BLOCK_ROWS, AdaptedRows, LowRankAddend, Room, Table
from tokenworks.kernels.cuda.block_codings import E2M1_16
from tokenworks.kernels.cuda.block_layout import Packed
from tokenworks.kernels.cuda.blocks import FUSED_ROWS, BlockMatrix
from tokenworks.kernels.cuda.finish import Finish, Gated, Scratch
from tokenworks.kernels.cuda.products import Bf16Matrix

META = torch.device("meta")
WIDTH, INNER, SLOTS, RANK = 4096, 14336, 16, 64
GATE = Gated("silu", 0.0, 0.0)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def addend(x: torch.Tensor) -> LowRankAddend:
    """Of gate and up."""
    table, room, rows = Table(SLOTS, RANK, (INNER, INNER), WIDTH, META), Room(META), len(x)
    room.reserve(*table.numbers(rows))
    blocks = rows // BLOCK_ROWS + SLOTS
    slots, of_blocks, owners = (
        empty(*shape, dtype=torch.int32) for shape in ((rows,), (blocks, BLOCK_ROWS), (blocks,))
    )
    return LowRankAddend(table, AdaptedRows(slots, of_blocks, owners), x, room)


def test_a_product_of_decodes_takes_it_in() -> None:
    x = empty(32, WIDTH)
    finish = Finish(empty(32, INNER), Scratch(META), gate=GATE, addend=addend(x))
    shrink, expand, product = launches_of(lambda: Bf16Matrix(empty(2 * INNER, WIDTH)).multiply(x, finish))
    hopper = assert_compiles(shrink, CHIPS)
    assert hopper.count("LDGSTS") >= 16, "down comes ahead of the products"
    assert hopper.count("HMMA") > 0 < assert_compiles(expand, [90]).count("HMMA")
    machine = assert_compiles(product, [90])
    assert machine.count("HGMMA") > 0
    assert machine.shared_bytes <= 113 * 1024, "two programs on a multiprocessor"


def test_so_does_one_of_few_bits() -> None:
    x, runs = empty(FUSED_ROWS, WIDTH), WIDTH // E2M1_16.weights
    words, scales = empty(2 * INNER, runs * E2M1_16.run, dtype=torch.int16), empty(2 * INNER, runs, dtype=torch.int32)
    matrix = BlockMatrix(Packed(E2M1_16, WIDTH, words, scales, empty(2 * INNER, dtype=torch.float32)))
    finish = Finish(empty(FUSED_ROWS, INNER), Scratch(META), gate=GATE, addend=addend(x))
    *_, product = launches_of(lambda: matrix.multiply(x, finish))
    assert assert_compiles(product, [90]).count("HGMMA") > 0


def test_prompts_have_it_added() -> None:
    _, expand = launches_of(lambda: addend(empty(4096, WIDTH)).add_to(empty(4096, 2 * INNER)))
    assert_compiles(expand, [90])
