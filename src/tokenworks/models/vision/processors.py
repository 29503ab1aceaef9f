"""An image to the tiles that a model looks at, and the words that stand for it in a prompt.

As transformers' processors of the same names do it, with Pillow alone, so that the gateway needs no numpy: a tile keeps
8 bits a channel, and is normalised where it is encoded (models/vision/pixels.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tokenworks.models.files.fields import Fields
from tokenworks.models.files.json_file import read_json
from tokenworks.models.vision.settings import picture_settings, pixel_range, required
from tokenworks.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image

_LARGEST_SIDE = 4096
_LONGEST_SHAPE = 200
"""Times as long as wide."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What is encoded at once: `pixels` are [height, width, 3] RGB, and make rows x columns embeddings."""

    width: int
    height: int
    rows: int
    columns: int
    pixels: bytes


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture: its tiles, and the words that stand for it in a prompt, with every tile's placeholders in order."""

    words: str
    tiles: tuple[Tile, ...]


class Processor(Protocol):
    """How one model is shown pictures."""

    mark: str
    """What the model's chat template writes for a picture."""
    placeholder: str
    """The token that stands for one embedding."""

    def show(self, image: "Image") -> Shown:
        """`image` is RGB. Raises InvalidRequest for one that the model cannot take."""


def open_processor(path: Path) -> Processor | None:
    """Of the model at `path`; None for one that reads text only. Raises ModelError."""
    config_path = path / "config.json"
    if not path.is_dir() or not config_path.exists():
        return None
    fields = Fields(config_path, read_json(config_path))
    make = _PROCESSORS.get(str(fields.table.get("model_type")))
    return None if make is None else make(fields, picture_settings(path))


class _Idefics3:
    """A picture that is larger than a tile is shown in tiles, line by line, then whole in one."""

    mark = placeholder = "<image>"

    def __init__(self, f: Fields, settings: Fields) -> None:
        self._filter = _filter(settings, 1)
        self._longest = required(settings, "size").integer("longest_edge")
        self._tile = required(settings, "max_image_size").integer("longest_edge")
        self._splits = settings.flag("do_image_splitting", True)
        patch = required(f, "vision_config").integer("patch_size", 32)
        self._side = self._tile // patch // f.integer("scale_factor", 2)

    def show(self, image: "Image") -> Shown:
        from PIL.Image import Resampling

        how = Resampling(self._filter)
        tile, around = self._tile, "<fake_token_around_image>"
        image = image.resize(self._size(image), how)
        whole = f"{around}<global-img>{self._words()}{around}"
        if not self._splits:
            return Shown(whole, (self._cut(image.resize((tile, tile), how)),))
        image = image.resize(self._whole_tiles(image), how)
        columns, rows = image.width // tile, image.height // tile
        if columns * rows == 1:
            return Shown(whole, (self._cut(image),))
        words, tiles = [], []
        for row in range(rows):
            for column in range(columns):
                words.append(f"{around}<row_{row + 1}_col_{column + 1}>{self._words()}")
                left, top = column * tile, row * tile
                tiles.append(self._cut(image.crop((left, top, left + tile, top + tile))))
            words.append("\n")
        tiles.append(self._cut(image.resize((tile, tile), how)))
        return Shown("".join([*words, "\n", whole]), tuple(tiles))

    def _size(self, image: "Image") -> tuple[int, int]:
        """The longest side as long as is said; the other in proportion, made even; neither beyond 4096."""
        ratio = image.width / image.height
        if image.width >= image.height:
            width, height = self._longest, _even(int(self._longest / ratio))
        else:
            width, height = _even(int(self._longest * ratio)), self._longest
        ratio = width / height
        if width >= height and width > _LARGEST_SIDE:
            width, height = _LARGEST_SIDE, int(_LARGEST_SIDE / ratio)
        elif height > width and height > _LARGEST_SIDE:
            width, height = int(_LARGEST_SIDE * ratio), _LARGEST_SIDE
        return max(1, width), max(1, height)

    def _whole_tiles(self, image: "Image") -> tuple[int, int]:
        width, height, ratio = image.width, image.height, image.width / image.height
        if width >= height:
            width = _up(width, self._tile)
            return width, _up(int(width / ratio), self._tile)
        height = _up(height, self._tile)
        return _up(int(height * ratio), self._tile), height

    def _cut(self, image: "Image") -> Tile:
        return Tile(self._tile, self._tile, self._side, self._side, bytes(image.tobytes()))

    def _words(self) -> str:
        return self.placeholder * self._side**2


