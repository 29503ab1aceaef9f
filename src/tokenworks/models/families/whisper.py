"""Whisper, Distil-Whisper (arXiv 2212.04356, 2311.00430): from Hugging Face's folders and from CTranslate2's."""

from tokenworks.models.families.from_hf import ACTIVATIONS
from tokenworks.models.files.ctranslate2 import Ct2File
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.names import FileNames, HfArchitecture
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.speech.config import SpeechConfig, Stack
from tokenworks.protocol.errors import ModelError

_BIASED = frozenset({"up", "down"})
CT2_SPECIFICATION = "WhisperSpec"
_CT2_GELU = 3
"""CTranslate2's number of the exact gelu."""


def _read(f: Fields) -> SpeechConfig:
    f.refuse("scale_embedding", (False,), "scaled embeddings are not supported")
    f.refuse("tie_word_embeddings", (True,), "an output map of its own is not supported")
    width = f.integer("d_model")
    activation = f.one_of("activation_function", ACTIVATIONS, "gelu")
    sides = []
    for side in ("encoder", "decoder"):
        heads, inner = f.integer(f"{side}_attention_heads"), f.integer(f"{side}_ffn_dim")
        if width % heads:
            raise f.wrong(f"{side}_attention_heads", f"a divisor of d_model ({width})")
        mlp = Mlp(width=inner, activation=activation, biased=_BIASED, gated=False)
        sides.append(Stack(layers=f.integer(f"{side}_layers", maximum=4096), heads=heads, mlp=mlp))
    return SpeechConfig(
        architecture="whisper",
        vocabulary=f.integer("vocab_size"),
        width=width,
        bins=f.integer("num_mel_bins", 80),
        heard=f.integer("max_source_positions", 1500),
        written=f.integer("max_target_positions", 448),
        encoder=sides[0],
        decoder=sides[1],
    )


def from_ctranslate2(file: Ct2File) -> SpeechConfig:
    """Raises ModelError for a model that is none of Whisper, or has parts that Whisper has not."""
    if file.specification != CT2_SPECIFICATION:
        raise ModelError(f"{file.path}: {file.specification} is not supported; {CT2_SPECIFICATION} is.")
    for name, usual in (("decoder/activation", _CT2_GELU), ("decoder/pre_norm", 1), ("decoder/scale_embeddings", 0)):
        if (value := file.numbers.get(name, usual)) != usual:
            raise ModelError(f"{file.path}: the variable {name!r} is {value:g}; only {usual} is supported.")
    vocabulary, width = file.shape("decoder/embeddings/weight", 2)
    sides = []
    for side in ("encoder", "decoder"):
        heads = file.integer(f"{side}/num_heads")
        if width % heads:
            raise ModelError(f"{file.path}: {side}/num_heads is {heads}, which does not divide the width {width}.")
        inner = file.shape(f"{side}/layer_0/ffn/linear_0/weight", 2)[0]
        layers = sum(name.startswith(f"{side}/") and name.endswith("ffn/linear_0/weight") for name in file.tensors)
        sides.append(
            Stack(layers=layers, heads=heads, mlp=Mlp(width=inner, activation="gelu", biased=_BIASED, gated=False))
        )
    return SpeechConfig(
        architecture="whisper",
        vocabulary=vocabulary,
        width=width,
        bins=file.shape("encoder/conv1/weight", 3)[1],
        heard=file.shape("encoder/position_encodings/encodings", 2)[0],
        written=file.shape("decoder/position_encodings/encodings", 2)[0],
        encoder=sides[0],
        decoder=sides[1],
        key_biased=True,
    )


def _both(maps: dict[str, str], weight: str = ".weight", bias: str = ".bias") -> dict[str, str]:
    return {ours: theirs + weight for ours, theirs in maps.items()} | {
        f"{ours}.bias": theirs + bias for ours, theirs in maps.items()
    }


_CONVOLUTIONS = frozenset({"speech.conv1", "speech.conv2"})
_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
_SHARED = {"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm", "up": "fc1", "down": "fc2"}
_SHARED |= {ours: f"self_attn.{theirs}" for ours, theirs in _PROJECTIONS.items()}
_CROSS = {"cross_norm": "encoder_attn_layer_norm"}
_CROSS |= {f"cross_{ours}": f"encoder_attn.{theirs}" for ours, theirs in _PROJECTIONS.items()}

WHISPER = HfArchitecture(
    _read,
    FileNames(
        {
            "embed": "decoder.embed_tokens.weight",
            "positions": "decoder.embed_positions.weight",
            "speech.positions": "encoder.embed_positions.weight",
            **_both({"norm": "decoder.layer_norm", "speech.norm": "encoder.layer_norm"}),
            **_both({"speech.conv1": "encoder.conv1", "speech.conv2": "encoder.conv2"}),
            **_both(
                {f"speech.layers.{{}}.{ours}": f"encoder.layers.{{}}.{theirs}" for ours, theirs in _SHARED.items()}
            ),
            **_both(
                {f"layers.{{}}.{ours}": f"decoder.layers.{{}}.{theirs}" for ours, theirs in (_SHARED | _CROSS).items()}
            ),
        },
        ("proj_out.weight",),
        prefix="model.",
        convolutions=_CONVOLUTIONS,
    ),
)

_CT2_NORMS = {"attention_norm": "self_attention/layer_norm", "mlp_norm": "ffn/layer_norm"}
_CT2_MAPS = dict.fromkeys("qkv", "self_attention/linear_0") | {"o": "self_attention/linear_1"}
_CT2_MAPS |= {"up": "ffn/linear_0", "down": "ffn/linear_1"}
_CT2_CROSS = {"cross_q": "attention/linear_0", "cross_k": "attention/linear_1", "cross_v": "attention/linear_1"}
_CT2_CROSS |= {"cross_o": "attention/linear_2"}


def _ct2_layers(ours: str, theirs: str, norms: dict[str, str], maps: dict[str, str]) -> dict[str, str]:
    norms, maps = ({ours + name: theirs + path for name, path in each.items()} for each in (norms, maps))
    return _both(norms, "/gamma", "/beta") | _both(maps, "/weight", "/bias")


CT2 = FileNames(
    {
        "embed": "decoder/embeddings/weight",
        "positions": "decoder/position_encodings/encodings",
        "speech.positions": "encoder/position_encodings/encodings",
        **_both({"norm": "decoder/layer_norm", "speech.norm": "encoder/layer_norm"}, "/gamma", "/beta"),
        **_both({"speech.conv1": "encoder/conv1", "speech.conv2": "encoder/conv2"}, "/weight", "/bias"),
        **_ct2_layers("speech.layers.{}.", "encoder/layer_{}/", _CT2_NORMS, _CT2_MAPS),
        **_ct2_layers(
            "layers.{}.",
            "decoder/layer_{}/",
            _CT2_NORMS | {"cross_norm": "attention/layer_norm"},
            _CT2_MAPS | _CT2_CROSS,
        ),
    },
    ("decoder/projection/*", "decoder/alignment_*"),
    convolutions=_CONVOLUTIONS,
)
