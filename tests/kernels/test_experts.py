"""Routing and experts on the CPU against the reference, in every weight format, whoever shares a token's experts."""

import numpy as np
import pytest
from kernel_support import compiled, limits, program_of, run, step, tensors

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import FORMATS
from tokenworks.kernels.program import Expert, Program, ProgramBuilder, Value
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError

ROWS = 40
RNG = np.random.default_rng(1)
ROUTES = {
    "softmax": {"normalise": False},
    "softmax of the chosen": {"normalise": True},
    "sigmoid": {"normalise": True, "score": "sigmoid", "scale": 2.5, "bias": "b"},
    "weighed": {"normalise": True, "expert_scales": "b"},
    "groups by their two best": {
        "normalise": True, "score": "sigmoid", "bias": "b", "groups": 6, "kept_groups": 2, "group_best": 2,
    },
    "groups by their best": {"normalise": False, "scale": 16.0, "groups": 4, "kept_groups": 3},
}  # fmt: skip


@pytest.mark.parametrize("how", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_routes(top_k: int, how: dict[str, object]) -> None:
    experts = 24
    arrays = {"x": RNG.standard_normal((ROWS, experts)) * 2, "b": RNG.standard_normal(experts) * 0.3}
    arrays["x"][5] = 1.0  # ties: the lower number first
    program = program_of(experts, lambda b, x: b.route(x, top_k, **how))  # type: ignore[arg-type]
    batch = step([(range(ROWS), 0)])
    got, want = (run(compiled(backend(), program, arrays), batch) for backend in (CpuBackend, ReferenceBackend))
    np.testing.assert_array_equal(got[:, :top_k], want[:, :top_k])
    np.testing.assert_allclose(got[:, top_k:], want[:, top_k:], rtol=2e-5)


def test_a_route_that_cannot_be_is_refused() -> None:
    program = program_of(8, lambda b, x: b.route(x, 5, normalise=True, groups=4, kept_groups=2))
    with pytest.raises(ModelError, match="cannot choose 5"):
        compiled(CpuBackend(), program, {"x": np.zeros((2, 8))})


WIDTH, INNER, EXPERTS, TOP_K = 64, 96, 7, 3


def layer(b: ProgramBuilder, x: Value, here: range = range(EXPERTS), gated: bool = True, biased: bool = False) -> Value:
    names = [
        Expert(
            e, f"{e}.gate" if gated else None, f"{e}.up", f"{e}.down",
            *((f"{e}.gate.b", f"{e}.up.b", f"{e}.down.b") if biased else ()),
        )
        for e in here
    ]  # fmt: skip
    routes = b.route(b.linear(x, ["router"], EXPERTS), TOP_K, normalise=True)
    clamps = {"limit": 1.5, "offset": 1.0} if biased else {}
    activation = "gelu_quick" if biased else "silu"
    return b.experts(x, routes, names, INNER, activation, count=EXPERTS, **clamps)


def weights(format_name: str = "F32") -> dict[str, Tensor]:
    arrays = {"x": RNG.standard_normal((ROWS, WIDTH)), "router": RNG.standard_normal((EXPERTS, WIDTH)) / 4}
    for e in range(EXPERTS):
        arrays |= {f"{e}.{m}.b": RNG.standard_normal(n) for m, n in (("gate", INNER), ("up", INNER), ("down", WIDTH))}
    found = tensors(arrays)
    for e in range(EXPERTS):
        for name, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER))):
            found[f"{e}.{name}"] = random_tensor(f"{e}.{name}", format_name, shape)
    return found


