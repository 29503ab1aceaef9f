"""What the compiler makes of the kernels in which a step's time goes: tensor cores, asynchronous copies, two programs
on a multiprocessor."""

from collections.abc import Callable
from functools import partial

import pytest

pytest.importorskip("triton")

import torch
from compile_gate import Machine, assert_compiles, launches_of
from kernel_launches import attention, down, experts, gate_up


def machine_of(call: Callable[[], object]) -> Machine:
    (launch,) = launches_of(call)
    return assert_compiles(launch)


@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("product", [gate_up, down])
def test_skinny_products_stream_weights_through_the_wide_tensor_cores(
    product: Callable[[int], None], rows: int
) -> None:
    machine = machine_of(partial(product, rows))
    assert machine.wide_products > 0
    assert machine.async_copies >= 16, "weights come ahead of the products, past the registers"
    assert machine.shared_bytes <= 113 * 1024, "two programs on a multiprocessor"


@pytest.mark.parametrize("cache", [torch.bfloat16, torch.float8_e4m3fn])
def test_decoding_attention(cache: torch.dtype) -> None:
    machine = machine_of(partial(attention, 128, 4, 8, cache=cache))
    assert machine.narrow_products > 0
    assert machine.async_copies >= 16


def test_prompts_attention_fills_the_wide_tensor_cores() -> None:
    assert machine_of(partial(attention, 128, 4, 1, prompt=True)).wide_products > 0


def test_heads_that_are_no_power_of_two() -> None:
    assert machine_of(partial(attention, 96, 8, 8)).narrow_products > 0


@pytest.mark.parametrize("height", [16, 64])
def test_experts(height: int) -> None:
    assert machine_of(partial(experts, height)).wide_products > 0
