"""Gemma 3 with sight (arXiv 2503.19786): SigLIP sees a picture as a square, whose patches are averaged to 256
embeddings; in the decoder these see each other."""

from dataclasses import replace
from math import isqrt

from tokenworks.models.config import MAX_LAYERS, DecoderConfig
from tokenworks.models.families import from_hf, gemma
from tokenworks.models.families.idefics3 import SIGLIP
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.names import HfArchitecture
from tokenworks.models.vision.config import VisionConfig
from tokenworks.models.vision.connectors import Pool
from tokenworks.models.vision.settings import normalisation, picture_settings, required

_TEXT_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
}
"""Which the published files leave out."""


def _read(f: Fields) -> DecoderConfig:
    text = required(f, "text_config")
    decoder = gemma.GEMMA3.read(Fields(text.path, {**_TEXT_DEFAULTS, **text.table}))
    assert isinstance(decoder, DecoderConfig)
    tied = f.flag("tie_word_embeddings", True)
    return replace(decoder, tied_head=tied, vision=_vision(f))


def _vision(f: Fields) -> VisionConfig:
    v, settings = required(f, "vision_config"), picture_settings(f.path.parent)
    patch, side = v.integer("patch_size", 16), v.integer("image_size", 224)
    size = required(settings, "size")
    if (size.integer("height"), size.integer("width")) != (side, side):
        raise settings.wrong("size", f"{side} x {side}, which the encoder is made for,")
    tokens = f.integer("mm_tokens_per_image", 256)
    merge = side // patch // isqrt(tokens)
    if merge < 1 or (merge * isqrt(tokens)) ** 2 * patch**2 != side**2 or isqrt(tokens) ** 2 != tokens:
        raise f.wrong("mm_tokens_per_image", f"a square that divides the {side // patch} x {side // patch} patches")
    rescale, mean, std = normalisation(settings)
    epsilon = v.number("layer_norm_eps", 1e-6)
    return VisionConfig(
        patch=patch,
        width=v.integer("hidden_size", 768),
        heads=v.integer("num_attention_heads", 12),
        layers=v.integer("num_hidden_layers", 12, maximum=MAX_LAYERS),
        mlp_width=v.integer("intermediate_size", 3072),
        activation=v.one_of("hidden_act", from_hf.ACTIVATIONS, "gelu_pytorch_tanh"),
        norm_epsilon=epsilon,
        positions="table",
        table_side=side // patch,
        merge=merge,
        connector=Pool(epsilon),
        most_patches=(side // patch) ** 2,
        rescale=rescale,
        mean=mean,
        std=std,
        sees_ahead=True,
    )


_TOWER, _TEXT, _PROJECTOR = "vision_tower.", "language_model.", "multi_modal_projector."
_NAMES = {
    **{ours: _TEXT + theirs for ours, theirs in gemma.GEMMA3.files.names.items()},
    **{ours: _TOWER + theirs for ours, theirs in SIGLIP.items()},
    "vision.connector.norm": _PROJECTOR + "mm_soft_emb_norm.weight",
    "vision.connector.proj": _PROJECTOR + "mm_input_projection_weight",
}
GEMMA3_VISION = HfArchitecture(
    _read,
    replace(
        gemma.GEMMA3.files,
        names=_NAMES,
        unused=(_TEXT + "lm_head.weight", _TOWER + "head.*"),  # the encoder's own way to one vector
        kernels=frozenset({_TOWER + SIGLIP["vision.patches"]}),
        transposed=frozenset({_NAMES["vision.connector.proj"]}),
        prefixes=(
            ("model.language_model.", _TEXT + "model."),
            ("lm_head.", _TEXT + "lm_head."),
            ("model.vision_tower.vision_model.", _TOWER),
            ("model.vision_tower.", _TOWER),
            ("vision_tower.vision_model.", _TOWER),
            ("model.multi_modal_projector.", _PROJECTOR),
        ),
    ),
)
