"""Idefics 3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299): Llama reads what SigLIP sees of each tile, its patches
shuffled together. A picture is shown whole and in tiles."""

from dataclasses import replace

from tokenworks.models.config import MAX_LAYERS, DecoderConfig
from tokenworks.models.families import from_hf, llama
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.names import HfArchitecture
from tokenworks.models.vision.config import VisionConfig
from tokenworks.models.vision.connectors import Shuffle
from tokenworks.models.vision.settings import normalisation, picture_settings, required


def _read(f: Fields) -> DecoderConfig:
    text = required(f, "text_config")
    text.refuse("model_type", ("llama",), "only Llama's decoder is supported for this architecture")
    decoder = llama.LLAMA.read(Fields(text.path, {"rms_norm_eps": 1e-5, **text.table}))
    assert isinstance(decoder, DecoderConfig)
    tied = f.flag("tie_word_embeddings", False)
    architecture = str(f.table["model_type"])
    return replace(decoder, architecture=architecture, tied_head=tied, vision=_vision(f))


def _vision(f: Fields) -> VisionConfig:
    v, settings = required(f, "vision_config"), picture_settings(f.path.parent)
    patch, tile = v.integer("patch_size", 32), required(settings, "max_image_size").integer("longest_edge")
    merge = f.integer("scale_factor", 2)
    if tile % (patch * merge):
        raise settings.wrong("max_image_size", f"a multiple of {merge} patches of {patch} pixels")
    rescale, mean, std = normalisation(settings)
    return VisionConfig(
        patch=patch,
        width=v.integer("hidden_size", 1152),
        heads=v.integer("num_attention_heads", 16),
        layers=v.integer("num_hidden_layers", 12, maximum=MAX_LAYERS),
        mlp_width=v.integer("intermediate_size", 3072),
        activation=v.one_of("hidden_act", from_hf.ACTIVATIONS, "gelu_pytorch_tanh"),
        norm_epsilon=v.number("layer_norm_eps", 1e-6),
        positions="nearest",
        table_side=v.integer("image_size", 224) // patch,
        merge=merge,
        connector=Shuffle(),
        most_patches=(tile // patch) ** 2,
        rescale=rescale,
        mean=mean,
        std=std,
    )


SIGLIP = {
    "vision.positions": "embeddings.position_embedding.weight",
    "vision.patches": "embeddings.patch_embedding.weight",
    "vision.patches.bias": "embeddings.patch_embedding.bias",
    **{
        f"vision.{ours}{end}": f"{theirs}.{kind}"
        for ours, theirs in {
            "last": "post_layernorm",
            "layers.{}.norm1": "encoder.layers.{}.layer_norm1",
            "layers.{}.norm2": "encoder.layers.{}.layer_norm2",
            "layers.{}.q": "encoder.layers.{}.self_attn.q_proj",
            "layers.{}.k": "encoder.layers.{}.self_attn.k_proj",
            "layers.{}.v": "encoder.layers.{}.self_attn.v_proj",
            "layers.{}.o": "encoder.layers.{}.self_attn.out_proj",
            "layers.{}.up": "encoder.layers.{}.mlp.fc1",
            "layers.{}.down": "encoder.layers.{}.mlp.fc2",
        }.items()
        for end, kind in (("", "weight"), (".bias", "bias"))
    },
}
"""Of a SigLIP encoder, canonical name -> name within it."""

_TOWER = "model.vision_model."
_NAMES = {
    **{ours: theirs.replace("model.", "model.text_model.", 1) for ours, theirs in from_hf.NAMES.names.items()},
    **{ours: _TOWER + theirs for ours, theirs in SIGLIP.items()},
    "vision.connector.proj": "model.connector.modality_projection.proj.weight",
}
IDEFICS3 = HfArchitecture(
    _read,
    replace(from_hf.NAMES, names=_NAMES, kernels=frozenset({_TOWER + SIGLIP["vision.patches"]})),
)
