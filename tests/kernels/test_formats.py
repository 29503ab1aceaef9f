"""Each format against the `gguf` package, or torch where that lacks it, bit for bit, on random bytes."""

import gguf
import numpy as np
import pytest
import torch

from tokenworks.kernels.formats import FORMATS, dequantise, tensor_bytes
from tokenworks.kernels.tensor import Tensor

GGUF_FORMATS = [name for name in FORMATS if name not in ("I8", "F8_E4M3", "F8_64")]


@pytest.mark.parametrize("name", GGUF_FORMATS)
def test_random_blocks_mean_the_same_as_in_the_gguf_package(name: str) -> None:
    form = FORMATS[name]
    rng = np.random.default_rng(7)
    rows, row_blocks = 37, 1 if form.block_elements > 1 else 64
    data = rng.integers(0, 256, (rows, row_blocks * form.block_bytes), np.uint8)
    shape = (rows, row_blocks * form.block_elements)
    with np.errstate(all="ignore"):  # random bytes make NaN and infinite scales too
        ours = dequantise(Tensor("t", name, shape, data.ravel()))
        theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    assert ours.dtype == np.float32
    assert ours.shape == shape
    np.testing.assert_array_equal(ours, theirs)
    assert np.isfinite(ours).mean() > 0.8
    np.testing.assert_array_equal(np.signbit(ours[np.isfinite(ours)]), np.signbit(theirs[np.isfinite(theirs)]))


@pytest.mark.parametrize("name", GGUF_FORMATS)
def test_block_sizes_match_the_gguf_package(name: str) -> None:
    form = FORMATS[name]
    assert (form.block_elements, form.block_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.parametrize(("name", "dtype"), [("I8", torch.int8), ("F8_E4M3", torch.float8_e4m3fn)])
def test_every_byte_means_the_same_as_in_torch(name: str, dtype: torch.dtype) -> None:
    data = np.arange(256, dtype=np.uint8)
    theirs = torch.from_numpy(data).view(dtype).to(torch.float32).numpy()
    np.testing.assert_array_equal(dequantise(Tensor("t", name, (16, 16), data)).ravel(), theirs)


def test_row_scales_multiply_rows() -> None:
    data = np.random.default_rng(8).integers(0, 127, 3 * 64, np.uint8)
    scales = np.array([2, 0.3, -1], np.float32)
    plain = dequantise(Tensor("t", "F8_E4M3", (3, 64), data))
    scaled = dequantise(Tensor("t", "F8_E4M3", (3, 64), data, scales))
    np.testing.assert_array_equal(scaled, plain * scales[:, None])


def test_tensor_bytes() -> None:
    assert tensor_bytes("Q4_1", (3, 64)) == 3 * 2 * 20
    assert tensor_bytes("F16", ()) == 2
    with pytest.raises(ValueError, match="640 elements is not whole blocks of 256"):
        tensor_bytes("Q4_K", (2, 640))
