"""Layers that guess further tokens against the formulas of the report, around the reference library's own layer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import DECODERS, our_logits, randomise, reference_model
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tokenworks.kernels.backend import Backend, Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.config import DecoderConfig
from tokenworks.protocol.errors import ModelError

IDS = np.random.default_rng(3).integers(0, 101, 23).tolist()
NORMS = ("enorm", "hnorm", "shared_head.norm")


def config_of(name: str, **changes: object) -> PretrainedConfig:
    return type(DECODERS[name]).from_dict(DECODERS[name].to_dict() | changes)


def write(name: str, folder: Path) -> int:
    """A checkpoint whose last layer guesses; how many are before it."""
    torch.manual_seed(2)
    config = config_of(name)
    model = AutoModelForCausalLM.from_config(config)
    randomise(model)
    model.save_pretrained(folder)
    width, layers = config.hidden_size, config.num_hidden_layers - 1
    weights = load_file(folder / "model.safetensors")
    for norm in NORMS:
        weights[f"model.layers.{layers}.{norm}.weight"] = 1 + 0.3 * torch.randn(width)
    weights[f"model.layers.{layers}.eh_proj.weight"] = torch.randn(width, 2 * width) / width**0.5
    weights[f"model.layers.{layers}.embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
    weights[f"model.layers.{layers}.shared_head.head.weight"] = weights["lm_head.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    table = json.loads((folder / "config.json").read_text())
    table |= {"num_hidden_layers": layers, "num_nextn_predict_layers": 1}
    table.pop("mlp_layer_types", None)
    table["first_k_dense_replace"] = min(layers, getattr(config, "first_k_dense_replace", 1))
    (folder / "config.json").write_text(json.dumps(table))
    return layers


def library(name: str, folder: Path, weights: dict[str, torch.Tensor], **changes: object) -> PreTrainedModel:
    config_of(name, **changes).save_pretrained(folder)
    save_file({k: v.clone() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return reference_model(folder)


class Report:
    """h' = M [norm(h), norm(Emb(t))] (in files the other way round), a layer, a norm and the head."""

    def __init__(self, name: str, folder: Path, layers: int) -> None:
        weights = load_file(folder / "model.safetensors")
        dense = getattr(DECODERS[name], "first_k_dense_replace", 1)
        kinds = {"mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1)} if "lite" in name else {}
        self.main = library(name, folder / "main", weights, num_hidden_layers=layers, **kinds)
        of = f"model.layers.{layers}."
        alone = {k.replace(of, "model.layers.0."): v for k, v in weights.items() if k.startswith(of)}
        alone |= {k: weights[k] for k in ("model.embed_tokens.weight", "lm_head.weight")}
        alone["model.norm.weight"] = weights[of + "shared_head.norm.weight"]
        kinds = {"mlp_layer_types": ["sparse"]} if "lite" in name else {}
        assert dense <= layers, "the layer that guesses has experts"
        self.layer = library(name, folder / "alone", alone, num_hidden_layers=1, first_k_dense_replace=0, **kinds)
        self.enorm, self.hnorm = (weights[f"{of}{norm}.weight"] for norm in ("enorm", "hnorm"))
        self.join, self.embed = weights[of + "eh_proj.weight"], weights["model.embed_tokens.weight"]
        self.epsilon = self.main.config.rms_norm_eps

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt() * weight

    @torch.no_grad()
    def guesses(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Logits [len(ids) - 1, vocabulary] of the token after next at each token but the last, and [1, vocabulary] of
        the one after that at the last of these."""
        hidden = self.main.model(torch.tensor([ids])).last_hidden_state[0]
        pairs = torch.cat((self.norm(self.embed[ids[1:]], self.enorm), self.norm(hidden[:-1], self.hnorm)), -1)
        x = pairs @ self.join.T
        first = self.layer.model(inputs_embeds=x[None]).last_hidden_state[0]
        logits = first @ self.layer.lm_head.weight.T
        guess = int(logits[-1].argmax())
        pair = torch.cat((self.norm(self.embed[guess], self.enorm), self.norm(first[-1], self.hnorm)))
        second = self.layer.model(inputs_embeds=torch.cat((x, (self.join @ pair)[None]))[None]).last_hidden_state[
            0, -1:
        ]
        return logits.numpy(), (second @ self.layer.lm_head.weight.T).numpy()


def step(tokens: list[int], first: int, inputs: np.ndarray | None = None) -> StepBatch:
    return StepBatch(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(first, first + len(tokens), dtype=np.int32),
        row_starts=np.array([0, len(tokens)], np.int32),
        block_tables=np.arange(10, dtype=np.int32)[None],
        logit_rows=np.arange(len(tokens), dtype=np.int32),
        inputs=inputs,
    )


@pytest.mark.parametrize("backend", [ReferenceBackend(), CpuBackend()], ids=lambda backend: backend.name)
@pytest.mark.parametrize("name", ["deepseek-v3", "glm4-moe", "glm4-moe-lite"])
def test_guesses_are_those_of_the_report(name: str, backend: Backend, tmp_path: Path) -> None:
    layers = write(name, tmp_path)
    first, second = Report(name, tmp_path, layers).guesses(IDS)
    checkpoint = open_checkpoint(tmp_path)
    program = checkpoint.program(guesses=True)
    limits = Limits(32, 1, 32, 10, 4, "float32", 1)
    model = backend.compile(program, checkpoint.tensors, limits)
    logits = model.run(step(IDS, 0)).copy()
    np.testing.assert_array_equal(logits, our_logits(tmp_path, IDS, backend))
    hidden = model.hidden.copy()
    for begin, end in ((0, 5), (5, 6), (6, len(IDS) - 1)):  # in any pieces
        ours, after = (
            each.copy() for each in model.run_sequel(step(IDS[begin + 1 : end + 1], begin, hidden[begin:end]))
        )
        np.testing.assert_allclose(ours, first[begin:end], atol=2e-4, rtol=2e-4)
    assert np.ptp(first, axis=-1).min() > 1
    ours, _ = model.run_sequel(step([int(ours[-1].argmax())], end, after[-1:]))
    np.testing.assert_allclose(ours, second, atol=2e-4, rtol=2e-4)


def test_a_checkpoint_without_the_layer_has_none_and_half_of_one_is_refused(tmp_path: Path) -> None:
    layers = write("deepseek-v3", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    of = f"model.layers.{layers}."
    save_file(
        {k: v for k, v in weights.items() if not k.startswith(of)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    config = open_checkpoint(tmp_path).config
    assert isinstance(config, DecoderConfig)
    assert config.multi_token is None
    save_file(
        {k: v for k, v in weights.items() if k != of + "hnorm.weight"}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelError, match=f"tensor '{of}hnorm.weight' is missing"):
        open_checkpoint(tmp_path)
