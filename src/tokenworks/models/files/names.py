"""What a kind of file calls a model's weights.

Canonical names are what the programs use: "embed", "norm", "head", and "layers.N." before the names of a layer's parts.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.backend import Float32
from tokenworks.models.config import ModelConfig
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.stacked import Stack
from tokenworks.models.parts.part import Mixer

Rows = Callable[[Mixer | None], npt.NDArray[np.int64]]
"""From a layer's mixer to numbers of rows."""

LAYER = "layers.{}."
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Form:
    """How a vector's numbers are stored."""

    read: Callable[[Float32], Float32]
    """From the file's numbers to the program's."""
    write: Callable[[Float32], Float32]
    """And back."""


NEGATIVE_LOGARITHMS = Form(lambda stored: -np.exp(stored), lambda seen: np.log(-seen))


@dataclass(frozen=True, slots=True)
class FileNames:
    """Canonical name -> name in the file, in both with {} for each number.

    Several weights may share a tensor: its rows are theirs, in the order in which the parts declare them.
    """

    names: dict[str, str]
    unused: tuple[str, ...] = ()
    """Patterns (fnmatch) of tensors that a file may have and the program does not need."""
    norm_offset: float = 0.0
    """Added to RMS norm weights: Gemma's checkpoints store weight - 1."""
    further_layers: str = ""
    """How names begin of layers that a file may have behind the last one, and the program does not need; {} is the
    layer. They guess further tokens."""
    respelt: tuple[tuple[str, str], ...] = ()
    """What some files call a tensor, and what `names` does: parts of names."""
    stacks: tuple[Stack, ...] = ()
    """Tensors of all experts of a layer; their pieces are called as in `names`."""
    prefix: str = ""
    """Before the names of some checkpoints, where the model is part of a larger one."""
    first_rows: Mapping[str, int] = field(default_factory=dict)
    """Of weights that begin further down in their tensor, by canonical name."""
    interleaved_rotary: bool = False
    """Rows of q and k lie so that a rotary pair is (2i, 2i + 1) of a head, not (i, i + head_size / 2)."""
    forms: Mapping[str, Form] = field(default_factory=dict)
    """Of vectors that are stored in another one, by canonical name."""
    rows: Mapping[str, Rows] = field(default_factory=dict)
    """Which rows of its tensor a weight has, in order, by canonical name; in place of consecutive ones."""

    kernels: frozenset[str] = frozenset()
    """Names in the file, with {} for each number, of convolutions [out, ...] that are seen as linear maps [out, in]."""
    reshaped: frozenset[str] = frozenset()
    """Names in the file, with {} for each number, of tensors that some files have in another shape: the same numbers in
    the same order."""
    convolutions: frozenset[str] = frozenset()
    """Canonical names of linear maps [out, taps * in] that are stored as [out, in, taps]."""
    transposed: frozenset[str] = frozenset()
    """Names in the file of linear maps stored as [in, out]."""
    turned: frozenset[str] = frozenset()
    """Canonical names of linear maps that are [in, out] among the rows of a tensor that they share."""
    prefixes: tuple[tuple[str, str], ...] = ()
    """How some files begin names, and how those here begin: the first that fits is exchanged."""
    guesser: tuple[tuple[str, str], ...] = ()
    """The same for the layer behind the last one that guesses further tokens, where files number it apart; {} is its
    number here."""

    def needless(self, name: str, layers: int) -> bool:
        """Whether a model of so many layers may do without this tensor."""
        if any(fnmatchcase(name, pattern) for pattern in self.unused):
            return True
        begin, _, end = self.further_layers.partition("{}")
        number, found, _ = name.removeprefix(begin).partition(end or ".")
        return bool(begin) and name.startswith(begin) and bool(found) and number.isdigit() and int(number) >= layers

    def usual(self, name: str, layers: int) -> str:
        """The name as `names` has it, in a model of so many layers."""
        for theirs, ours in self.respelt:
            name = name.replace(theirs, ours)
        for theirs, ours in (*self.prefixes, *self.guesser):
            if name.startswith(theirs):
                return ours.format(layers) + name.removeprefix(theirs)
        return name

    def apart(self, usual: str, layers: int) -> str:
        """A usual name as files have it that number the layer that guesses apart."""
        for theirs, ours in reversed(self.guesser):
            if usual.startswith(ours.format(layers)):
                return theirs + usual.removeprefix(ours.format(layers))
        return usual

    def of(self, canonical: str) -> str:
        return self.names[_NUMBER.sub("{}", canonical)].format(*_NUMBER.findall(canonical))

    def form_of(self, canonical: str) -> Form | None:
        return self.forms.get(_NUMBER.sub("{}", canonical))

    def is_kernel(self, name: str) -> bool:
        return _NUMBER.sub("{}", name) in self.kernels

    def is_reshaped(self, name: str) -> bool:
        return _NUMBER.sub("{}", name) in self.reshaped

    def rows_of(self, canonical: str) -> Rows | None:
        return self.rows.get(_NUMBER.sub("{}", canonical))

    def is_turned(self, canonical: str) -> bool:
        return bool(self.turned) and _NUMBER.sub("{}", canonical) in self.turned


@dataclass(frozen=True, slots=True)
class HfArchitecture:
    """Of safetensors checkpoints, by config.json's model_type."""

    read: Callable[[Fields], ModelConfig]
    files: FileNames


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """Of GGUF files, by general.architecture."""

    read: Callable[[GgufFile], ModelConfig]
    files: FileNames


def weights_and_biases(maps: dict[str, str]) -> dict[str, str]:
    """Names of linear maps' weights and biases: name within the layer -> name in the file, {} for the layer."""
    return {f"{LAYER}{ours}": f"{theirs}.weight" for ours, theirs in maps.items()} | {
        f"{LAYER}{ours}.bias": f"{theirs}.bias" for ours, theirs in maps.items()
    }
