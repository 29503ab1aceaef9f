"""Qwen3-Next's and Qwen3.5's layer that guesses further tokens: by its formulas around the reference library's own
layer, from a checkpoint that calls it mtp."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import randomise, reference_model
from small_recurrent import RECURRENT
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tokenworks.kernels.backend import Backend, Limits, StateBatch, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.config import DecoderConfig

IDS = np.random.default_rng(3).integers(0, 101, 23).tolist()
OF_LAYER = "model.layers.0."


class Reference:
    """h' = M [norm(Emb(t)), norm(h)], a layer with attention, a norm and the head; norms store weight - 1."""

    def __init__(self, name: str, folder: Path) -> None:
        torch.manual_seed(2)
        config = RECURRENT[name]
        one: dict[str, object] = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "mlp_only_layers": []}
        self.main = self._made(config, folder)
        (folder / "one").mkdir()
        self.layer = self._made(type(config).from_dict(config.to_dict() | one), folder / "one")
        weights, alone = load_file(folder / "model.safetensors"), load_file(folder / "one" / "model.safetensors")
        width = config.hidden_size
        self.own = {
            "fc": torch.randn(width, 2 * width) / width**0.5,
            "pre_fc_norm_embedding": 0.3 * torch.randn(width),
            "pre_fc_norm_hidden": 0.3 * torch.randn(width),
            "norm": alone["model.norm.weight"],
        }
        weights |= {f"mtp.{name}.weight": value.clone() for name, value in self.own.items()}
        for key, value in alone.items():
            if key.startswith(OF_LAYER):
                weights[key.replace(OF_LAYER, "mtp.layers.0.")] = value
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        self.embed, self.epsilon = weights["model.embed_tokens.weight"], config.rms_norm_eps
        self.head = weights.get("lm_head.weight", self.embed)

    def _made(self, config: PretrainedConfig, folder: Path) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_config(config)
        randomise(model)
        model.save_pretrained(folder)
        return reference_model(folder)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt() * (1 + self.own[name])

    def joined(self, token: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        both = self.norm(token, "pre_fc_norm_embedding"), self.norm(hidden, "pre_fc_norm_hidden")
        return torch.cat(both, -1) @ self.own["fc"].T

    @torch.no_grad()
    def guesses(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Logits [len(ids) - 1, vocabulary] of the token after next at each token but the last, and [1, vocabulary] of
        the one after that at the last of these."""
        hidden = self.main.model(torch.tensor([ids])).last_hidden_state[0]
        x = self.joined(self.embed[ids[1:]], hidden[:-1])
        first = self.layer.model(inputs_embeds=x[None]).last_hidden_state[0]
        logits = first @ self.head.T
        more = self.joined(self.embed[int(logits[-1].argmax())][None], first[-1:])
        second = self.layer.model(inputs_embeds=torch.cat((x, more))[None]).last_hidden_state[0, -1:]
        return logits.numpy(), (second @ self.head.T).numpy()


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
@pytest.mark.parametrize("name", ["qwen3-next", "qwen3-5", "qwen3-5-moe"])
def test_guesses_are_those_of_its_formulas(name: str, backend: Backend, tmp_path: Path) -> None:
    first, second = Reference(name, tmp_path).guesses(IDS)
    checkpoint = open_checkpoint(tmp_path)
    limits = Limits(32, 1, 32, 10, 4, "float32", 1, state_slots=2)
    model = backend.compile(checkpoint.program(guesses=True), checkpoint.tensors, limits)
    begin, last = np.array([-1], np.int32), np.array([len(IDS) - 1], np.int32)
    model.run(replace(step(IDS, 0), states=StateBatch(begin, last, np.array([0], np.int32))))
    hidden = model.hidden.copy()
    for start, end in ((0, 5), (5, 6), (6, len(IDS) - 1)):  # in any pieces, and without states
        ours, after = (
            each.copy() for each in model.run_sequel(step(IDS[start + 1 : end + 1], start, hidden[start:end]))
        )
        np.testing.assert_allclose(ours, first[start:end], atol=3e-4, rtol=3e-4)
    assert np.ptp(first, axis=-1).min() > 1
    ours, _ = model.run_sequel(step([int(ours[-1].argmax())], end, after[-1:]))
    np.testing.assert_allclose(ours, second, atol=3e-4, rtol=3e-4)


def test_a_checkpoint_without_it_has_none(tmp_path: Path) -> None:
    Reference("qwen3-5", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "mtp.fc.weight"}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    config = open_checkpoint(tmp_path).config
    assert isinstance(config, DecoderConfig)
    assert config.multi_token is None
