"""Qwen with sight: pictures keep their shape, and rotary positions run along their axes (M-RoPE).

Qwen 2.5 VL (arXiv 2502.13923)  most of the encoder's layers see windows of a picture
Qwen 3 VL (arXiv 2511.21631)    learned positions too, fitted to the picture; some of the encoder's layers speak to the
                                decoder's first ones
"""

from dataclasses import replace
from math import isqrt
from typing import Any

from tokenworks.models.config import MAX_LAYERS, DecoderConfig, Layer
from tokenworks.models.families import from_hf, qwen
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.names import HfArchitecture
from tokenworks.models.parts.attention import Attention
from tokenworks.models.vision.config import VisionConfig
from tokenworks.models.vision.connectors import Merger
from tokenworks.models.vision.settings import CLIP, normalisation, picture_settings, pixel_range, required

_ENCODER_EPSILON = 1e-6


def _qwen2_5(f: Fields) -> DecoderConfig:
    # The first files have the decoder's keys beside `vision_config`.
    text = f.section("text_config") or f
    section = _rope_section(text)
    decoder = qwen.QWEN2.read(_plain(text, section, 1e6))
    assert isinstance(decoder, DecoderConfig)
    sections = _sections(section, [16, 24, 24])
    axes = tuple(axis for axis, count in enumerate(sections) for _ in range(count))
    v = required(f, "vision_config")
    full = v.table.get("fullatt_block_indexes", [7, 15, 23, 31])
    if not isinstance(full, list) or not all(isinstance(number, int) for number in full):
        raise v.wrong("fullatt_block_indexes", "a list of layers")
    vision = _vision(
        f,
        14,
        norm="rms",
        gated=True,
        last_norm=False,
        patch_bias=False,
        activation=v.one_of("hidden_act", from_hf.ACTIVATIONS, "silu"),
        positions="none",
        full_layers=frozenset(full),
        connector=Merger("rms", _ENCODER_EPSILON),
    )
    window = v.integer("window_size", 112) // vision.merge // vision.patch
    if not window:
        raise v.wrong("window_size", f"at least {vision.merge * vision.patch}")
    return _seeing(f, decoder, "qwen2_5_vl", axes, replace(vision, window=window))


def _qwen3(f: Fields) -> DecoderConfig:
    text = required(f, "text_config")
    section = _rope_section(text)
    decoder = qwen.QWEN3.read(_plain(text, section, 5e5))
    assert isinstance(decoder, DecoderConfig)
    _, rows, columns = _sections(section, [24, 20, 20])
    attention = decoder.layers[0].mixer
    assert isinstance(attention, Attention)
    # Axes take turns, as far as each one's share goes; what is left is time's.
    axes = [0] * (attention.head_size // 2)
    for axis, count in ((1, rows), (2, columns)):
        axes[axis : 3 * count : 3] = [axis] * len(axes[axis : 3 * count : 3])
    v = required(f, "vision_config")
    deep = v.table.get("deepstack_visual_indexes", [8, 16, 24])
    if not isinstance(deep, list) or sorted(set(deep)) != deep or len(deep) >= len(decoder.layers):
        raise v.wrong("deepstack_visual_indexes", "layers in order, fewer than the decoder has")
    side = isqrt(v.integer("num_position_embeddings", 2304))
    vision = _vision(
        f,
        16,
        last_norm=False,
        activation=v.one_of("hidden_act", from_hf.ACTIVATIONS, "gelu_pytorch_tanh"),
        positions="bilinear",
        table_side=side,
        connector=Merger("layer", _ENCODER_EPSILON),
        deep=tuple((number, Merger("layer", _ENCODER_EPSILON, norms_merged=True)) for number in deep),
    )
    return _seeing(f, decoder, "qwen3_vl", tuple(axes), vision)


def _plain(text: Fields, section: Fields | None, base: float) -> Fields:
    """The decoder's config without what M-RoPE adds to it; `base` where it does not say its rotary base."""
    rope = {"rope_theta": text.table.get("rope_theta", base), **(section.table if section else {})}
    rope["rope_type"] = rope.pop("type", rope.get("rope_type", "default"))
    if rope["rope_type"] == "mrope":
        rope["rope_type"] = "default"
    return Fields(text.path, {**text.table, "rope_parameters": rope, "rope_scaling": None})


def _rope_section(text: Fields) -> Fields | None:
    return text.section("rope_parameters") or text.section("rope_scaling")


def _sections(section: Fields | None, default: list[int]) -> list[int]:
    """How many frequencies are time's, rows' and columns'."""
    if section is None or not section.has("mrope_section"):
        return default
    value = section.table["mrope_section"]
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(each, int) and each >= 0 for each in value):
        raise section.wrong("mrope_section", "three counts")
    return value


