"""Products with weights of few bits, as they are compiled."""

from functools import partial

import pytest

pytest.importorskip("triton")

import torch
from compile_gate import Launch, assert_compiles, launches_of

from tokenworks.kernels.cuda import block_codings
from tokenworks.kernels.cuda.block_codings import Coding
from tokenworks.kernels.cuda.block_experts import PackedStack, launch_packed
from tokenworks.kernels.cuda.block_layout import Packed
from tokenworks.kernels.cuda.blocks import FUSED_ROWS, BlockMatrix
from tokenworks.kernels.cuda.finish import Finish, Gated, Scratch
from tokenworks.kernels.cuda.pairs import Blocks

META = torch.device("meta")


def matrix(coding: Coding, rows: int = 4096, columns: int = 4096) -> BlockMatrix:
    runs = -(-columns // coding.weights)
    words = torch.empty(rows, runs * coding.run, dtype=torch.int16, device=META)
    scales = torch.empty(rows, runs, dtype=torch.int32, device=META) if coding.scaled else None
    return BlockMatrix(Packed(coding, columns, words, scales, torch.empty(rows, device=META)))


def product(coding: Coding, tokens: int, gate: Gated | None = None) -> Launch:
    def call() -> None:
        x = torch.empty(tokens, 4096, dtype=torch.bfloat16, device=META)
        out = torch.empty(tokens, 2048 if gate else 4096, dtype=torch.bfloat16, device=META)
        matrix(coding).multiply(x, Finish(out, Scratch(META), gate=gate))

    (only,) = launches_of(call)
    return only


@pytest.mark.parametrize(
    ("coding", "most", "chips"),
    [
        (block_codings.E2M1_16, 3.7, [90, 120]),
        (block_codings.U4_MIN_32, 2.8, [90]),
        (block_codings.U8_32, 3.3, [90]),
    ],
    ids=lambda value: value.name if isinstance(value, Coding) else "",
)
def test_decoding_leaves_the_memory_at_work(coding: Coding, most: float, chips: list[int]) -> None:
    """Instructions of the loop for each weight; all loads are asynchronous copies; weights come from registers."""
    launch = product(coding, 1)
    machine = assert_compiles(launch, chips)
    loop = machine.loop("HGMMA")
    tile = launch.options["N"] * launch.options["KW"] * coding.codes
    assert 1 < len(loop) / (tile / (32 * launch.options["num_warps"])) < most
    assert not [name for name in loop if name.startswith("LDG.")]
    assert any(name.startswith("LDGSTS") for name in loop)


def test_a_gate_and_many_tokens() -> None:
    machine = assert_compiles(product(block_codings.E2M1_16, FUSED_ROWS, Gated("silu", 0.0, 0.0)), [90])
    assert machine.count("HGMMA") > 0


def test_many_tokens_on_blackwell() -> None:
    """Where a tile that is too large becomes a trap."""
    assert_compiles(product(block_codings.E2M1_16, 64), [100])


def test_dequantising() -> None:
    (launch,) = launches_of(
        lambda: matrix(block_codings.E2M1_16).dequantise(torch.empty(4096, 4096, dtype=torch.bfloat16, device=META))
    )
    assert_compiles(launch, [90])


def test_experts() -> None:
    """Of gpt-oss-20b: MXFP4, 32 experts; rows that are no whole steps."""
    height, coding, whole = 16, block_codings.E2M1_32, partial(torch.empty, dtype=torch.int32, device=META)
    stack = PackedStack(matrix(coding, 32 * 5760, 2880).weights, 32)
    blocks = Blocks(height, whole(16 * height), whole(16))
    x, made = (torch.empty(64, width, dtype=torch.bfloat16, device=META) for width in (2880, 2880))
    how = ("gate", "silu", 7.0, 1.0)
    (launch,) = launches_of(lambda: launch_packed(x, stack, None, made, blocks, None, 4, 2880, how))
    assert assert_compiles(launch, [90]).count("HGMMA") > 0
