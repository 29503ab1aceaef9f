"""Do these weights fit this program? Every backend asks, so that a bad file gets one clear error."""

from collections.abc import Mapping, Sequence

from tokenworks.kernels.program import (
    Attend,
    DeltaRule,
    Embed,
    Experts,
    LayerNorm,
    Linear,
    LinearHeads,
    MixStreams,
    Multiply,
    Program,
    RmsNorm,
    Rope,
    Route,
    SelectiveScan,
    ShortConvolution,
)
from tokenworks.kernels.program.recurrent import weights_of
from tokenworks.kernels.tensor import Description, Tensor, describe
from tokenworks.protocol.errors import ModelError

MOST_EXPERTS, MOST_CHOSEN = 1024, 64
"""Of one layer: what backends are ready for."""

Shape = tuple[int, ...]
Wanted = tuple[int | None, ...]
"""A shape, outermost first, with None where the program does not say."""


def needs(program: Program) -> dict[str, list[Wanted]]:
    """Every weight of the program in the order of first use, with the shape that each use wants."""
    found: dict[str, list[Wanted]] = {}

    def need(weight: str, *shape: int | None) -> None:
        found.setdefault(weight, []).append(shape)

    for instruction in (each for step in program.steps for each in step.instructions):
        match instruction:
            case Embed(output=output, table=table):
                need(table, None, output.width)
            case RmsNorm(x=x, weight=str(weight), group=group, wide=wide):
                need(weight, x.width if wide else group)
            case LayerNorm(x=x, weight=weight, bias=bias):
                for name in filter(None, (weight, bias)):
                    need(name, x.width)
            case Linear(x=x, weights=weights, biases=biases):
                for name in weights:
                    need(name, None, x.width)
                for name in filter(None, biases):
                    need(name, None)
            case LinearHeads(weights=weights):
                for name in weights:
                    need(name, instruction.outputs, instruction.inputs)
            case Rope(turned=turned, inverse_frequencies=inverse_frequencies, axes=axes):
                assert len(axes) in (0, turned // 2), "an axis for each frequency"
                need(inverse_frequencies, turned // 2)
            case Attend(heads=heads, sinks=str(sinks)):
                need(sinks, heads)
            case Route(x=x, bias=bias, expert_scales=scales):
                for name in filter(None, (bias, scales)):
                    need(name, x.width)
            case Multiply(x=x, weight=weight, wide=wide):
                need(weight, x.width if wide else 1)
            case MixStreams():
                assert (
                    instruction.x.width % instruction.inputs == 0 == instruction.coefficients.width % instruction.inputs
                )
            case Experts(x=x, output=output, inner=inner):
                for expert in instruction.experts:
                    for name in filter(None, (expert.up, expert.gate)):
                        need(name, inner, x.width)
                    for name in filter(None, (expert.up_bias, expert.gate_bias)):
                        need(name, inner)
                    need(expert.down, output.width, inner)
                    if expert.down_bias is not None:
                        need(expert.down_bias, output.width)
            case ShortConvolution(x=x, weight=weight, bias=bias, kernel=kernel):
                need(weight, x.width, kernel)
                for name in filter(None, (bias,)):
                    need(name, x.width)
            case SelectiveScan(heads=heads) | DeltaRule(heads=heads):
                for name in weights_of(instruction):
                    need(name, heads)
            case _:
                pass
    return found


def look_up(weights: Mapping[str, Tensor], name: str, wanted: Sequence[Wanted]) -> Tensor:
    """The weight, which may be made in this very moment: keep what comes, ask once. Raises ModelError when it is
    missing or of another shape."""
    tensor = weights.get(name)
    if tensor is None:
        raise _missing(name)
    check_shape(name, tensor.shape, wanted)
    return tensor


def describe_weight(weights: Mapping[str, Tensor], name: str, wanted: Sequence[Wanted]) -> Description:
    """What looking it up will give, without making it where that can be said. Raises ModelError as `look_up` does."""
    what = describe(weights, name)
    if what is None:
        raise _missing(name)
    check_shape(name, what.shape, wanted)
    return what


def _missing(name: str) -> ModelError:
    return ModelError(f"The checkpoint has no weight {name!r}, which its architecture needs.")


def check_shape(name: str, shape: Shape, wanted: Sequence[Wanted]) -> None:
    """Raises ModelError when `shape` is not what every use wants."""
    for want in wanted:
        if len(shape) != len(want) or any(w not in (None, got) for w, got in zip(want, shape, strict=True)):
            expected = ", ".join("any" if size is None else str(size) for size in want)
            raise ModelError(f"The weight {name!r} has shape {list(shape)}; expected [{expected}].")


def check_operations(program: Program, shapes: Mapping[str, Shape]) -> None:
    """Raises ModelError when the weights of a product do not make its output, or a router cannot choose as it is told.
    `shapes`: of every weight."""
    for instruction in (each for step in program.steps for each in step.instructions):
        if isinstance(instruction, Linear):
            _check_product(instruction, shapes)
        elif isinstance(instruction, Route):
            _check_route(instruction)


def _check_product(linear: Linear, shapes: Mapping[str, Shape]) -> None:
    features = [shapes[name][0] for name in linear.weights]
    if sum(features) != linear.output.width:
        raise ModelError(
            f"The weights {', '.join(linear.weights)} make {sum(features)} output features; "
            f"expected {linear.output.width}."
        )
    for weight, bias, width in zip(linear.weights, linear.biases, features, strict=False):
        if bias is not None and shapes[bias] != (width,):
            raise ModelError(f"The bias {bias!r} has shape {list(shapes[bias])}; {weight!r} needs [{width}].")


def _check_route(route: Route) -> None:
    experts, groups = route.x.width, route.groups
    of_group = experts // groups
    possible = experts % groups == 0 and route.group_best <= of_group and route.kept_groups <= groups
    if not possible or route.top_k > of_group * route.kept_groups:
        raise ModelError(
            f"A router cannot choose {route.top_k} of {experts} experts in {groups} groups, of which "
            f"{route.kept_groups} are kept for their best {route.group_best}."
        )
    if experts > MOST_EXPERTS or max(route.top_k, route.kept_groups, route.group_best) > MOST_CHOSEN:
        raise ModelError(
            f"A router with {experts} experts that chooses {route.top_k} in {groups} groups is not supported: "
            f"there may be {MOST_EXPERTS} experts, and {MOST_CHOSEN} may be chosen."
        )
