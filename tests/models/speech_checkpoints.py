"""A small random Whisper made by transformers, in its own folder and in CTranslate2's; sounds for it."""

import json
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tokenworks.protocol.messages import Sound

HEARD, BINS, WRITTEN, VOCABULARY = 37, 10, 96, 211
FRAMES = 2 * HEARD

Float32 = npt.NDArray[np.float32]


def write_whisper(folder: Path, seed: int = 5, width: int = 48, inner: int = 80) -> None:
    """Its odd sizes are divided by nothing: three heads, blocks that end within the sound."""
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=BINS, d_model=width, max_source_positions=HEARD,
        max_target_positions=WRITTEN, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=inner,
        decoder_layers=3, decoder_attention_heads=3, decoder_ffn_dim=96, decoder_start_token_id=200, bos_token_id=199,
        eos_token_id=199, pad_token_id=199, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.normal_(mean=1.0, std=0.2)
            else:
                weight.normal_(std=0.35 if weight.dim() == 1 else 0.2)
            if "norm" in name and name.endswith("bias"):
                weight.mul_(0.2)  # or the last one's decides every token
        for side in (model.model.encoder, model.model.decoder):
            side.embed_positions.weight.normal_(std=0.7)
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, "w0"))
    tokenizer.save(str(folder / "tokenizer.json"))


def write_ctranslate2(source: Path, folder: Path, *, in_bytes: bool = False) -> None:
    """The same model as CTranslate2's converter lays it out, in float32, or its linear maps in int8."""
    state = WhisperForConditionalGeneration.from_pretrained(source).state_dict()
    variables: dict[str, npt.NDArray[np.generic]] = {}

    def put(name: str, *tensors: torch.Tensor) -> None:
        variables[name] = torch.cat(tensors).numpy()

    def linear(name: str, *theirs: str) -> None:
        put(name + "/weight", *(state[each + ".weight"] for each in theirs))
        widths = [state[each + ".weight"].shape[:1] for each in theirs]
        biases = zip(theirs, widths, strict=True)
        put(name + "/bias", *(state.get(each + ".bias", torch.zeros(width)) for each, width in biases))

    def norm(name: str, theirs: str) -> None:
        put(name + "/gamma", state[theirs + ".weight"])
        put(name + "/beta", state[theirs + ".bias"])

    put("decoder/embeddings/weight", state["model.decoder.embed_tokens.weight"])
    for side, layers in (("encoder", 2), ("decoder", 3)):
        put(f"{side}/position_encodings/encodings", state[f"model.{side}.embed_positions.weight"])
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        variables[f"{side}/num_heads"] = np.array(3, np.int16)
        for number in range(layers):
            name, theirs = f"{side}/layer_{number}/", f"model.{side}.layers.{number}."
            linear(name + "self_attention/linear_0", *(f"{theirs}self_attn.{m}_proj" for m in "qkv"))
            linear(name + "self_attention/linear_1", theirs + "self_attn.out_proj")
            norm(name + "self_attention/layer_norm", theirs + "self_attn_layer_norm")
            linear(name + "ffn/linear_0", theirs + "fc1")
            linear(name + "ffn/linear_1", theirs + "fc2")
            norm(name + "ffn/layer_norm", theirs + "final_layer_norm")
            if side == "decoder":
                linear(name + "attention/linear_0", theirs + "encoder_attn.q_proj")
                linear(name + "attention/linear_1", *(f"{theirs}encoder_attn.{m}_proj" for m in "kv"))
                linear(name + "attention/linear_2", theirs + "encoder_attn.out_proj")
                norm(name + "attention/layer_norm", theirs + "encoder_attn_layer_norm")
    for number in (1, 2):
        put(f"encoder/conv{number}/weight", state[f"model.encoder.conv{number}.weight"])
        put(f"encoder/conv{number}/bias", state[f"model.encoder.conv{number}.bias"])
    if in_bytes:
        for name in [each for each in variables if each.endswith("weight") and "conv" not in each]:
            factors = 127 / np.abs(variables[name]).max(axis=1)
            variables[name + "_scale"] = factors.astype(np.float32)
            variables[name] = np.rint(variables[name] * factors[:, None]).astype(np.int8)
    variables["decoder/activation"] = np.array(3, np.int8)
    variables["decoder/alignment_heads"] = np.zeros((2, 2), np.int16)
    (folder / "model.bin").write_bytes(ctranslate2_file("WhisperSpec", variables))
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [1, 2], "suppress_ids_begin": [3]}))
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())


def ctranslate2_file(specification: str, variables: dict[str, npt.NDArray[np.generic]]) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    types = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    parts = [struct.pack("<I", 6), text(specification), struct.pack("<II", 3, len(variables))]
    for name, values in sorted(variables.items()):
        shape = struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
        parts += [text(name), shape, struct.pack("<BI", types[values.dtype.name], values.nbytes), values.tobytes()]
    aliases = [text("decoder/projection/weight"), text("decoder/embeddings/weight")]
    return b"".join([*parts, struct.pack("<I", 1), *aliases])


def noise(seed: int, frames: int = FRAMES) -> Float32:
    """[frames, BINS]"""
    return np.random.default_rng(seed).uniform(-1, 1, (frames, BINS)).astype(np.float32)


def sound_of(mels: Float32) -> Sound:
    data = mels.tobytes()
    return Sound(HEARD, data, bytes([len(data) % 251]) + data[:15])
