"""Do these weights fit this program? Every backend asks before it packs anything: a bad file gets one clear error."""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenworks.kernels.program import Attend, Embed, Experts, LayerNorm, Linear, Program, RmsNorm, Rope, Route
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError

MOST_EXPERTS, MOST_CHOSEN = 1024, 64
"""Of one layer: what backends are ready for."""


@dataclass(frozen=True, slots=True)
class Need:
    """One use of a weight: its shape, outermost first, with None where the program does not say."""

    weight: str
    shape: tuple[int | None, ...]


def needs(program: Program) -> list[Need]:
    """Every use of a weight, in the order of the instructions."""
    found: list[Need] = []
    for instruction in program.instructions:
        match instruction:
            case Embed(output=output, table=table):
                found.append(Need(table, (None, output.width)))
            case RmsNorm(weight=weight, group=group):
                found.append(Need(weight, (group,)))
            case LayerNorm(x=x, weight=weight, bias=bias):
                found += [Need(name, (x.width,)) for name in (weight, bias) if name is not None]
            case Linear(x=x, weights=weights, biases=biases):
                found += [Need(weight, (None, x.width)) for weight in weights]
                found += [Need(bias, (None,)) for bias in biases if bias is not None]
            case Rope(turned=turned, inverse_frequencies=inverse_frequencies, axes=axes):
                assert len(axes) in (0, turned // 2), "an axis for each frequency"
                found.append(Need(inverse_frequencies, (turned // 2,)))
            case Attend(heads=heads, sinks=str(sinks)):
                found.append(Need(sinks, (heads,)))
            case Route(x=x, bias=str(bias)):
                found.append(Need(bias, (x.width,)))
            case Experts():
                found += _of_experts(instruction)
            case _:
                pass
    return found


def _of_experts(op: Experts) -> list[Need]:
    found = []
    for expert in op.experts:
        inwards = [(expert.up, expert.up_bias)] + ([(expert.gate, expert.gate_bias)] if expert.gate is not None else [])
        for weight, bias in inwards:
            found.append(Need(weight, (op.inner, op.x.width)))
            found += [Need(bias, (op.inner,))] if bias is not None else []
        found.append(Need(expert.down, (op.output.width, op.inner)))
        found += [Need(expert.down_bias, (op.output.width,))] if expert.down_bias is not None else []
    return found


def check_weights(program: Program, weights: Mapping[str, Tensor]) -> None:
    """Raises ModelError naming the first weight that is missing or of the wrong shape."""
    for need in needs(program):
        tensor = weights.get(need.weight)
        if tensor is None:
            raise ModelError(f"The checkpoint has no weight {need.weight!r}, which its architecture needs.")
        fits = len(tensor.shape) == len(need.shape) and all(
            wanted is None or wanted == got for wanted, got in zip(need.shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in need.shape)
            raise ModelError(f"The weight {need.weight!r} has shape {list(tensor.shape)}; expected [{wanted}].")
    for instruction in program.instructions:
        if isinstance(instruction, Linear):
            _check_linear(instruction, weights)
        elif isinstance(instruction, Route):
            _check_route(instruction)


def _check_linear(linear: Linear, weights: Mapping[str, Tensor]) -> None:
    features = [weights[name].shape[0] for name in linear.weights]
    if sum(features) != linear.output.width:
        raise ModelError(
            f"The weights {', '.join(linear.weights)} make {sum(features)} output features; "
            f"expected {linear.output.width}."
        )
    for weight, bias, width in zip(linear.weights, linear.biases, features, strict=False):
        if bias is not None and weights[bias].shape != (width,):
            raise ModelError(f"The bias {bias!r} has shape {list(weights[bias].shape)}; {weight!r} needs [{width}].")


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
