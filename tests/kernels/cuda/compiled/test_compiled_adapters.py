"""What adapters launch in an 8B model's step, and the products that take it in, as they are compiled."""

import pytest

pytest.importorskip("triton")

from compile_gate import assert_compiles, launches_of
from kernel_launches import INNER, META, SILU, WIDTH, addend, empty, matrix

from tokenworks.kernels.cuda.products.block_codings import E2M1_16
from tokenworks.kernels.cuda.products.blocks import FUSED_ROWS
from tokenworks.kernels.cuda.products.dense import Bf16Matrix
from tokenworks.kernels.cuda.products.finish import Finish
from tokenworks.kernels.cuda.scratch import Scratch


def test_a_product_of_decodes_takes_it_in() -> None:
    x = empty(32, WIDTH)
    finish = Finish(empty(32, INNER), Scratch(META), gate=SILU, addend=addend(x))
    shrink, expand, product = launches_of(lambda: Bf16Matrix(empty(2 * INNER, WIDTH)).multiply(x, finish))
    machine = assert_compiles(shrink)
    assert machine.async_copies >= 16, "down comes ahead of the products"
    assert machine.narrow_products > 0 < assert_compiles(expand).narrow_products
    machine = assert_compiles(product)
    assert machine.wide_products > 0
    assert machine.shared_bytes <= 113 * 1024, "two programs on a multiprocessor"


def test_so_does_one_of_few_bits() -> None:
    x = empty(FUSED_ROWS, WIDTH)
    finish = Finish(empty(FUSED_ROWS, INNER), Scratch(META), gate=SILU, addend=addend(x))
    *_, product = launches_of(lambda: matrix(E2M1_16, 2 * INNER).multiply(x, finish))
    assert assert_compiles(product).wide_products > 0


def test_prompts_have_it_added() -> None:
    _, expand = launches_of(lambda: addend(empty(4096, WIDTH)).add_to(empty(4096, 2 * INNER)))
    assert_compiles(expand)
