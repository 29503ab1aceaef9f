"""Products with weights of few bits, as they are compiled."""

from functools import partial

import pytest

pytest.importorskip("triton")

from compile_gate import Launch, assert_compiles, launches_of
from kernel_launches import LAUNCHES, SILU, packed_product

from tokenworks.kernels.cuda.products import block_codings
from tokenworks.kernels.cuda.products.block_codings import Coding
from tokenworks.kernels.cuda.products.blocks import FUSED_ROWS
from tokenworks.kernels.cuda.products.finish import Gated


def product(coding: Coding, tokens: int, gate: Gated | None = None) -> Launch:
    (only,) = launches_of(partial(packed_product, coding, tokens, gate))
    return only


@pytest.mark.parametrize(
    ("coding", "most"),
    [(block_codings.E2M1_16, 3.7), (block_codings.U4_MIN_32, 2.8), (block_codings.U8_32, 3.3)],
    ids=lambda value: value.name if isinstance(value, Coding) else "",
)
def test_decoding_leaves_the_memory_at_work(coding: Coding, most: float) -> None:
    """Instructions of the loop for each weight; all loads are asynchronous copies; weights come from registers."""
    launch = product(coding, 1)
    loop = assert_compiles(launch).loop("HGMMA")
    tile = launch.options["N"] * launch.options["KW"] * coding.codes
    assert 1 < len(loop) / (tile / (32 * launch.options["num_warps"])) < most
    assert not [name for name in loop if name.startswith("LDG.")]
    assert any(name.startswith("LDGSTS") for name in loop)


def test_many_tokens_and_experts_use_the_wide_tensor_cores() -> None:
    (of_experts,) = launches_of(LAUNCHES["MXFP4 experts"])
    for launch in (product(block_codings.E2M1_16, FUSED_ROWS, SILU), of_experts):
        assert assert_compiles(launch).wide_products > 0
