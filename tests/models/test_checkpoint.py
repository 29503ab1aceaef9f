"""Files that are not what they should be: every one is refused, with the file and the cause named."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import write_gguf
from safetensors.numpy import load_file, save_file
from small_checkpoints import write_decoder

from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.files.gguf import open_gguf
from tokenworks.models.files.packed_store import place_of
from tokenworks.protocol.errors import ModelError

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_decoder("llama", folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "m"))


def _change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _change_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "llama5"},
            r"'llama5' is not supported. The nearest is 'llama'. Supported here: llama,",
        ),
        ({"hidden_size": None}, "hidden_size is missing; an integer from 1"),
        ({"hidden_size": -4}, "hidden_size is -4"),
        ({"hidden_size": "40"}, "hidden_size is '40'"),
        ({"num_hidden_layers": 1 << 30}, "num_hidden_layers is 1073741824; an integer from 1 to 4096"),
        ({"num_hidden_layers": 2}, r"tensor 'model.layers.2.\S+' is unexpected"),
        ({"num_hidden_layers": 4}, r"tensor 'model.layers.3.\S+' is missing"),
        ({"vocab_size": 100}, r"embed_tokens.weight' has shape \[101, 40\]; .* should have \[100, 40\]"),
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2; a divisor of num_attention_heads"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; one of silu, gelu"),
        (
            {"rope_parameters": {"rope_type": "ropey", "rope_theta": 1.0}},
            "is 'ropey'; one of default, linear",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        ({"quantization_config": {"quant_method": "gptq"}}, "use a GGUF file"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": [[], {}, 3], "use_sliding_window": True}, "layer_types"),
    ],
)
def test_a_config_that_does_not_fit(folder: Path, changes: dict[str, Any], message: str) -> None:
    _change_config(folder, **changes)
    with pytest.raises(ModelError, match=message) as error:
        open_checkpoint(folder)
    assert str(folder) in error.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "'model.norm.weight' is missing"),
        (lambda t: t.update({"model.layers.0.extra": np.zeros(3, np.float32)}), "layers.0.extra' is unexpected"),
        (lambda t: t.update({"model.norm.weight": np.zeros(40, np.int32)}), "type I32, which is not supported"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change: Any, message: str) -> None:
    _change_weights(folder, change)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 5, 9, 1000, -1])
def test_a_truncated_safetensors_file(folder: Path, keep: int) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
        7,
    ],
)
def test_a_damaged_safetensors_header(folder: Path, entry: Any) -> None:
    header = json.dumps({"a": entry}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        open_checkpoint(folder)


def test_shards_that_are_missing_or_incomplete(tmp_path: Path) -> None:
    write_decoder("llama", tmp_path, max_shard_size="20kB")
    index_path = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    open_checkpoint(tmp_path)
    index["weight_map"]["lost.weight"] = shards[0]
    index_path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=rf"{shards[0]} lacks tensor 'lost.weight'"):
        open_checkpoint(tmp_path)
    index["weight_map"]["lost.weight"] = "../elsewhere.safetensors"
    index_path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not the name of a file in this folder"):
        open_checkpoint(tmp_path)
    del index["weight_map"]["lost.weight"]
    index_path.write_text(json.dumps(index))
    (tmp_path / shards[1]).unlink()
    with pytest.raises(ModelError, match=shards[1]):
        open_checkpoint(tmp_path)


def test_not_a_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="missing"):
        open_checkpoint(tmp_path)
    for content, message in [
        (b"", "cannot be read"),
        (b"PK\3\4 a zip file", "is not a GGUF file"),
        (b"GGUF", "header"),
    ]:
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(ModelError, match=message):
            open_checkpoint(tmp_path / "x.gguf")


def test_gguf_rope_divisors(written: Path, tmp_path: Path) -> None:
    divisors = np.array([1, 2, 4, 8], np.float32)
    write_gguf(written, "llama", tmp_path / "m.gguf", extra={"rope_freqs.weight": divisors})
    frequencies = open_checkpoint(tmp_path / "m.gguf").tensors["rope.global"].data.view(np.float32)
    np.testing.assert_allclose(frequencies, 10000.0 ** -np.array([0, 0.25, 0.5, 0.75]) / divisors, rtol=1e-6)


def test_gguf_in_parts(written: Path, tmp_path: Path) -> None:
    write_gguf(written, "llama", tmp_path / "whole.gguf")
    write_gguf(written, "llama", tmp_path / "m.gguf", split=12)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    whole, joined = (open_checkpoint(path) for path in (tmp_path / "whole.gguf", parts[0]))
    assert len(parts) == 3 and parts[0].name == "m-00001-of-00003.gguf"
    assert joined.config == whole.config and set(joined.tensors) == set(whole.tensors)
    for name in whole.tensors:
        np.testing.assert_array_equal(joined.tensors[name].data, whole.tensors[name].data)
    place = place_of(parts[0], 1)
    assert place is not None and [Path(source.path) for source in place.sources] == parts
    with pytest.raises(ModelError, match=r"name m-00001-of-00003\.gguf"):
        open_checkpoint(parts[1])
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelError, match="one of 3 files"):
        open_checkpoint(tmp_path / "renamed.gguf")
    (tmp_path / "renamed.gguf").rename(parts[0])
    parts[2].unlink()
    with pytest.raises(ModelError, match=r"m-00003-of-00003\.gguf: cannot be read"):
        open_checkpoint(parts[0])
    assert place_of(parts[0], 1) is None


def test_gguf_files_that_do_not_fit(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(written, "llama", path, layers=2)
    with pytest.raises(ModelError, match=r"m\.gguf: tensor 'blk\.2\.\S+' is unexpected"):
        open_checkpoint(path)
    path.unlink()
    write_gguf(written, "llama", path, layers=4)
    with pytest.raises(ModelError, match=r"tensor 'blk\.3\.\S+' is missing"):
        open_checkpoint(path)
    whole = path.read_bytes().replace(b"llama", b"mamba")
    path.write_bytes(whole)
    with pytest.raises(ModelError, match=r"'mamba' is not supported\. The nearest is '\w+'\. Supported here: llama"):
        open_checkpoint(path)


def test_a_gguf_file_cut_anywhere_or_damaged_is_refused_or_whole(written: Path, tmp_path: Path) -> None:
    write_gguf(written, "llama", tmp_path / "m.gguf")
    whole, path = (tmp_path / "m.gguf").read_bytes(), tmp_path / "cut.gguf"
    for keep in [*range(0, 3000, 37), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:keep])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            open_checkpoint(path)
    rng = np.random.default_rng(0)
    header_bytes, refused = 3000, 0
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(0, header_bytes, 3):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            open_checkpoint(path)
        except ModelError as error:
            assert "cut.gguf" in error.message
            refused += 1
    assert refused > 100


def test_gguf_arrays_of_strings_are_found_whatever_they_hold(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for case in range(30):
        letters = ["", "a", "\0", "é", "▁▁", "x" * 300, "\0\0\0\0\0\0\0\0\0", "y" * 70_000]
        strings = [letters[n] for n in rng.integers(1 if case % 2 else 0, 2 + case % 7, rng.integers(0, 400))] + ["end"]
        path = tmp_path / f"{case}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_array("strings", strings)
        writer.add_array("numbers", [1, 2, 3])
        writer.add_uint32("after", 77)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file = open_gguf(path)
        assert file.array("strings") == strings
        assert file.array("numbers") == [1, 2, 3]
        assert file.metadata["after"] == 77
