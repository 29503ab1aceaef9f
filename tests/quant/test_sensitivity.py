"""Fisher information foretells what rounding a weight costs; its plain error does not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import write_model, write_text
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Gemma4TextConfig, LlamaConfig, Qwen3Config

from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.quant.forward import Forward, plain_product
from tokenworks.quant.measure import compare
from tokenworks.quant.recipe import read_recipe
from tokenworks.quant.rounding import round_to_nearest
from tokenworks.quant.run import Layout, quantise_model
from tokenworks.quant.sensitivity import sensitivities, spare
from tokenworks.quant.text import windows
from tokenworks.quant.torch_forward import need_torch, torch_logits

SMALL = {
    "vocab_size": 97,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "qwen3": Qwen3Config(**SMALL),
    "gemma3": Gemma3TextConfig(**SMALL, sliding_window=3, attn_logit_softcapping=1.5, final_logit_softcapping=2.5),
    "gemma4": Gemma4TextConfig(
        **SMALL | {"num_hidden_layers": 4}, sliding_window=3, layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2, global_head_dim=16, hidden_size_per_layer_input=6, vocab_size_per_layer_input=97,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_pass_in_torch_is_that_in_numpy(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(MODELS[name])
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    weights = {key: torch.from_numpy(np.array(dequantise(each))) for key, each in checkpoint.tensors.items()}
    tokens = torch.randint(0, 97, (3, 11))
    with torch.no_grad():
        ours = torch_logits(checkpoint.program(), weights.__getitem__, tokens)
    forward = Forward(checkpoint.program(), checkpoint.tensors, tokens.numpy().astype(np.int32))
    while forward.next is not None:
        forward.step(plain_product(checkpoint.tensors))
    expected = forward.input(forward.program.result).reshape(ours.shape)
    assert expected.std() > 0.01
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_costs_are_the_measured_divergences(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    checkpoint, program = open_checkpoint(model), open_checkpoint(model).program()
    words = write_text(tmp_path / "text.txt").read_text()
    text = windows([words], load_tokenizer(model), count=6, length=48)
    weights = {name: dequantise(each) for name, each in checkpoint.tensors.items() if name.startswith("layers.")}
    # Some weights are rounded coarsely where it hardly matters, others finely where it does.
    rng = np.random.default_rng(0)
    errors = {
        name: rng.uniform(0.3, 1) * (round_to_nearest("nvfp4", weight).dequantise() - weight)
        for name, weight in weights.items()
        if weight.ndim == 2
    }
    errors = {name: error.astype(np.float32) for name, error in errors.items()}
    costs = sensitivities(program, checkpoint.tensors, errors, text)
    assert costs == sensitivities(program, checkpoint.tensors, errors, text)
    measured = {}
    for name, error in errors.items():
        changed = weights[name] + error
        tensor = Tensor(name, "F32", changed.shape, changed.view(np.uint8).reshape(-1))
        measured[name] = compare(program, checkpoint.tensors, {**checkpoint.tensors, name: tensor}, text).kl
    assert np.corrcoef(*(np.argsort(np.argsort(list(each.values()))) for each in (costs, measured)))[0, 1] > 0.9
    ratios = [costs[name] / measured[name] for name in errors]
    assert 0.5 < float(np.median(ratios)) < 2


def test_the_dearest_for_their_size_are_spared() -> None:
    choices = {"a": "nvfp4", "b": "nvfp4", "c": "nvfp4", "embed": "keep"}
    sizes = {"a": 100, "b": 10, "c": 10, "embed": 1000}
    costs = {"a": 5.0, "b": 4.0, "c": 1.0}
    spared = spare(choices, costs, sizes, 0.1)  # type: ignore[arg-type]
    assert spared == {"a": "nvfp4", "b": "int8", "c": "nvfp4", "embed": "keep"}
    assert spare(choices, costs, sizes, 0.2) == {**choices, "b": "int8", "c": "int8"}  # type: ignore[arg-type]
    assert spare(choices, costs, sizes, 0.0) == choices  # type: ignore[arg-type]


def test_a_share_of_the_weights_is_spared(tmp_path: Path) -> None:
    model, text = write_model(tmp_path / "model"), write_text(tmp_path / "text.txt")
    recipe = read_recipe("standard", "nvfp4")

    def quantised(name: str, spared: float, texts: list[Path], layout: Layout = "compressed-tensors") -> dict[str, str]:
        return quantise_model(
            model, tmp_path / name, recipe, layout, texts, lambda *_: None, spared=spared
        ).quantised  # fmt: skip

    found = quantised("some", 0.25, [text])
    eights = [name for name, scheme in found.items() if scheme == "int8"]
    shapes = {name: open_checkpoint(model).tensors[name].shape for name in found}
    share = sum(np.prod(shapes[name]) for name in eights) / sum(np.prod(shape) for shape in shapes.values())
    assert eights and 0.1 < share <= 0.25
    stored = open_checkpoint(tmp_path / "some").tensors
    assert {name for name in found if stored[name].format == "I8"} == set(eights)
    with pytest.raises(InvalidRequest, match="--calibrate"):
        quantised("none", 0.25, [])
    with pytest.raises(InvalidRequest, match="GGUF"):
        quantised("gguf", 0.25, [text], "gguf")


def test_without_torch_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match=r"tokenworks\[torch\]"):
        need_torch()
