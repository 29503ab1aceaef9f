"""Opens a model on disk: its config, its weights under canonical names, its program.

Only headers are read here. A weight stays a view of the mapped file until a backend packs it; the few that a file
stores in another order or form are converted when they are looked up, one at a time.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.formats import FORMATS, dequantise
from tokenworks.kernels.program import Program
from tokenworks.kernels.tensor import Description, Tensor
from tokenworks.models import families
from tokenworks.models.architectures import GGUF_ARCHITECTURES, HF_ARCHITECTURES
from tokenworks.models.config import DecoderConfig, EncoderConfig, Layer, ModelConfig
from tokenworks.models.decoder import decoder_program, decoder_shapes
from tokenworks.models.encoder import encoder_program, encoder_shapes
from tokenworks.models.files.ctranslate2 import CT2_WEIGHTS, open_ctranslate2
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import open_gguf
from tokenworks.models.files.json_file import read_json
from tokenworks.models.files.names import FileNames
from tokenworks.models.files.quantised import PackedTensor, StackedBlocks, open_quantised
from tokenworks.models.files.safetensors import open_safetensors
from tokenworks.models.files.squares import Squares
from tokenworks.models.files.stacked import Found, unstack
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.multi_token import multi_token_program, multi_token_shapes
from tokenworks.models.parts.part import Shapes
from tokenworks.models.parts.temperature import TEMPERATURE
from tokenworks.models.speech import decoder as speech_decoder
from tokenworks.models.speech import encoder as speech_encoder
from tokenworks.models.speech.config import SpeechConfig
from tokenworks.models.vision.config import VisionConfig
from tokenworks.models.vision.encoder import computed_weights, vision_program, vision_shapes
from tokenworks.protocol.errors import ModelError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open model; `tensors` holds what `program()` reads, by canonical name."""

    path: Path
    architecture: str
    """config.json's model_type or GGUF's general.architecture."""
    config: ModelConfig
    tensors: Mapping[str, Tensor]

    def program(self, *, guesses: bool = False) -> Program:
        """With `guesses` its sequel is the layer that guesses further tokens, if the model has one."""
        match self.config:
            case DecoderConfig(multi_token=Layer() as layer) if guesses:
                main = decoder_program(self.config, hands_out=True)
                return replace(main, sequel=multi_token_program(self.config, layer))
            case DecoderConfig():
                return decoder_program(self.config)
            case EncoderConfig():
                return encoder_program(self.config)
            case SpeechConfig():
                return speech_decoder.decoder_program(self.config)

    def keeping_fp8(self) -> "Checkpoint":
        """What has scales by square becomes F8_64, for backends that have products of it, not BF16."""
        assert isinstance(self.tensors, _Weights)
        return replace(self, tensors=replace(self.tensors, keeps_fp8=True))

    def vision_program(self, vision: VisionConfig) -> Program:
        """Of the pictures' encoder."""
        assert isinstance(self.config, DecoderConfig)
        return vision_program(vision, self.config.width)

    def speech_program(self) -> Program:
        """Of the encoder of sounds."""
        assert isinstance(self.config, SpeechConfig)
        return speech_encoder.encoder_program(self.config)


def open_checkpoint(path: Path, context_tokens: int | None = None) -> Checkpoint:
    """Opens a GGUF file, or a folder with config.json and safetensors weights or CTranslate2's.

    `context_tokens`: the longest sequence that will run, where it is shorter than the model's; some rotary encodings
    are made for one range of lengths or another.

    Raises ModelError naming the file and the cause: not a model, truncated, an architecture or tensor type that is
    not supported, a tensor that is missing, unexpected, or of another shape than the config says.
    """
    if path.is_dir():
        return _open_folder(path, context_tokens)
    if path.is_file():
        file = open_gguf(path)
        name = str(file.metadata.get("general.architecture"))
        if name not in GGUF_ARCHITECTURES:
            raise _unknown_architecture(path, name, list(GGUF_ARCHITECTURES))
        row = GGUF_ARCHITECTURES[name]()
        return _checkpoint(path, name, row.read(file), file.tensors, row.files, context_tokens)
    raise ModelError(f"{path}: no such file or folder.")


