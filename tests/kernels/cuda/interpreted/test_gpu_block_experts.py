"""Experts' products with packed weights against float64: the definition is kernels/program/experts.py's."""

import numpy as np
import pytest
import torch
from bring import brought
from test_gpu_blocks import random_tensor

from tokenworks.kernels.cuda.experts.blocks import PackedStack
from tokenworks.kernels.cuda.experts.layer import ExpertWeights, experts
from tokenworks.kernels.cuda.products.block_layout import bring_packed
from tokenworks.kernels.formats import dequantise

EXPERTS, WIDTH, INNER, TOP_K = 5, 256, 192, 2


def stacked(name: str, rows: int, columns: int, seed: int) -> tuple[PackedStack, np.ndarray]:
    """Weights of all experts but the last, which is not here."""
    tensors = [random_tensor(name, rows, columns, seed + number) for number in range(EXPERTS - 1)]
    numbers = np.stack([dequantise(tensor) for tensor in tensors]).astype(np.float64)
    return PackedStack(brought(tensors, bring_packed), len(tensors)), numbers


@pytest.mark.parametrize(("name", "tokens"), [("NVFP4", 3), ("MXFP4", 90)])
def test_experts_of_few_bits(name: str, tokens: int) -> None:
    """Few and many rows to an expert, an expert without rows, one that is not here; biases, gates."""
    rng = np.random.default_rng(6)
    (up, up_numbers), (down, down_numbers) = stacked(name, 2 * INNER, WIDTH, 1), stacked(name, WIDTH, INNER, 9)
    up.packed.row_scales.mul_(1 / np.abs(up_numbers).max() / 3)
    down.packed.row_scales.mul_(1 / np.abs(down_numbers).max() / 3)
    up_numbers, down_numbers = up_numbers / np.abs(up_numbers).max() / 3, down_numbers / np.abs(down_numbers).max() / 3
    biases = [
        torch.from_numpy(rng.standard_normal((EXPERTS - 1, width)).astype(np.float32)) for width in (2 * INNER, WIDTH)
    ]
    numbers = torch.tensor([3, 1, 0, 4, 2])  # expert 0 has the fourth weights; 3 is not here
    weights = ExpertWeights(numbers, up, down, *biases, True)
    x = torch.from_numpy(rng.standard_normal((tokens, WIDTH)).astype(np.float32)).to(torch.bfloat16)
    chosen = np.stack([rng.permutation([0, 1, 3])[:TOP_K] for _ in range(tokens)])
    counts = rng.random((tokens, TOP_K)).astype(np.float32)
    routes = torch.from_numpy(np.concatenate([chosen, counts], axis=1).astype(np.float32))
    out = torch.full((tokens, WIDTH), float("nan"))
    experts(x, routes, out, weights, "silu", 0.0, 0.0)
    wanted = np.zeros((tokens, WIDTH))
    for token, place in np.ndindex(tokens, TOP_K):
        at = int(numbers[chosen[token, place]])
        if at == EXPERTS - 1:
            continue
        both = up_numbers[at] @ x[token].double().numpy() + biases[0][at].double().numpy()
        inner = both[:INNER] / (1 + np.exp(-both[:INNER])) * both[INNER:]
        made = down_numbers[at] @ inner + biases[1][at].double().numpy()
        wanted[token] += counts[token, place] * made
    error = np.abs(out.double().numpy() - wanted).max() / np.abs(wanted).max()
    assert error < 4e-3, "only what lies between the two products is rounded to bfloat16"
