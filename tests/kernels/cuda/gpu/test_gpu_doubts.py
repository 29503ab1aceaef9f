"""What the interpreter cannot show, each by itself, those we are least sure of first."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from bring import brought, sources_of
from chunked_steps import by_graph_and_eagerly

from tokenworks.kernels.backend import Limits, StepBatch
from tokenworks.kernels.cuda.backend import CudaBackend, CudaExecutable
from tokenworks.kernels.cuda.graphs import PADDED_ROWS
from tokenworks.kernels.cuda.loading import Loading
from tokenworks.kernels.cuda.products.blocks import BlockMatrix, pack_blocks
from tokenworks.kernels.cuda.products.dense import multiply_large, skinny
from tokenworks.kernels.cuda.products.finish import Finish, Gated
from tokenworks.kernels.cuda.scratch import Scratch
from tokenworks.kernels.cuda.weights import pack_bf16
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.program import Program, ProgramBuilder
from tokenworks.kernels.tensor import Tensor

GATE = Gated("silu", 0.0, 0.0)


def normal(device: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape)).to(device)


@pytest.mark.parametrize("residual", [True, False])
def test_large_products_are_written_as_float32(device: str, residual: bool) -> None:
    """mm with out_dtype and out, through its own memory and straight to some of a buffer's columns."""
    x, weights = normal(device, 65, 512).bfloat16(), normal(device, 256, 512).bfloat16()
    out = torch.full((65, 320), torch.nan, device=device)[:, 32:288]
    added = normal(device, 65, 256).float() if residual else None
    multiply_large(x, weights, Finish(out, Scratch(torch.device(device)), residual=added))
    wanted = x.double() @ weights.double().T + (0 if added is None else added.double())
    assert (out.double() - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_many_readers_bring_what_is_in_the_file(device: str) -> None:
    """Each through pinned buffers of its own, several of them a weight."""
    rng, rows = np.random.default_rng(5), 6000 if device == "cuda" else 60
    files = [rng.standard_normal((rows, 2048)).astype(np.float16) for _ in range(12)]
    tensors = [Tensor(f"{at}", "F16", file.shape, file.reshape(-1).view(np.uint8)) for at, file in enumerate(files)]
    with Loading(torch.device(device), 8) as loading:
        weights = [pack_bf16([source], loading).weights for source in sources_of(tensors)]
    for file, weight in zip(files, weights, strict=True):
        assert torch.equal(weight.cpu(), torch.from_numpy(file).bfloat16())


@triton.jit
def multiply_add(x, y, z, out, count: tl.constexpr):
    at = tl.arange(0, count)
    args = [tl.load(x + at), tl.load(y + at), tl.load(z + at)]
    assembly: tl.constexpr = "fma.rn.bf16x2 $0, $1, $2, $3;"
    tl.store(out + at, tl.inline_asm_elementwise(assembly, "=r,r,r,r", args, tl.bfloat16, is_pure=True, pack=2))


def test_bfloat16_subnormals_survive_multiply_and_add(device: str) -> None:
    """Codes of few bits are subnormal before their scale makes them numbers."""
    x = torch.arange(256, dtype=torch.int16).view(torch.bfloat16).to(device)
    y, z = torch.full_like(x, 2.0**100), torch.zeros_like(x)
    out = torch.full_like(x, torch.nan)
    multiply_add[(1,)](x, y, z, out, 256)
    torch.testing.assert_close(out.double(), x.double() * 2.0**100, rtol=0, atol=0)
    assert out[1] > 0


def test_all_codes_and_scales_of_nvfp4(device: str) -> None:
    data = np.zeros((256, 36), np.uint8)
    data[:, :4] = np.arange(256)[:, None]
    data[:, 4:] = np.tile(np.arange(32) * 8 + np.arange(32) % 8, (256, 1))
    tensor = Tensor("weight", "NVFP4", (256, 64), data.ravel())
    out = torch.full((256, 64), torch.nan, dtype=torch.bfloat16, device=device)
    blocks_of(tensor, device).dequantise(out)
    np.testing.assert_array_equal(out.float().cpu().numpy(), dequantise(tensor))


def blocks_of(tensor: Tensor, device: str) -> BlockMatrix:
    matrix = brought([tensor], pack_blocks, torch.device(device))
    assert matrix is not None
    return matrix


@pytest.mark.parametrize("form", ["BF16", "NVFP4"])
def test_shares_come_to_the_same_however_often(device: str, form: str) -> None:
    """Counters are zeros again, memory of shares is read as it was written, whoever comes last."""
    rng, repeats = np.random.default_rng(1), 200 if device == "cuda" else 2
    data = rng.integers(0, 256, (1024 * 1024 // 64, 36)).astype(np.uint8)
    data[:, :4] = rng.integers(52, 60, (len(data), 4))
    matrix = blocks_of(Tensor("weight", "NVFP4", (1024, 1024), data.ravel()), device)
    weights, x = normal(device, 1024, 1024).bfloat16(), normal(device, 3, 1024).bfloat16()
    scratch, first = Scratch(torch.device(device)), {}
    for _ in range(repeats):
        for gate in (None, GATE):
            out = torch.full((3, 512 if gate else 1024), torch.nan, device=device)
            finish = Finish(out, scratch, gate=gate)
            matrix.multiply(x, finish) if form == "NVFP4" else skinny(x, weights, finish)
            torch.testing.assert_close(out, first.setdefault(gate, out), rtol=0, atol=0)
    assert scratch._partials.numel() > 0, "no product was cut into shares"
    assert not scratch._counters.any()


def model(width: int = 64) -> tuple[Program, dict[str, Tensor]]:
    """A layer of attention and a head: tells tokens, positions and everything kept apart."""
    rng, b = np.random.default_rng(0), ProgramBuilder()
    arrays = {
        "embed": rng.standard_normal((500, width)),
        "qkv": rng.standard_normal((2 * width, width)) / 8,
        "rope": 10.0 ** -np.arange(8),
        "head": rng.standard_normal((500, width)) / 8,
    }
    x = b.embed("embed", width)
    qkv = b.linear(x, ["qkv"], 2 * width)
    q, k = (b.rope(qkv.columns(at, n), 16, "rope") for at, n in ((0, width), (width, width // 2)))
    v = qkv.columns(3 * width // 2, width // 2)
    heads = {"heads": width // 16, "kv_heads": width // 32, "head_size": 16, "scale": 0.25}
    program = b.finish(b.linear(b.select_rows(b.add(x, b.attend(q, k, v, **heads))), ["head"], 500))
    made = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    return program, {name: Tensor(name, "F32", a.shape, a.reshape(-1).view(np.uint8)) for name, a in made.items()}


def decodes(sequences: int, position: int) -> StepBatch:
    """Each has four blocks of four; its token is a function of its number and the position."""
    tables = (4 * np.arange(sequences)[:, None] + np.arange(4)[::-1]).astype(np.int32)
    every = np.arange(sequences + 1, dtype=np.int32)
    tokens = ((31 * every[:-1] + 7 * position) % 500).astype(np.int32)
    return StepBatch(tokens, np.full(sequences, position, np.int32), every, tables, every[:-1])


def executable(backend: CudaBackend, sequences: int) -> CudaExecutable:
    limits = Limits(max(sequences, 16), sequences, sequences, 4 * sequences, 4, "bfloat16", 1)
    return backend.compile(*model(), limits)


def test_graphs_give_the_bits_of_the_launches_they_are_made_of(backend: CudaBackend, real: None) -> None:
    """Of every padded number of sequences, and of one less, which is filled up."""
    ours = executable(backend, 256)
    for rows in PADDED_ROWS:
        for position in range(3):
            by_graph, eager = by_graph_and_eagerly(ours, decodes(rows, position))
            np.testing.assert_array_equal(by_graph, eager)
            if rows > 1:
                fewer = np.array(ours.run(decodes(rows - 1, position)))
                if rows - 1 not in PADDED_ROWS:
                    np.testing.assert_array_equal(fewer, eager[:-1])
    assert set(PADDED_ROWS) <= set(ours._main.graphs.sizes)


def test_steps_that_nobody_waits_for_do_not_overwrite_each_others_numbers(backend: CudaBackend) -> None:
    """The next step's numbers are laid where the last one's were read from."""
    steps, sequences = (200, 32) if backend._device.type == "cuda" else (4, 3)
    waited, hurried = executable(backend, sequences), executable(backend, sequences)
    order = np.random.default_rng(2).integers(1, sequences + 1, steps)
    for step, rows in enumerate(order):
        hurried.run(decodes(rows, step % 16))
    for step, rows in enumerate(order):
        last = np.array(waited.run(decodes(rows, step % 16)))
    np.testing.assert_array_equal(np.array(hurried.run(decodes(rows, step % 16))), last)
    for kept, others in zip(waited._caches.values(), hurried._caches.values(), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(kept, others, strict=True))


def test_a_table_that_outgrows_its_memory_is_captured_anew(backend: CudaBackend, real: None) -> None:
    ours, step = executable(backend, 8), decodes(8, 3)
    before = np.array(ours.run(step))
    wide = np.pad(step.block_tables, ((0, 0), (0, 20_000)), constant_values=-1)
    again = StepBatch(step.tokens, step.positions, step.row_starts, wide, step.logit_rows)
    np.testing.assert_allclose(np.array(ours.run(again)), before, atol=0.02)
    np.testing.assert_array_equal(np.array(ours.run(step)), before)