def _open_folder(folder: Path, context_tokens: int | None) -> Checkpoint:
    if (folder / CT2_WEIGHTS).exists():
        file = open_ctranslate2(folder / CT2_WEIGHTS)
        heard = families.whisper.from_ctranslate2(file)
        return _checkpoint(folder, heard.architecture, heard, file.tensors, families.whisper.CT2, context_tokens)
    config_path = folder / "config.json"
    if not config_path.exists():
        raise ModelError(f"{folder}: not a model folder: it has no config.json.")
    fields = Fields(config_path, read_json(config_path))
    name = str(fields.table.get("model_type"))
    if name not in HF_ARCHITECTURES:
        raise _unknown_architecture(config_path, name, list(HF_ARCHITECTURES))
    row = HF_ARCHITECTURES[name]()
    config = row.read(fields)
    found = open_quantised(folder, fields, open_safetensors(folder))
    return _checkpoint(folder, name, config, found, row.files, context_tokens)


def _unknown_architecture(path: Path, name: str, known: list[str]) -> ModelError:
    near = get_close_matches(name, known, 1, 0.4)
    nearest = f" The nearest is {near[0]!r}." if near else ""
    return ModelError(f"{path}: architecture {name!r} is not supported.{nearest} Supported here: {', '.join(known)}.")


def _checkpoint(
    path: Path,
    architecture: str,
    config: ModelConfig,
    tensors: Mapping[str, Found],
    names: FileNames,
    context_tokens: int | None,
) -> Checkpoint:
    layers = len(config.layers) if isinstance(config, DecoderConfig) else 0
    usual = {names.usual(name, layers).removeprefix(names.prefix): tensor for name, tensor in tensors.items()}
    found = unstack(usual, names.stacks)
    shapes = _shapes(config)
    if isinstance(config, DecoderConfig) and config.multi_token is not None:
        if names.of(f"layers.{layers}.join") in found:
            shapes |= multi_token_shapes(config, config.multi_token)
        else:  # many files are converted without it
            config = replace(config, multi_token=None)
    vision = config.vision if isinstance(config, DecoderConfig) else None
    if vision is not None:
        shapes = shapes | vision_shapes(vision, config.width)
    as_stored = {name: _as_stored(name, shape, names) for name, shape in shapes.items()}
    places = _places(names, as_stored)
    stored_shapes: dict[str, tuple[int, ...]] = {}
    for canonical, place in places.items():
        shape = as_stored[canonical]
        end = (place.first_row + shape[0], *shape[1:])  # the last part's
        stored_shapes[place.name] = end[::-1] if place.name in names.transposed else end
    for name, shape in stored_shapes.items():
        tensor = found.get(name)
        if isinstance(tensor, Tensor) and names.is_kernel(name):
            tensor = found[name] = replace(tensor, shape=(tensor.shape[0], math.prod(tensor.shape[1:])))
        if isinstance(tensor, Tensor) and names.is_reshaped(name) and math.prod(tensor.shape) == math.prod(shape):
            tensor = found[name] = replace(tensor, shape=shape)
        _check_tensor(path, name, tensor, shape)
    for name in found:
        if name not in stored_shapes and not names.needless(name, layers):
            raise ModelError(
                f"{path}: tensor {name!r} is unexpected: a {config.architecture} model has no place for it."
            )
    longest = min(config.context_tokens, context_tokens or config.context_tokens)
    computed = {
        f"rope.{name}": _float32(f"rope.{name}", rope.inverse_frequencies(longest))
        for name, rope in config.ropes.items()
    }
    if isinstance(config, DecoderConfig) and config.temperature is not None:
        computed[TEMPERATURE] = _float32(TEMPERATURE, config.temperature.factors(config.context_tokens))
    for name, values in computed_weights(vision).items() if vision else ():
        computed[name] = _float32(name, values)
    return Checkpoint(path, architecture, config, _Weights(config, found, places, as_stored, names, computed))


def _shapes(config: ModelConfig) -> Shapes:
    match config:
        case DecoderConfig():
            return decoder_shapes(config)
        case EncoderConfig():
            return encoder_shapes(config)
        case SpeechConfig():
            return speech_encoder.encoder_shapes(config) | speech_decoder.decoder_shapes(config)


