"""Products of FP8 (E4M3) with FP8: for checkpoints that round activations so, and only for steps so large that what
counts is arithmetic, of which Hopper's tensor cores do twice as much as in bfloat16.

Each token has a scale of its own, its largest number over E4M3's; each row of weights has one. The weights' words
(block_codings.py, E4M3 by row) are plain codes, two to a word, whose columns lie in another order within each 32; the
activations are brought into the same order while they are rounded, so nothing is unpacked.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.products.block_layout import Packed
from tokenworks.kernels.cuda.products.finish import Finish
from tokenworks.kernels.cuda.sizes import power_of_2

LARGEST: tl.constexpr = tl.constexpr(448.0)
UNIT = 16
"""cuBLAS and CUTLASS want rows and columns in such multiples."""
FIRST_CAPABILITY = (8, 9)
"""Of chips that have E4M3, be it only to keep numbers in it."""


@cache
def runs_fp8(device: torch.device) -> bool:
    """Whether PyTorch multiplies FP8 with a scale for each row here, and rightly: which chips, from which version on,
    is for it to say, so a small product is tried."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return False
    numbers = torch.arange(64 * 64, device=device).view(64, 64)
    x, weights = ((numbers * factor % 5 - 2).to(torch.float8_e4m3fn) for factor in (7, 11))
    scales = torch.exp2(torch.arange(64, device=device) % 3).float()
    out = torch.empty(64, 64, dtype=torch.bfloat16, device=device)
    try:
        _multiply(x, weights, scales, scales, out)
    except RuntimeError:
        return False
    wanted = (x.double() * scales[:, None]) @ (weights.double() * scales[:, None]).t()
    return bool(torch.equal(out.double(), wanted))  # whole numbers, which bfloat16 holds


def multiply_fp8(x: torch.Tensor, weights: Packed, finish: Finish) -> None:
    """x: [M, K], columns contiguous, float32 or bfloat16. The product is rounded to bfloat16."""
    codes, scales = rounded(x, weights.words.shape[1])
    product = finish.scratch.product(len(x), len(weights.words), torch.bfloat16)
    _multiply(codes, weights.words.view(torch.float8_e4m3fn), scales, weights.row_scales, product)
    if finish.addend is not None:
        finish.addend.add_to(product)
    finish.apply(product)


def _multiply(
    x: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor, row_scales: torch.Tensor, out: torch.Tensor
) -> None:
    """x [M, K], weights [N, K]; out [M, N] bfloat16."""
    torch._scaled_mm(x, weights.t(), scales[:, None], row_scales[None, :], out_dtype=torch.bfloat16, out=out)


def rounded(x: torch.Tensor, words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, 2 * words] E4M3, in the order of the weights' words, zeros behind the last column; and [M] float32, what they
    are multiples of."""
    rows, columns = x.shape
    codes = torch.empty((rows, 2 * words), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    _round[(rows,)](
        x, codes, scales, x.stride(0), columns, 2 * words,
        RUNS=power_of_2(words // 16), num_warps=4 if columns <= 4096 else 16,
    )  # fmt: skip
    return codes, scales


@triton.jit
def _round(x, codes, scales, x_stride, columns, padded, RUNS: tl.constexpr):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    run, half, word = tl.arange(0, RUNS)[:, None, None], tl.arange(0, 2), tl.arange(0, 16)
    at = run * 32 + half[None, :, None] * 16 + word[None, None, :]
    numbers = tl.load(x + row * x_stride + at, mask=at < columns, other=0.0).to(tl.float32)
    largest = tl.max(tl.max(tl.max(tl.abs(numbers), 2), 1), 0)
    scale = tl.where(largest > 0.0, largest / LARGEST, 1.0)
    tl.store(scales + row, scale)
    ordered = tl.permute((numbers / scale).to(tl.float8e4nv), (0, 2, 1))
    to = run * 32 + word[None, :, None] * 2 + half[None, None, :]
    tl.store(codes + row * padded + to, ordered, mask=to < padded)