class _Gemma3:
    """A picture is shown as a square, whatever its shape. (Pan and scan, which shows parts of it too, is off.)"""

    mark, placeholder = "<start_of_image>", "<image_soft_token>"

    def __init__(self, f: Fields, settings: Fields) -> None:
        settings.refuse("do_pan_and_scan", (False,), "pan and scan is not supported")
        self._filter = _filter(settings, 2)
        size = required(settings, "size")
        self._size = size.integer("width"), size.integer("height")
        self._side = math.isqrt(f.integer("mm_tokens_per_image", 256))

    def show(self, image: "Image") -> Shown:
        from PIL.Image import Resampling

        pixels = bytes(image.resize(self._size, Resampling(self._filter)).tobytes())
        words = f"\n\n{self.mark}{self.placeholder * self._side**2}<end_of_image>\n\n"
        return Shown(words, (Tile(*self._size, self._side, self._side, pixels),))


class _Qwen:
    """A picture keeps its shape, rounded to whole merged patches, within a range of sizes."""

    mark = placeholder = "<|image_pad|>"

    def __init__(self, f: Fields, settings: Fields) -> None:
        self._filter = _filter(settings, 3)
        v = required(f, "vision_config")
        patch = settings.integer("patch_size", v.integer("patch_size", 14))
        self._unit = patch * settings.integer("merge_size", v.integer("spatial_merge_size", 2))
        self._fewest, self._most = pixel_range(settings)

    def show(self, image: "Image") -> Shown:
        from PIL.Image import Resampling

        width, height = self._size(image.width, image.height)
        pixels = bytes(image.resize((width, height), Resampling(self._filter)).tobytes())
        rows, columns = height // self._unit, width // self._unit
        return Shown(self.placeholder * (rows * columns), (Tile(width, height, rows, columns, pixels),))

    def _size(self, width: int, height: int) -> tuple[int, int]:
        if max(width, height) > _LONGEST_SHAPE * min(width, height):
            raise InvalidRequest(f"the picture's sides are {width} x {height}: one is too long for the other")
        unit = self._unit
        wide, high = round(width / unit) * unit, round(height / unit) * unit
        if wide * high > self._most:
            shrink = math.sqrt(height * width / self._most)
            wide = max(unit, math.floor(width / shrink / unit) * unit)
            high = max(unit, math.floor(height / shrink / unit) * unit)
        elif wide * high < self._fewest:
            grow = math.sqrt(self._fewest / (height * width))
            wide, high = math.ceil(width * grow / unit) * unit, math.ceil(height * grow / unit) * unit
        return wide, high


def _even(length: int) -> int:
    return max(1, length + length % 2)


def _up(length: int, unit: int) -> int:
    return math.ceil(length / unit) * unit


def _filter(settings: Fields, default: int) -> int:
    """Pillow's number of the resampling filter: 1 Lanczos, 2 bilinear, 3 bicubic."""
    value = settings.table.get("resample", default)
    if value not in (0, 1, 2, 3):
        raise settings.wrong("resample", "one of Pillow's filters, 0 to 3")
    return int(value)


_PROCESSORS: dict[str, Callable[[Fields, Fields], Processor]] = {
    "idefics3": _Idefics3,
    "smolvlm": _Idefics3,
    "gemma3": _Gemma3,
    "qwen2_5_vl": _Qwen,
    "qwen3_vl": _Qwen,
}
"""By config.json's model_type."""