def _as_stored(name: str, shape: tuple[int, ...], names: FileNames) -> tuple[int, ...]:
    if name in names.convolutions:
        return shape[0], shape[1] // speech_encoder.TAPS, speech_encoder.TAPS
    return shape[::-1] if names.is_turned(name) else shape


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a weight is stored: in a tensor of its own, or in some rows of one."""

    name: str
    first_row: int


def _places(names: FileNames, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Place]:
    """Weights that share a name in the file follow each other there, in the order of `shapes`."""
    rows = {names.of(canonical): row for canonical, row in names.first_rows.items()}
    places: dict[str, _Place] = {}
    for canonical, shape in shapes.items():
        name = names.of(canonical)
        places[canonical] = _Place(name, rows.get(name, 0))
        rows[name] = places[canonical].first_row + shape[0]
    return places


def _check_tensor(path: Path, name: str, tensor: Found | None, shape: tuple[int, ...]) -> None:
    if tensor is None:
        raise ModelError(f"{path}: tensor {name!r} is missing.")
    if tensor.shape != shape:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} has shape {list(tensor.shape)}; "
            f"by the model's config it should have {list(shape)}."
        )
    if tensor.format not in FORMATS:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} has type {tensor.format}, which is not supported. "
            f"Supported: {', '.join(FORMATS)}."
        )


@dataclass(frozen=True, slots=True)
class _Weights(Mapping[str, Tensor]):
    """Weights by canonical name, as programs want them: vectors as F32, rotary pairs as (i, i + head_size / 2)."""

    config: ModelConfig
    found: Mapping[str, Found]
    places: Mapping[str, _Place]
    stored_shapes: Mapping[str, tuple[int, ...]]
    names: FileNames
    computed: Mapping[str, Tensor]
    keeps_fp8: bool = False

    def __getitem__(self, name: str) -> Tensor:
        if name in self.computed:
            return self.computed[name]
        place = self.places[name]
        stored = self.found[place.name]
        assert not isinstance(stored, StackedBlocks)  # its shape is not one that a program needs
        transposed, rows = place.name in self.names.transposed, self.names.rows_of(name)
        if isinstance(stored, Tensor | PackedTensor | Squares) and not transposed and rows is None:
            stored = stored.rows(place.first_row, self.stored_shapes[name][0])
        if self._stays_fp8(name):
            assert isinstance(stored, Squares)
            return replace(stored.in_runs(), name=name)
        tensor = stored if isinstance(stored, Tensor) else stored.tensor()
        if transposed:
            return _float32(name, dequantise(tensor).T)
        if name in self.names.convolutions:
            return _float32(name, dequantise(tensor).swapaxes(1, 2).reshape(tensor.shape[0], -1))
        if self.names.is_turned(name):
            return turned(name, tensor)
        if rows is not None:
            assert isinstance(self.config, DecoderConfig)
            tensor = gathered(tensor, rows(self.config.all_layers[layer_of(name)].mixer))
        if self.names.interleaved_rotary and (heads := rotary_heads(self.config, name)):
            tensor = _halves(tensor, heads)
        if form := self.names.form_of(name):
            return _float32(name, form.read(dequantise(tensor)))
        if len(tensor.shape) == 1:
            offset = self.names.norm_offset if name.endswith("norm") else 0.0
            if offset or tensor.format != "F32":
                return _float32(name, dequantise(tensor) + np.float32(offset))
        return replace(tensor, name=name)

    def describe(self, name: str) -> Description:
        """Of what `self[name]` would make."""
        if name in self.computed:
            return Description("F32", self.computed[name].shape)
        place, shape = self.places[name], self.stored_shapes[name]
        found, names = self.found[place.name], self.names
        stored = found.format
        if name in names.convolutions:
            return Description("F32", (shape[0], math.prod(shape[1:])))
        if place.name in names.transposed or names.form_of(name) or len(shape) == 1:
            return Description("F32", shape)
        if names.is_turned(name):
            return Description(stored if stored in ("F32", "F16", "BF16") else "F16", shape[::-1])
        fp8_inputs = isinstance(found, PackedTensor) and found.fp8_inputs
        return Description("F8_64" if self._stays_fp8(name) else stored, shape, fp8_inputs)

    def part(self, name: str, axis: Literal["rows", "columns"], begin: int, end: int) -> Tensor | None:
        """Of what has to be put together when it is looked up, and lies in the file as it is used: none of the rest is
        read."""
        stored = None if name in self.computed else self.found[self.places[name].name]
        turned_rows = self.names.interleaved_rotary and rotary_heads(self.config, name)
        if not isinstance(stored, PackedTensor | Squares) or self._moved(name) or turned_rows:
            return None
        stays_fp8 = self._stays_fp8(name)
        own = stored.rows(self.places[name].first_row, self.stored_shapes[name][0])
        own = own.rows(begin, end - begin) if axis == "rows" else own.columns(begin, end - begin)
        return replace(own.in_runs() if stays_fp8 and isinstance(own, Squares) else own.tensor(), name=name)

    def _moved(self, name: str) -> bool:
        """Its rows and columns are not as in the file."""
        names = self.names
        turned = self.places[name].name in names.transposed or names.is_turned(name)
        return turned or names.rows_of(name) is not None or bool(names.form_of(name)) or name in names.convolutions

    def _stays_fp8(self, name: str) -> bool:
        stored = self.found[self.places[name].name]
        return self.keeps_fp8 and isinstance(stored, Squares) and stored.has_runs and not self._moved(name)

    def __iter__(self) -> Iterator[str]:
        yield from self.places
        yield from self.computed

    def __len__(self) -> int:
        return len(self.places) + len(self.computed)


def layer_of(name: str) -> int:
    """The layer that a weight "layers.N. ..." is of."""
    return int(name.split(".")[1])


def rotary_heads(config: ModelConfig, name: str) -> int:
    """How many heads a weight's rows make that rotary positions turn; 0: none."""
    before, _, leaf = name.partition("layers.")
    number, _, leaf = leaf.partition(".")
    if before or leaf not in ("q", "q.bias", "k", "k.bias") or not isinstance(config, DecoderConfig):
        return 0
    mixer = config.all_layers[int(number)].mixer
    if not isinstance(mixer, Attention):
        return 0
    return mixer.heads if leaf[0] == "q" else mixer.kv_heads


