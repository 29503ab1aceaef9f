"""What a checkpoint says of how its pictures are prepared; apart, so that the gateway can read it without numpy."""

from pathlib import Path

from tokenworks.models.files.fields import Fields
from tokenworks.models.files.json_file import read_json
from tokenworks.protocol.errors import ModelError

Channels = tuple[float, float, float]
HALVES: tuple[Channels, Channels] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP: tuple[Channels, Channels] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of pixels, by channel: SigLIP's and CLIP's."""


def picture_settings(folder: Path) -> Fields:
    """preprocessor_config.json, or where transformers' version 5 wrote processor_config.json, its image_processor."""
    path = folder / "preprocessor_config.json"
    if path.exists():
        return Fields(path, read_json(path))
    path = folder / "processor_config.json"
    section = Fields(path, read_json(path)).section("image_processor") if path.exists() else None
    if section is None:
        raise ModelError(f"{folder}: it has no preprocessor_config.json, which says how pictures are prepared.")
    return section


def normalisation(
    f: Fields, mean: Channels = HALVES[0], std: Channels = HALVES[1]
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """(factor, mean, standard deviation) of pixel values, the latter for each channel. `mean`, `std`: defaults."""
    for step in ("do_resize", "do_rescale", "do_normalize"):
        f.refuse(step, (True,), "pictures must be resized, rescaled and normalised")
    return f.number("rescale_factor", 1 / 255), _channels(f, "image_mean", mean), _channels(f, "image_std", std)


def pixel_range(f: Fields) -> tuple[int, int]:
    """The fewest and most pixels of a picture of any shape."""
    size = f.section("size")
    shortest = size.integer("shortest_edge", 56 * 56) if size else 56 * 56
    longest = size.integer("longest_edge", 28 * 28 * 1280) if size else 28 * 28 * 1280
    return f.integer("min_pixels", shortest), f.integer("max_pixels", longest)


def _channels(f: Fields, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    values = f.table.get(key, default)
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise f.wrong(key, "three numbers")
    return tuple(float(value) for value in values)


def required(f: Fields, key: str) -> Fields:
    """A table within the table."""
    section = f.section(key)
    if section is None:
        raise f.wrong(key, "a table")
    return section
