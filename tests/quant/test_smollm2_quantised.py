"""The packaged SmolLM2, a GGUF file, as a GGUF file and as a folder with its first layer in NVFP4."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from tokenworks.kernels.formats import dequantise
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.files.gguf import open_gguf
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.quant.recipe import read_recipe
from tokenworks.quant.rounding import round_to_nearest
from tokenworks.quant.run import Layout, quantise_model

TEXT = "<|im_start|>user\nHow many 12-sided dice fit in 3.5 litres? Ünïcode – too.<|im_end|>\n"


@pytest.fixture(scope="module", params=["gguf", "compressed-tensors"])
def written(request: pytest.FixtureRequest, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    recipe = folder / "recipe.yaml"
    recipe.write_text('"layers.0.*": target\n')
    layout: Layout = request.param
    return quantise_model(smollm2, folder / "out", read_recipe(str(recipe), "nvfp4"), layout, (), lambda *_: None).path


def test_its_weights_and_config_are_the_source_s_but_for_what_was_quantised(smollm2: Path, written: Path) -> None:
    source, found = open_checkpoint(smollm2), open_checkpoint(written)
    assert found.config == source.config
    for name in ("layers.0.q", "layers.0.k", "layers.0.down"):
        expected = round_to_nearest("nvfp4", dequantise(source.tensors[name])).dequantise()
        assert found.tensors[name].format == "NVFP4"
        np.testing.assert_array_equal(dequantise(found.tensors[name]), expected)
    for name in ("layers.1.q", "layers.0.attention_norm", "norm"):
        before = dequantise(source.tensors[name])
        np.testing.assert_allclose(dequantise(found.tensors[name]), before, rtol=2**-11, atol=2**-24)


def test_its_tokenizer_is_the_source_s(smollm2: Path, written: Path) -> None:
    source, found = load_tokenizer(smollm2), load_tokenizer(written)
    assert found.encode(TEXT) == source.encode(TEXT)
    assert (found.eos_token_ids, found.bos_token, found.eos_token) == (
        source.eos_token_ids, source.bos_token, source.eos_token,
    )  # fmt: skip
    assert found.chat_template == source.chat_template


def test_the_gguf_package_reads_the_same_numbers(smollm2: Path, written: Path) -> None:
    if written.is_dir():
        pytest.skip("a folder")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(written).tensors}
    # q's rows lie there as rotary neighbours; those of down are ours.
    down, scale = theirs["blk.0.ffn_down.weight"], theirs["blk.0.ffn_down.scale"]
    numbers = gguf.quants.dequantize(down.data, gguf.GGMLQuantizationType.NVFP4) * np.float32(scale.data[0])
    ours = dequantise(open_checkpoint(written).tensors["layers.0.down"])
    np.testing.assert_array_equal(numbers.reshape(ours.shape), ours)
    assert len(theirs) == len(open_gguf(smollm2).tensors) + 7
