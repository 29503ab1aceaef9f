"""Every kernel of the backend, launched as a model of 8B launches it, or one that needs it: on meta tensors, so that
sizes are those of the model. A new kernel belongs here: test_every_kernel.py compiles all for every chip."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from tokenworks.kernels.backend import RowChange
from tokenworks.kernels.cuda.adapters.adapt import BLOCK_ROWS, AdaptedRows, LowRankAddend, Room, Table
from tokenworks.kernels.cuda.attention.launch import Seen, Shape, attend
from tokenworks.kernels.cuda.attention.place import HeadPart, Places, Rotation, place
from tokenworks.kernels.cuda.elements.gate import gate
from tokenworks.kernels.cuda.elements.norm import Groups, norm
from tokenworks.kernels.cuda.elements.rows import gather, take_drawn
from tokenworks.kernels.cuda.experts.blocks import PackedStack, multiply_packed
from tokenworks.kernels.cuda.experts.dense import multiply_dense
from tokenworks.kernels.cuda.experts.pairs import Blocks, PairProduct
from tokenworks.kernels.cuda.experts.routing import route, sort_pairs
from tokenworks.kernels.cuda.products import block_codings
from tokenworks.kernels.cuda.products.block_codings import Coding
from tokenworks.kernels.cuda.products.block_layout import Packed
from tokenworks.kernels.cuda.products.blocks import BlockMatrix
from tokenworks.kernels.cuda.products.dense import skinny
from tokenworks.kernels.cuda.products.finish import Finish, Gated
from tokenworks.kernels.cuda.products.fp8 import rounded
from tokenworks.kernels.cuda.recurrent.convolution import short_convolution
from tokenworks.kernels.cuda.recurrent.launch import delta_rule, selective_scan
from tokenworks.kernels.cuda.recurrent.states import States
from tokenworks.kernels.cuda.sampling.change import change_rows
from tokenworks.kernels.cuda.sampling.logprobs import logprobs
from tokenworks.kernels.cuda.sampling.sample import sample
from tokenworks.kernels.cuda.scratch import Scratch
from tokenworks.kernels.program import Attend, Route, Value

META = torch.device("meta")
WIDTH, INNER, QKV, VOCABULARY = 4096, 14336, 6144, 262144
NOWHERE = Value(0, 0, 1, 1)
SILU = Gated("silu", 0.0, 0.0)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def numbers(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.float32)


def whole(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.int32)


def gate_up(rows: int) -> None:
    skinny(empty(rows, WIDTH), empty(2 * INNER, WIDTH), Finish(empty(rows, INNER), Scratch(META), gate=SILU))


def down(rows: int) -> None:
    out = numbers(rows, WIDTH)
    skinny(empty(rows, INNER), empty(WIDTH, INNER), Finish(out, Scratch(META), residual=out))


def attention(
    head: int,
    group: int,
    splits: int,
    *,
    cache: torch.dtype = torch.bfloat16,
    latent: int = 0,
    prompt: bool = False,
) -> None:
    kv_heads = 1 if latent else 8
    heads = kv_heads * group
    op = Attend(NOWHERE, NOWHERE, NOWHERE, NOWHERE, 0, heads, kv_heads, head, 0.1, 0, 0.0, latent=latent)
    shape = Shape(heads, kv_heads, head, op.value_size, head - latent if latent else 0)
    seen = Seen(whole(8), whole(8), whole(8), None, None, whole(65536), whole(4))
    keys = empty(100, kv_heads, 16, head, dtype=cache)
    given = (shape, seen, empty(8, heads * head), empty(8, heads * op.value_size), keys, keys, None)
    tiles, tokens = (whole(9, 2), shape.tile_tokens) if prompt else (None, 1)
    attend(*given, tiles, Scratch(META), op, tile_tokens=tokens, splits=splits)


def heads_to_their_places() -> None:
    places = Places(whole(8), whole(8), whole(65536), whole(4), None)
    qkv, keys, weight = empty(8, QKV), empty(100, 8, 16, 128), numbers(128)
    q, k = (HeadPart(qkv[:, at : at + width], weight, 1e-5, True, True) for at, width in ((0, 4096), (4096, 1024)))
    v, rotation = HeadPart(qkv[:, 5120:]), Rotation(numbers(64), 1.0, None)
    place(128, places, rotation, q, qkv[:, :4096], k, v, keys, keys)


def experts(height: int) -> None:
    blocks = Blocks(height, whole(16 * height), whole(16))
    product = PairProduct(empty(8, 2048), empty(48, 1408), blocks, 6, None, "gate", SILU)
    multiply_dense(product, empty(64, 2 * 1408, 2048))


def matrix(coding: Coding, rows: int = WIDTH, columns: int = WIDTH) -> BlockMatrix:
    runs = -(-columns // coding.weights)
    words = empty(rows, runs * coding.run, dtype=torch.int16)
    return BlockMatrix(Packed(coding, columns, words, whole(rows, runs) if coding.scaled else None, numbers(rows)))


def packed_product(coding: Coding, tokens: int, gate: Gated | None = None) -> None:
    out = empty(tokens, WIDTH // 2 if gate else WIDTH)
    matrix(coding).multiply(empty(tokens, WIDTH), Finish(out, Scratch(META), gate=gate))


def packed_experts() -> None:
    """Of gpt-oss-20b: MXFP4, 32 experts; rows that are no whole steps."""
    height = 16
    stack = PackedStack(matrix(block_codings.E2M1_32, 32 * 5760, 2880).weights, 32)
    blocks = Blocks(height, whole(16 * height), whole(16))
    product = PairProduct(empty(64, 2880), empty(64, 2880), blocks, 4, None, "gate", Gated("silu", 7.0, 1.0))
    multiply_packed(product, stack)


def states(size: int) -> States:
    return States(numbers(64, size), whole(9), whole(8), whole(9), whole(8), whole(8))


def convolution() -> None:
    x = numbers(8, 8192)
    short_convolution(states(3 * 8192), x, x, numbers(8192, 4), None, activated=True)


def delta(rows: int) -> None:
    x, qk, narrow, heads = numbers(rows, 32 * 128), numbers(rows, 16 * 128), numbers(rows, 32), numbers(32)
    how = {"key_heads": 16, "alternating": False}
    delta_rule(states(32 * 128 * 128), x, qk, qk, x, narrow, narrow, heads, heads, **how)


def scan(rows: int, state: int = 128) -> None:
    x, heads, narrow, bc = numbers(rows, 64 * 64), numbers(64), numbers(rows, 64), numbers(rows, 8 * state)
    how = {"groups": 8, "step_range": (0.0, 9.0)}
    selective_scan(states(64 * state * 64), x, x, bc, bc, narrow, heads, heads, heads, **how)


def addend(x: torch.Tensor) -> LowRankAddend:
    """Of 16 adapters of rank 64 to gate and up."""
    table, room, blocks = Table(16, 64, (INNER, INNER), WIDTH, META), Room(META), len(x) // BLOCK_ROWS + 16
    room.reserve(*table.numbers(len(x)))
    return LowRankAddend(table, AdaptedRows(whole(len(x)), whole(blocks, BLOCK_ROWS), whole(blocks)), x, room)


def draw(rows: int, vocabulary: int) -> None:
    floats = [numbers(rows) for _ in range(4)]
    sample(numbers(rows, vocabulary), floats[0], whole(rows), *floats[1:], whole(rows))


def measure() -> None:
    logprobs(numbers(64, VOCABULARY), whole(64), numbers(64), whole(64), whole(64, 20), numbers(64, 20))


def changed_logits() -> None:
    some = np.ones(5, np.float32)
    change_rows(numbers(64, VOCABULARY), [RowChange(3, np.arange(5, dtype=np.int32), some, some, np.ones(9, np.int32))])


def routed() -> None:
    """As DeepSeek-V3's are."""
    op = Route(NOWHERE, NOWHERE, 8, "sigmoid", True, 2.5, "bias", 8, 4, 2)
    route(op, numbers(32, 16), numbers(32, 256), numbers(256), None)