def gathered(tensor: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
    """Some rows of a tensor, in this order. They move whole, so any format will do."""
    data = tensor.data.reshape(tensor.shape[0], -1)[rows].reshape(-1)
    scales = None if tensor.row_scales is None else tensor.row_scales[rows]
    return replace(tensor, shape=(len(rows), *tensor.shape[1:]), data=data, row_scales=scales)


def _halves(tensor: Tensor, heads: int) -> Tensor:
    """Reorders each head's rows from pairs (0, 1), (2, 3), ... to all first members, then all second ones.

    Rows move whole, so any format can be reordered.
    """
    pairs = (heads, tensor.shape[0] // heads // 2, 2, -1)
    data = np.ascontiguousarray(tensor.data.reshape(pairs).swapaxes(1, 2)).reshape(-1)
    scales = tensor.row_scales
    if scales is not None:
        scales = np.ascontiguousarray(scales.reshape(pairs).swapaxes(1, 2)).reshape(-1)
    return replace(tensor, data=data, row_scales=scales)


def turned(name: str, tensor: Tensor) -> Tensor:
    """[in, out] as [out, in]. Blocks lie along rows, so what is quantised becomes float16, whose rounding is a fraction
    of what the quantisation left."""
    if tensor.format not in ("F32", "F16", "BF16"):
        halves = np.ascontiguousarray(dequantise(tensor).T.astype(np.float16))
        return Tensor(name, "F16", halves.shape, halves.view(np.uint8).reshape(-1))
    elements = tensor.data.reshape(*tensor.shape, -1)
    data = np.ascontiguousarray(elements.swapaxes(0, 1)).reshape(-1)
    return Tensor(name, tensor.format, tensor.shape[::-1], data)


def _float32(name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Tensor:
    return Tensor(name, "F32", values.shape, np.ascontiguousarray(values).view(np.uint8).reshape(-1))
