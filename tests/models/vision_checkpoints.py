"""Small random checkpoints of models that see, with tokenizer and processor files, and pictures to show them."""

import io
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from small_checkpoints import Float32, assert_described, randomise
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tokenworks.kernels.backend import Backend, Limits, StepBatch
from tokenworks.models.checkpoint import Checkpoint, open_checkpoint
from tokenworks.models.vision.pixels import Pixels
from tokenworks.models.vision.positions import along_axes
from tokenworks.models.vision.processors import open_processor
from tokenworks.protocol.messages import Picture

_LETTERS = [chr(c) for c in range(32, 127)] + ["\n"]
_TEXT = {
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_ROLES = "{% for m in messages %}[{{ m['role'] }}]"
_PARTS = (
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}PICTURE{% endif %}{% endfor %}"
)
_END = "\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
_TEMPLATE = _ROLES + _PARTS + _END


def _write_tokenizer(folder: Path, special: Sequence[str], picture: str) -> dict[str, int]:
    """A token for each character, the special ones before them, and one that ends a reply."""
    vocabulary = {token: number for number, token in enumerate([*special, "<end>", *_LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([*special, "<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": _TEMPLATE.replace("PICTURE", picture), "eos_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary


def _write_idefics3(folder: Path) -> PreTrainedModel:
    tags = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    ids = _write_tokenizer(folder, ["<image>", "<fake_token_around_image>", "<global-img>", *tags], "<image>")
    settings = {
        "size": {"longest_edge": 70},
        "max_image_size": {"longest_edge": 24},
        "resample": 1,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "image_processor_type": "Idefics3ImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    vision = {
        "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 76,
        "patch_size": 4,
    }  # fmt: skip
    text = {"model_type": "llama", "vocab_size": len(ids), **_TEXT}
    config = Idefics3Config(text_config=text, vision_config=vision, image_token_id=ids["<image>"], scale_factor=2)
    return Idefics3ForConditionalGeneration(config)


def _write_gemma3(folder: Path) -> PreTrainedModel:
    special = ["<image_soft_token>", "<start_of_image>", "<end_of_image>"]
    ids = _write_tokenizer(folder, special, "<start_of_image>")
    settings = {"size": {"height": 24, "width": 24}, "resample": 2, "image_processor_type": "Gemma3ImageProcessor"}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    vision = {
        "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 24,
        "patch_size": 4,
    }  # fmt: skip
    text = {**_TEXT, "vocab_size": len(ids), "num_hidden_layers": 3, "sliding_window": 6, "query_pre_attn_scalar": 8}
    text |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "tie_word_embeddings": False}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=9,
            image_token_id=ids["<image_soft_token>"],
            tie_word_embeddings=False,
        )
    )


def _qwen_files(folder: Path, **settings: Any) -> dict[str, Any]:
    """Writes tokenizer and processor; the config's part that both generations share."""
    special = ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
    ids = _write_tokenizer(folder, special, "<|vision_start|><|image_pad|><|vision_end|>")
    settings = {"patch_size": 4, "merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor", **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "text_config": {**_TEXT, "vocab_size": len(ids)},
        "vision_config": {
            "hidden_size": 24, "intermediate_size": 36, "depth": 4, "num_heads": 3, "patch_size": 4,
            "out_hidden_size": 40,
        },
    }  # fmt: skip


def _write_qwen2_5_vl(folder: Path) -> PreTrainedModel:
    config = _qwen_files(folder, min_pixels=200, max_pixels=1500)
    config["vision_config"] |= {"window_size": 16, "fullatt_block_indexes": [1, 3]}
    config["text_config"] |= {
        "rope_parameters": {"rope_type": "default", "rope_theta": 50.0, "mrope_section": [2, 1, 1]}
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))


def _write_qwen3_vl(folder: Path) -> PreTrainedModel:
    config = _qwen_files(folder, size={"shortest_edge": 200, "longest_edge": 1500}, image_mean=[0.5] * 3)
    config["vision_config"] |= {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}
    rope = {"rope_type": "default", "rope_theta": 50.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config["text_config"] |= {"rope_parameters": rope}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))


_WRITERS = {
    "idefics3": _write_idefics3,
    "gemma3": _write_gemma3,
    "qwen2_5_vl": _write_qwen2_5_vl,
    "qwen3_vl": _write_qwen3_vl,
}
FAMILIES = list(_WRITERS)


def write_vision_model(family: str, folder: Path) -> None:
    torch.manual_seed(sum(map(ord, family)))
    model = _WRITERS[family](folder)
    randomise(model)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    with torch.no_grad():  # it says letters, hardly ever what is special
        model.get_output_embeddings().weight[: words["<end>"] + 1] = 0
    model.save_pretrained(folder)


