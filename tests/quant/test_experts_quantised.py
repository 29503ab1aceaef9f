"""Mixtures of experts through the whole of quantize: each expert on its own tokens, routers left as they are."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from small_models import numbers, write_model, write_text
from transformers import AutoModelForCausalLM, MixtralConfig

from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.quant.measure import last_hidden
from tokenworks.quant.recipe import read_recipe
from tokenworks.quant.run import Layout, quantise_model

EXPERTS, WIDTH, INNER = 6, 64, 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("mixture"))  # its tokenizer
    torch.manual_seed(4)
    mixture = AutoModelForCausalLM.from_config(
        MixtralConfig(
            vocab_size=128, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, num_local_experts=EXPERTS, num_experts_per_tok=2,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in mixture.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.7 if "embed" in name else weight.shape[-1] ** -0.5)
            if "experts" in name:
                weight[1] *= 0.2  # a scale of its own
    mixture.save_pretrained(folder)
    return folder


def _error(source: Path, made: Path) -> float:
    """Mean squared error of the last layer's output on another text than the calibration's."""
    tokens = np.random.default_rng(8).integers(97, 123, (4, 64)).astype(np.int32)
    hidden = []
    for path in (source, made):
        checkpoint = open_checkpoint(path)
        hidden.append(last_hidden(checkpoint.program(), checkpoint.tensors, tokens))
    return float(((hidden[0] - hidden[1]) ** 2).mean())


@pytest.mark.parametrize("layout", ["compressed-tensors", "modelopt"])
def test_every_expert_is_quantised_and_routers_are_not(model: Path, tmp_path: Path, layout: Layout) -> None:
    text = write_text(tmp_path / "text.txt")
    errors = []
    for name, texts in (("nearest", ()), ("calibrated", (text,))):
        made = quantise_model(model, tmp_path / name, read_recipe("standard", "nvfp4"), layout, texts, lambda *_: None)
        assert len(made.quantised) == 2 * (4 + 3 * EXPERTS)
        assert not any("router" in weight for weight in made.quantised)
        before, after = numbers(model), numbers(made.path)
        np.testing.assert_array_equal(before["layers.1.router"], after["layers.1.router"])
        tensors = open_checkpoint(made.path).tensors
        for expert in range(EXPERTS):
            weight = f"layers.1.experts.{expert}.down"
            assert tensors[weight].format == "NVFP4"
            assert 0 < np.abs(before[weight] - after[weight]).mean() < 0.2 * np.abs(before[weight]).mean()
        errors.append(_error(model, made.path))
    assert errors[1] < errors[0]


def test_a_gguf_file_has_a_layers_experts_in_one_tensor(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    _write_gguf(model, source)
    made = quantise_model(source, tmp_path / "out", read_recipe("standard", "nvfp4"), "gguf", (), lambda *_: None)
    folder = quantise_model(
        model, tmp_path / "folder", read_recipe("standard", "nvfp4"), "compressed-tensors", (), lambda *_: None
    )
    shapes = {tensor.name: tensor.shape.tolist() for tensor in gguf.GGUFReader(made.path).tensors}
    assert shapes["blk.1.ffn_up_exps.weight"] == [WIDTH, INNER, EXPERTS]
    assert shapes["blk.1.ffn_up_exps.scale"] == [EXPERTS]
    ours, theirs = numbers(made.path), numbers(folder.path)
    for name, values in theirs.items():
        if "experts" in name:
            np.testing.assert_array_equal(ours[name], values)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('{"layers.1.experts.3.up": keep, "layers.*.experts.*": target}')
    with pytest.raises(InvalidRequest, match=r"blk\.1\.ffn_up_exps\.weight: .*same format"):
        quantise_model(source, tmp_path / "no", read_recipe(str(recipe), "nvfp4"), "gguf", (), lambda *_: None)


def _write_gguf(folder: Path, path: Path) -> None:
    """As llama.cpp's converter, but that rotary pairs stay as they are: only the experts matter here."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    weights = numbers(folder)
    checkpoint = open_checkpoint(folder)
    for name in checkpoint.tensors:
        if name.startswith("rope.") or ".experts." in name:
            continue
        theirs = _THEIRS.get(name.split(".")[-1], name.split(".")[-1])
        theirs = f"model.layers.{name.split('.')[1]}.{theirs}" if "layers" in name else theirs
        writer.add_tensor(f"{names.get_name(theirs)}.weight", weights[name])
    for layer in range(2):
        for part in ("gate", "up", "down"):
            stack = np.stack([weights[f"layers.{layer}.experts.{e}.{part}"] for e in range(EXPERTS)])
            writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", stack)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_THEIRS = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "router": "block_sparse_moe.gate",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{m: f"self_attn.{m}_proj" for m in "qkvo"},
}
