"""Models that see, against transformers: what their processors make of pictures, logits of prompts with pictures."""

import json
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from small_checkpoints import log_softmax
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from vision_checkpoints import FAMILIES, drawing, our_vision_logits, write_vision_model

from tokenworks.kernels.backend import Backend
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.vision.pixels import Pixels
from tokenworks.models.vision.processors import open_processor
from tokenworks.protocol.messages import Picture

BACKENDS = [ReferenceBackend(), CpuBackend()]
SIZES = [(24, 24), (10, 11), (90, 31), (37, 100), (300, 7)]


def theirs(family: str, folder: Path, images: list[Image.Image]) -> dict[str, torch.Tensor]:
    """What transformers' own processor gives its model."""
    match family:
        case "idefics3":
            processor = Idefics3ImageProcessorPil.from_pretrained(folder)
            return dict(processor([images], return_tensors="pt"))
        case "gemma3":
            settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
            return dict(Gemma3ImageProcessorPil(**settings)(images, return_tensors="pt"))
        case _:
            return dict(Qwen2VLImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt"))


def prompt_of(folder: Path, images: list[Image.Image]) -> tuple[list[int], list[Picture]]:
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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_the_reference_processor(family: str, size: tuple[int, int], tmp_path: Path) -> None:
    write_vision_model(family, tmp_path)
    image = drawing(*size)
    want = theirs(family, tmp_path, [image])["pixel_values"].numpy()
    _, pictures = prompt_of(tmp_path, [image])
    vision = open_checkpoint(tmp_path).config.vision  # type: ignore[union-attr]
    assert vision is not None
    for number, picture in enumerate(pictures):
        step = Pixels(vision, None).step(picture)
        assert step.batch.inputs is not None
        patches = step.batch.inputs[:, : vision.patch_width].reshape(len(step.order), vision.merge**2, -1)
        in_order = np.empty_like(patches)
        in_order[step.order] = patches
        expected = want[0, number] if family == "idefics3" else want if "qwen" in family else want[number]
        if "qwen" not in family:  # which cuts its pictures itself
            side = vision.patch * vision.merge
            assert expected.shape == (3, picture.rows * side, picture.columns * side)
            squares = expected.reshape(3, picture.rows, vision.merge, vision.patch, picture.columns, vision.merge, -1)
            expected = squares.transpose(1, 4, 2, 5, 0, 3, 6)
        np.testing.assert_array_equal(in_order.ravel(), expected.ravel())


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, backend: Backend, tmp_path: Path) -> None:
    write_vision_model(family, tmp_path)
    images = [drawing(90, 31, 1), drawing(20, 23, 2)]
    ids, pictures = prompt_of(tmp_path, images)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    given = theirs(family, tmp_path, images)
    of_picture = torch.zeros(1, len(ids), dtype=torch.int64)
    for picture in pictures:
        of_picture[0, picture.at : picture.end] = 1
    match family:
        case "gemma3":
            given = {"pixel_values": given["pixel_values"], "token_type_ids": of_picture}
        case "qwen2_5_vl" | "qwen3_vl":
            given["mm_token_type_ids"] = of_picture
    want = log_softmax(model.eval()(input_ids=torch.tensor([ids]), **given).logits[0].numpy())
    assert np.ptp(want, axis=-1).min() > 1, "weights so small that nothing is tested"
    got = log_softmax(our_vision_logits(tmp_path, ids, pictures, backend))
    np.testing.assert_allclose(got, want, atol=1e-3, rtol=0)
    turned = msgspec.structs.replace(pictures[0], pixels=pictures[0].pixels[::-1])
    other = log_softmax(our_vision_logits(tmp_path, ids, [turned, *pictures[1:]], backend))
    assert np.abs(other - want).max() > 0.1, "the pictures do not matter"
    first, last = pictures[0], pictures[-1]
    cuts = [first.at - 1, first.end] if family == "gemma3" else [first.at + 1, last.at + 2]  # which sees ahead
    np.testing.assert_array_equal(log_softmax(our_vision_logits(tmp_path, ids, pictures, backend, cuts)), got)
