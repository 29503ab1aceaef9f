"""Which weight becomes what: patterns of canonical weight names, first match wins."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from tokenworks.kernels.program import Embed, Experts, Linear, Program
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.quant.schemes import SchemeName

Choice = SchemeName | Literal["keep"]
CHOICES: tuple[str, ...] = (*get_args(SchemeName), "keep")
TARGET = "target"
"""Written in a recipe, it stands for what --to says."""

_SMALL: dict[object, object] = {"layers.*.router": "keep", "layers.*.shared_gate": "keep", "layers.*.altup_*": "keep"}
"""Routers of mixtures of experts, and what mixes Gemma 3n's streams: a thousandth of the weights, and a small error in
them means other experts."""

RECIPES: dict[str, dict[object, object]] = {
    "standard": {**_SMALL, "layers.*": TARGET},
    "compact": {**_SMALL, "embed": "int8", "head": "int8", "layers.*": TARGET},
    "whole": {**_SMALL, "*": TARGET},
}
"""By name. "standard" keeps the vocabulary's matrices, since few tools know quantised embeddings; "compact" makes them
8 bits, for our own server: every token reads the head whole."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """`rules` are (pattern, choice) pairs; a weight that none matches is kept."""

    rules: tuple[tuple[str, Choice], ...]

    def choose(self, name: str) -> Choice:
        return next((choice for pattern, choice in self.rules if fnmatchcase(name, pattern)), "keep")

    def of(self, program: Program) -> dict[str, Choice]:
        """Every weight that can be quantised, in the order of the program's first use of it."""
        names: dict[str, None] = {}
        for instruction in program.instructions:
            if isinstance(instruction, Linear):
                names |= dict.fromkeys(instruction.weights)
            elif isinstance(instruction, Experts):
                names |= dict.fromkeys(name for expert in instruction.experts for name in expert.weights)
            elif isinstance(instruction, Embed) and instruction.index == "token":
                names[instruction.table] = None
        return {name: self.choose(name) for name in names}


def read_recipe(source: str, target: SchemeName) -> Recipe:
    """`source` is the name of one of RECIPES, or a YAML file: a table of patterns (fnmatch) to formats. Raises
    InvalidRequest."""
    if source in RECIPES:
        return _recipe(source, RECIPES[source], target)
    path = Path(source)
    if not path.is_file():
        raise InvalidRequest(f"Recipe {source!r} is neither a file nor one of {', '.join(RECIPES)}.")
    import yaml

    try:
        table = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{path}: cannot be read as YAML ({error}).") from None
    if not isinstance(table, dict) or not table:
        raise InvalidRequest(f'{path}: a table was expected, such as {{"layers.*.down": mxfp4, "layers.*": target}}.')
    return _recipe(source, table, target)


def _recipe(source: str, table: Mapping[object, object], target: SchemeName) -> Recipe:
    rules = []
    for pattern, choice in table.items():
        resolved = target if choice == TARGET else choice
        if resolved not in CHOICES:
            raise InvalidRequest(
                f"{source}: {pattern!s} is to become {choice!r}; expected one of {', '.join(CHOICES)}, {TARGET}."
            )
        rules.append((str(pattern), resolved))
    return Recipe(tuple(rules))  # type: ignore[arg-type]  # checked above
