"""Models that see, against transformers: what their processors make of pictures, logits of prompts with pictures."""

import io
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from small_checkpoints import log_softmax
from transformers import AutoModelForImageTextToText
from transformers.image_transforms import convert_to_rgb
from vision_checkpoints import (
    FAMILIES,
    drawing,
    file_of,
    our_vision_logits,
    prompt_of,
    reference_inputs,
    reference_pixels,
    write_vision_model,
)

from tokenworks.kernels.backend import Backend
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.vision.picture import open_picture
from tokenworks.models.vision.pixels import Pixels
from tokenworks.protocol.errors import ModelError

BACKENDS = [ReferenceBackend(), CpuBackend()]
SIZES = [(24, 24), (10, 11), (90, 31), (37, 100), (300, 7)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_the_reference_processor(family: str, size: tuple[int, int], tmp_path: Path) -> None:
    write_vision_model(family, tmp_path)
    image = drawing(*size)
    want = reference_pixels(family, tmp_path, [image])["pixel_values"].numpy()
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
    given = reference_inputs(family, tmp_path, images, ids, pictures)
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


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_files_are_opened_as_the_reference_does(mode: str) -> None:
    image = drawing(31, 17)
    image.putalpha(drawing(31, 17, 1).convert("L"))
    data = file_of(image.convert(mode))
    want = convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True)
    np.testing.assert_array_equal(np.asarray(open_picture(data, "messages")), want)


def test_a_picture_lies_as_its_camera_was_held() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    opened = open_picture(file_of(drawing(31, 17), exif=exif), "messages")
    np.testing.assert_array_equal(np.asarray(opened), np.rot90(np.asarray(drawing(31, 17)), -1))


@pytest.mark.parametrize(
    ("family", "file", "change", "complaint"),
    [
        ("gemma3", "processor_config.json", {"image_processor": None}, "preprocessor_config.json"),
        ("idefics3", "preprocessor_config.json", {"do_normalize": False}, "do_normalize is False"),
        ("idefics3", "preprocessor_config.json", {"image_mean": [1, 2]}, "image_mean"),
        ("idefics3", "preprocessor_config.json", {"max_image_size": {"longest_edge": 25}}, "max_image_size"),
        ("gemma3", "config.json", {"mm_tokens_per_image": 7}, "mm_tokens_per_image is 7"),
        ("gemma3", "processor_config.json", {"image_processor": {"size": {"height": 8, "width": 8}}}, "size"),
        ("qwen3_vl", "config.json", {"vision_config": None}, "vision_config is missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    family: str, file: str, change: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    write_vision_model(family, tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=complaint):
        open_checkpoint(tmp_path)