def _seeing(
    f: Fields, decoder: DecoderConfig, architecture: str, axes: tuple[int, ...], vision: VisionConfig
) -> DecoderConfig:
    layers = []
    for layer in decoder.layers:
        assert isinstance(layer.mixer, Attention)
        if len(axes) != layer.mixer.turned // 2:
            raise f.wrong("mrope_section", f"three counts that add up to {layer.mixer.turned // 2}")
        layers.append(Layer(mixer=replace(layer.mixer, axes=axes), feed_forward=layer.feed_forward))
    tied = f.flag("tie_word_embeddings", decoder.tied_head)
    return replace(decoder, architecture=architecture, layers=tuple(layers), tied_head=tied, vision=vision)


def _vision(f: Fields, patch: int, **differences: Any) -> VisionConfig:
    v, settings = required(f, "vision_config"), picture_settings(f.path.parent)
    patch = v.integer("patch_size", patch)
    rescale, mean, std = normalisation(settings, *CLIP)
    return VisionConfig(
        patch=patch,
        frames=v.integer("temporal_patch_size", 2),
        width=v.integer("hidden_size"),
        heads=v.integer("num_heads", 16),
        layers=v.integer("depth", maximum=MAX_LAYERS),
        mlp_width=v.integer("intermediate_size"),
        norm_epsilon=_ENCODER_EPSILON,
        rope_base=(v.section("rope_parameters") or v).number("rope_theta", 1e4),
        merge=v.integer("spatial_merge_size", 2),
        most_patches=pixel_range(settings)[1] // patch**2,
        rescale=rescale,
        mean=mean,
        std=std,
        along_axes=True,
        **differences,
    )


_TEXT, _TOWER = "model.language_model.", "model.visual."


def _names(text: dict[str, str], tower: dict[str, str], biases: bool) -> dict[str, str]:
    """`tower`: a map or norm of the encoder -> its name in the file; norms have biases too if `biases`."""
    shared = {f"layers.{{}}.{m}": "blocks.{}.attn.qkv" for m in "qkv"}
    names = {"layers.{}.norm1": "blocks.{}.norm1", "layers.{}.norm2": "blocks.{}.norm2"}
    maps = {"layers.{}.o": "blocks.{}.attn.proj", "patches": "patch_embed.proj", **shared, **names, **tower}
    return {
        **{ours: theirs.replace("model.", _TEXT, 1) for ours, theirs in text.items()},
        **{f"vision.{ours}": f"{_TOWER}{theirs}.weight" for ours, theirs in maps.items()},
        **{
            f"vision.{ours}.bias": f"{_TOWER}{theirs}.bias"
            for ours, theirs in maps.items()
            if biases or "norm" not in ours
        },
    }


_QWEN2_5_TOWER = {
    "layers.{}.gate": "blocks.{}.mlp.gate_proj",
    "layers.{}.up": "blocks.{}.mlp.up_proj",
    "layers.{}.down": "blocks.{}.mlp.down_proj",
    "connector.norm": "merger.ln_q",
    "connector.inner": "merger.mlp.0",
    "connector.proj": "merger.mlp.2",
}
_QWEN3_TOWER = {
    "positions": "pos_embed",
    "layers.{}.up": "blocks.{}.mlp.linear_fc1",
    "layers.{}.down": "blocks.{}.mlp.linear_fc2",
    **{
        f"{ours}.{m}": f"{theirs}.{their}"
        for ours, theirs in (("connector", "merger"), ("deep.{}", "deepstack_merger_list.{}"))
        for m, their in (("norm", "norm"), ("inner", "linear_fc1"), ("proj", "linear_fc2"))
    },
}
_PREFIXES = (
    ("visual.", _TOWER),
    *((f"model.{part}.", f"{_TEXT}{part}.") for part in ("layers", "embed_tokens", "norm")),
)
_KERNELS = frozenset({_TOWER + "patch_embed.proj.weight"})

QWEN2_5_VL = HfArchitecture(
    _qwen2_5,
    replace(
        qwen.QWEN2.files,
        names=_names(qwen.QWEN2.files.names, _QWEN2_5_TOWER, biases=False),
        kernels=_KERNELS,
        prefixes=_PREFIXES,
    ),
)
QWEN3_VL = HfArchitecture(
    _qwen3,
    replace(
        qwen.QWEN3.files,
        names=_names(qwen.QWEN3.files.names, _QWEN3_TOWER, biases=True),
        kernels=_KERNELS,
        prefixes=_PREFIXES,
    ),
)
