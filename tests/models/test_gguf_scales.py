"""Scales that a GGUF file keeps beside its weights, as llama.cpp's converter writes them for NVFP4."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from tokenworks.kernels.formats import dequantise
from tokenworks.models.files.gguf import open_gguf
from tokenworks.protocol.errors import ModelError


def write(path: Path, scale: np.ndarray) -> np.ndarray:
    """A file with one NVFP4 weight [3, 128]; returns its numbers without the scale."""
    data = np.random.default_rng(1).integers(0, 128, (3, 2 * 36), np.uint8)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.attn_q.weight", data, raw_dtype=gguf.GGMLQuantizationType.NVFP4)
    writer.add_tensor("blk.0.attn_q.scale", scale)
    writer.add_tensor("blk.0.attn_q.input_scale", np.ones(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType.NVFP4)


@pytest.mark.parametrize("scale", [[0.3], [0.3, 2.0, -1.0]])
def test_scales_are_joined_to_their_weight(tmp_path: Path, scale: list[float]) -> None:
    plain = write(tmp_path / "m.gguf", np.array(scale, np.float32))
    tensors = open_gguf(tmp_path / "m.gguf").tensors
    assert list(tensors) == ["blk.0.attn_q.weight"]
    want = plain * np.array(scale, np.float32).reshape(-1, 1)
    np.testing.assert_array_equal(dequantise(tensors["blk.0.attn_q.weight"]), want)


def test_a_wrong_number_of_scales_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", np.ones(2, np.float32))
    with pytest.raises(ModelError, match=r"'blk\.0\.attn_q\.scale' has 2 scales for 3 rows"):
        open_gguf(tmp_path / "m.gguf")