def few_pairs(experts: int = 256) -> None:
    sort_pairs(numbers(32, 16), empty(experts, dtype=torch.int64), experts, 16)


LAUNCHES: dict[str, Callable[[], object]] = {
    "product, gate and up": partial(gate_up, 32),
    "large product's end": lambda: Finish(empty(64, INNER), Scratch(META), gate=SILU).apply(empty(64, 2 * INNER)),
    "attention, decode": partial(attention, 128, 4, 8),
    "attention, prompt": partial(attention, 128, 4, 1, prompt=True),
    "attention, heads of 256": partial(attention, 256, 4, 8),
    "attention, latent": partial(attention, 576, 128, 8, latent=512),
    "adapters": lambda: addend(empty(32, WIDTH)).added(),
    "norm": lambda: norm(numbers(8, WIDTH), empty(8, WIDTH), numbers(WIDTH), None, Groups(WIDTH, False, 1e-5)),
    "changed logits": changed_logits,
    "unseen tokens": lambda: take_drawn(whole(64), whole(64)),
    "rows of a table": lambda: gather(empty(128256, WIDTH), whole(8), numbers(8, WIDTH)),
    "heads to their places": heads_to_their_places,
    "gate": lambda: gate(numbers(8, INNER), numbers(8, INNER), empty(8, INNER), "gelu_tanh", 0.0, 0.0),
    "experts, many pairs": partial(experts, 64),
    "NVFP4 product": partial(packed_product, block_codings.E2M1_16, 64),
    "NVFP4 written out": lambda: matrix(block_codings.E2M1_16).dequantise(empty(WIDTH, WIDTH)),
    "MXFP4 experts": packed_experts,
    "activations in FP8": lambda: rounded(empty(512, 14336), 14336 // 2),
    "short convolution": convolution,
    "routes": routed,
    "pairs in blocks": few_pairs,
    "delta rule": partial(delta, 8),
    "delta rule, prompt": partial(delta, 512),
    "selective scan": partial(scan, 8),
    "selective scan, prompt": partial(scan, 512),
    "sampling": partial(draw, 64, VOCABULARY),
    "log-probabilities": measure,
}
"""For every chip."""

VARIANTS: dict[str, Callable[[], object]] = {
    "product, down": partial(down, 32),
    "experts, few pairs": partial(experts, 16),
    "pairs of 512 experts": partial(few_pairs, 512),  # Qwen3-Next
    "selective scan, prompt, states of 256 rows": partial(scan, 512, 256),  # Falcon-H1
    "sampling, one row of a small vocabulary": partial(draw, 1, 4096),
}
"""Of the same kernels, for Hopper."""