def random_tensor(name: str, format_name: str, shape: tuple[int, int]) -> Tensor:
    """Any codes, and scales that leave the numbers near one."""
    if format_name in ("F32", "F16"):
        values = RNG.standard_normal(shape).astype(np.float32 if format_name == "F32" else np.float16) / 8
        return Tensor(name, format_name, shape, values.reshape(-1).view(np.uint8))
    form = FORMATS[format_name]
    blocks = RNG.integers(0, 256, (shape[0] * shape[1] // form.block_elements, form.block_bytes), np.uint8)
    if format_name == "I8":
        scales = RNG.uniform(0.0005, 0.002, shape[0]).astype(np.float32)
        return Tensor(name, format_name, shape, blocks.reshape(-1), scales)
    scale_bytes = {"MXFP4": [122], "NVFP4": [34] * 4}.get(format_name)
    if scale_bytes is None:  # float16 scale, and minimum
        halves = [0.02, -0.1] if format_name == "Q4_1" else [0.02 if format_name == "Q4_0" else 0.001]
        scale_bytes = np.array(halves, np.float16).view(np.uint8).tolist()
    blocks[:, : len(scale_bytes)] = scale_bytes
    return Tensor(name, format_name, shape, blocks.reshape(-1))


KINDS = ["F32", "F16", "Q4_0", "Q4_1", "Q8_0", "MXFP4", "I8"]


@pytest.mark.parametrize("format_name", KINDS)
def test_equals_the_reference(format_name: str) -> None:
    program, found = program_of(WIDTH, layer), weights(format_name)
    batch = step([(range(ROWS), 0)])
    got, want = (b.compile(program, found, limits()).run(batch).copy() for b in (CpuBackend(), ReferenceBackend()))
    # Quantised weights mean inputs of 8 bits.
    tolerance = 2e-5 if FORMATS[format_name].block_elements == 1 and format_name != "I8" else 0.03
    assert np.abs(got - want).max() < tolerance * np.abs(want).max()


@pytest.mark.parametrize(("gated", "biased"), [(True, True), (False, False)])
def test_biases_clamps_and_experts_without_a_gate(gated: bool, biased: bool) -> None:
    program, found = program_of(WIDTH, lambda b, x: layer(b, x, gated=gated, biased=biased)), weights()
    batch = step([(range(ROWS), 0)])
    got, want = (b.compile(program, found, limits()).run(batch).copy() for b in (CpuBackend(), ReferenceBackend()))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("format_name", ["F32", "Q4_0", "Q4_1", "Q8_0", "MXFP4"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_token_has_the_same_bits_whoever_shares_its_experts(format_name: str, threads: int) -> None:
    program, found = program_of(WIDTH, layer), weights(format_name)
    together = CpuBackend().compile(program, found, limits()).run(step([(range(ROWS), 0)])).copy()
    model = CpuBackend().compile(program, found, limits(threads=threads))
    for rows in ([0], [39], [3, 17], [*range(20, 29)], [7] * 33, [*range(39, -1, -1)]):
        np.testing.assert_array_equal(model.run(step([(rows, 0)])), together[rows])


def test_a_device_may_hold_some_of_the_experts() -> None:
    """The parts of two devices add up to the whole."""
    found, batch = weights(), step([(range(ROWS), 0)])
    parts = [
        run(CpuBackend().compile(program_of(WIDTH, lambda b, x, here=here: layer(b, x, here)), found, limits()), batch)  # type: ignore[misc]
        for here in (range(3), range(3, EXPERTS), range(EXPERTS))
    ]
    np.testing.assert_allclose(parts[0] + parts[1], parts[2], rtol=0, atol=1e-5)
    assert not np.allclose(parts[0], parts[2], atol=0.1)


def test_uses_are_counted() -> None:
    def twice(b: ProgramBuilder, x: Value) -> Value:
        return layer(b, layer(b, x))

    program: Program = program_of(WIDTH, twice)
    found = weights()
    counts = []
    for backend in (CpuBackend(), ReferenceBackend()):
        model = backend.compile(program, found, limits())
        model.run(step([(range(ROWS), 0)]))
        model.run(step([([4], 0)]))
        counts.append(model.expert_uses())
    assert counts[0] == counts[1]
    assert [sum(layer_counts) for layer_counts in counts[0]] == [TOP_K * (ROWS + 1)] * 2


def test_shapes_are_checked_and_named() -> None:
    found = weights()
    found["2.down"] = found["2.up"]
    with pytest.raises(ModelError, match=r"'2.down' has shape \[96, 64\]; expected \[64, 96\]"):
        CpuBackend().compile(program_of(WIDTH, layer), found, limits())


def test_rows_are_scaled_by_a_column() -> None:
    arrays = {"x": RNG.standard_normal((ROWS, 41))}
    program = program_of(41, lambda b, x: b.scale_rows(x.columns(1, 40), x.columns(0, 1)))
    got = run(compiled(CpuBackend(), program, arrays), step([(range(ROWS), 0)]))
    table = arrays["x"].astype(np.float32)
    np.testing.assert_array_equal(got, table[:, 1:] * table[:, :1])
