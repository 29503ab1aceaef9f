"""One picture through a vision transformer (arXiv 2010.11929; SigLIP, arXiv 2303.15343), and the weights it needs.

A step is one picture: a row for each patch, squares that the connector merges one after the other, so that merging is
no more than reading neighbouring rows together. The program pauses behind every attention and every feed-forward
network, and within those of large pictures: between its parts a worker decodes text.
"""

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.program import Program, ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes
from tokenworks.models.vision.config import VisionConfig

_ROPE = "vision.rope"
_ROWS_AT_ONCE = 1024
"""Larger pictures take shorter steps: attention over so many rows, a product, at a time."""
_MOST_PORTIONS = 8
"""So that small pictures do not take many steps more where large ones are possible."""


def vision_program(config: VisionConfig, width: int) -> Program:
    """Patches of a picture -> embeddings [patches / merge², features * width] for a decoder of `width`."""
    b = ProgramBuilder()
    count = config.merge**2
    made = b.buffer(config.features * width) if config.deep else None
    given = b.input(config.patch_width + (config.width if config.positions == "bilinear" else 0))
    patches = given.columns(0, config.patch_width)
    x = b.linear(patches, ("vision.patches",), config.width, biases=_biases(config.patch_bias, "vision.patches"))
    if config.positions == "bilinear":
        x = b.add(x, given.columns(config.patch_width, config.width))
    elif config.positions != "none":
        x = b.add(x, b.embed("vision.positions", config.width, index="position"))
    for number in range(config.layers):
        name = f"vision.layers.{number}."
        x = b.add(x, _attention(b, config, name, number, _norm(b, config, x, name + "norm1")))
        b.pause()
        x = b.add(x, _mlp(b, config, name, _norm(b, config, x, name + "norm2")))
        for place, (layer, connector) in enumerate(config.deep):
            if layer == number and made is not None:
                into = made.columns((1 + place) * width, width)
                connector.write(b, f"vision.deep.{place}.", x, count, width, into)
        b.pause()
    if config.last_norm:
        x = _norm(b, config, x, "vision.last")
    first = None if made is None else made.columns(0, width)
    result = config.connector.write(b, "vision.connector.", x, count, width, first)
    return b.finish(result if made is None else made)


def _attention(b: ProgramBuilder, config: VisionConfig, name: str, number: int, x: Value) -> Value:
    maps, width, size = ("q", "k", "v"), config.width, config.width // config.heads
    qkv = b.linear(x, [name + m for m in maps], 3 * width, biases=[f"{name}{m}.bias" for m in maps])
    q, k, v = (qkv.columns(i * width, width) for i in range(3))
    if config.rope_base:
        axes = (0,) * (size // 4) + (1,) * (size // 4)
        q, k = b.rope(q, size, _ROPE, axes=axes), b.rope(k, size, _ROPE, axes=axes)
    portions, attended = min(_MOST_PORTIONS, -(-config.most_patches // _ROWS_AT_ONCE)), None
    for portion in range(portions):
        if portions > 1:
            b.pause()
        attended = b.attend(
            q,
            k,
            v,
            heads=config.heads,
            kv_heads=config.heads,
            head_size=size,
            scale=size**-0.5,
            cached=False,
            windows=bool(config.window) and number not in config.full_layers,
            portion=(portion, portions),
            into=attended,
        )
    assert attended is not None
    return b.linear(attended, (name + "o",), width, biases=(name + "o.bias",))


def _mlp(b: ProgramBuilder, config: VisionConfig, name: str, x: Value) -> Value:
    width, maps = config.mlp_width, ("gate", "up") if config.gated else ("up",)
    up = b.linear(x, [name + m for m in maps], width * len(maps), biases=[f"{name}{m}.bias" for m in maps])
    if config.gated:
        inner = b.gate(up.columns(0, width), up.columns(width, width), config.activation)
    else:
        inner = b.activate(up, config.activation)
    if config.most_patches > _ROWS_AT_ONCE:
        b.pause()
    return b.linear(inner, (name + "down",), config.width, biases=(name + "down.bias",))


def _norm(b: ProgramBuilder, config: VisionConfig, x: Value, name: str) -> Value:
    if config.norm == "rms":
        return b.rmsnorm(x, name, config.norm_epsilon)
    return b.layernorm(x, name, name + ".bias", config.norm_epsilon)


def _biases(there: bool, name: str) -> tuple[str, ...] | None:
    return (name + ".bias",) if there else None


def vision_shapes(config: VisionConfig, width: int) -> Shapes:
    """Canonical name -> shape of every weight that a checkpoint must have for a decoder of `width`."""
    inner, count = config.width, config.merge**2
    shapes: Shapes = {"patches": (inner, config.patch_width)}
    if config.patch_bias:
        shapes["patches.bias"] = (inner,)
    if config.positions != "none":
        shapes["positions"] = (config.table_side**2, inner)
    norms = [f"layers.{number}.norm{place}" for number in range(config.layers) for place in (1, 2)]
    for norm in norms + ["last"] * config.last_norm:
        shapes[norm] = (inner,)
        if config.norm == "layer":
            shapes[norm + ".bias"] = (inner,)
    maps = dict.fromkeys("qkvo", (inner, inner))
    maps |= dict.fromkeys(("gate", "up") if config.gated else ("up",), (config.mlp_width, inner))
    maps["down"] = (inner, config.mlp_width)
    for number in range(config.layers):
        shapes |= {f"layers.{number}.{m}": shape for m, shape in maps.items()}
        shapes |= {f"layers.{number}.{m}.bias": shape[:1] for m, shape in maps.items()}
    connectors = {"connector": config.connector} | {f"deep.{i}": each for i, (_, each) in enumerate(config.deep)}
    for name, connector in connectors.items():
        shapes |= {f"{name}.{m}": shape for m, shape in connector.shapes(inner, count, width).items()}
    return {f"vision.{name}": shape for name, shape in shapes.items()}


def computed_weights(config: VisionConfig) -> dict[str, npt.NDArray[np.float32]]:
    """What the program reads and no file has: rotary frequencies, for one half of the pairs along each axis."""
    if not config.rope_base:
        return {}
    half = config.width // config.heads // 2
    along = config.rope_base ** (-np.arange(0, half, 2, dtype=np.float64) / half)
    return {_ROPE: np.concatenate([along, along]).astype(np.float32)}