def drawing(width: int, height: int, seed: int = 0) -> Image.Image:
    """Lines, discs and noise: a picture in which every pixel's place matters."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, to_x, to_y = (int(v) for v in random.integers(0, [width, height, width, height]))
        colour = tuple(int(v) for v in random.integers(0, 256, 3))
        draw.line((x, y, to_x, to_y), colour, 3)
        draw.ellipse((x, y, x + width // 5, y + height // 5), colour)
    return image


def file_of(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def prompt_of(folder: Path, images: Sequence[Image.Image]) -> tuple[list[int], list[Picture]]:
    """Token ids of a prompt that shows the images, and what a worker is told of them."""
    processor = open_processor(folder)
    assert processor is not None
    shown = [processor.show(image) for image in images]
    text = "Look:" + " and ".join(each.words for each in shown) + " what is it?"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    places = [i for i, token in enumerate(ids) if token == tokenizer.token_to_id(processor.placeholder)]
    pictures, at = [], 0
    for tile in (tile for each in shown for tile in each.tiles):
        digest = sha256(tile.pixels).digest()
        pictures.append(Picture(places[at], tile.rows, tile.columns, tile.width, tile.height, tile.pixels, digest))
        at += tile.rows * tile.columns
    assert at == len(places)
    return ids, pictures


def reference_pixels(family: str, folder: Path, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """What transformers' own processor makes of the images."""
    images = list(images)
    match family:
        case "idefics3":
            return dict(Idefics3ImageProcessorPil.from_pretrained(folder)([images], return_tensors="pt"))
        case "gemma3":
            settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
            return dict(Gemma3ImageProcessorPil(**settings)(images, return_tensors="pt"))
        case _:
            return dict(Qwen2VLImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt"))


def reference_inputs(
    family: str, folder: Path, images: Sequence[Image.Image], ids: Sequence[int], pictures: Sequence[Picture]
) -> dict[str, torch.Tensor]:
    """What transformers' model is given beside a prompt's token ids."""
    given = reference_pixels(family, folder, images)
    of_picture = torch.zeros(1, len(ids), dtype=torch.int64)
    for picture in pictures:
        of_picture[0, picture.at : picture.end] = 1
    match family:
        case "gemma3":
            return {"pixel_values": given["pixel_values"], "token_type_ids": of_picture}
        case "qwen2_5_vl" | "qwen3_vl":
            return {**given, "mm_token_type_ids": of_picture}
    return given


def features_of(checkpoint: Checkpoint, backend: Backend, picture: Picture) -> Float32:
    """[tokens, features * width], part by part as a worker runs it."""
    vision = checkpoint.config.vision  # type: ignore[union-attr]
    assert vision is not None
    limits = Limits(vision.most_patches, 1, 1, 1, 4, "float32", 2)
    table = None
    if vision.positions == "bilinear":
        from tokenworks.kernels.formats import dequantise

        table = dequantise(checkpoint.tensors["vision.positions"])
    pixels = Pixels(vision, table)
    assert pixels.objection(picture) is None
    step = pixels.step(picture)
    executable = backend.compile(checkpoint.vision_program(vision), checkpoint.tensors, limits)
    for part in range(executable.parts):
        rows = executable.run(step.batch, part)
    features = np.empty_like(rows)
    features[step.order] = rows
    return features


def our_vision_logits(
    path: Path, ids: Sequence[int], pictures: Sequence[Picture], backend: Backend, chunks: Sequence[int] = ()
) -> Float32:
    """[tokens, vocabulary] of a prompt with pictures, in steps that end at `chunks`."""
    checkpoint = open_checkpoint(path)
    assert_described(checkpoint.tensors)
    vision = checkpoint.config.vision  # type: ignore[union-attr]
    assert vision is not None
    count, size = len(ids), 4
    blocks = -(-count // size)
    model = backend.compile(
        checkpoint.program(), checkpoint.tensors, Limits(count, 1, count, blocks, size, "float32", 2)
    )
    features = np.concatenate([features_of(checkpoint, backend, picture) for picture in pictures])
    places = np.concatenate([np.arange(picture.at, picture.end) for picture in pictures])
    axes = along_axes(count, pictures) if vision.along_axes else None
    ends = np.arange(1, count + 1, dtype=np.int32)
    for picture in pictures if vision.sees_ahead else ():
        ends[picture.at : picture.end] = picture.end
    table = np.arange(blocks, dtype=np.int32)[::-1].copy()[None]
    rows = []
    for start, end in zip([0, *chunks], [*chunks, count], strict=True):
        inside = (places >= start) & (places < end)
        batch = StepBatch(
            np.asarray(ids[start:end], np.int32),
            np.arange(start, end, dtype=np.int32),
            np.array([0, end - start], np.int32),
            table,
            np.arange(end - start, dtype=np.int32),
            features=features[inside],
            feature_rows=(places[inside] - start).astype(np.int32),
            axes=None if axes is None else np.ascontiguousarray(axes[:, start:end]),
            ends=ends[start:end].copy(),
        )
        rows.append(model.run(batch).copy())
    return np.concatenate(rows)
