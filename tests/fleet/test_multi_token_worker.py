"""A worker uses a checkpoint's layer that guesses without being asked for, and not when told otherwise."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, Glm4MoeConfig

from tokenworks.config import EngineSettings
from tokenworks.engine.engine import Engine
from tokenworks.fleet.load import load
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.protocol.messages import EngineStats, Generate, Ready
from tokenworks.protocol.sampling import Sampling

VOCABULARY, WIDTH, TOKENS = 211, 64, 150


@pytest.fixture(scope="module")
def certain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GLM whose layers add nothing: token t is followed by t + 1, and its own layer knows that."""
    folder = tmp_path_factory.mktemp("glm")
    config = Glm4MoeConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2,
        first_k_dense_replace=1, max_position_embeddings=512, eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.copy_(model.model.embed_tokens.weight.roll(1, 0))
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights |= {f"model.layers.2.{norm}.weight": torch.ones(WIDTH) for norm in ("enorm", "hnorm", "shared_head.norm")}
    weights["model.layers.2.eh_proj.weight"] = torch.eye(WIDTH, 2 * WIDTH)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}))
    Tokenizer(models.WordLevel({"?": 0}, "?")).save(str(folder / "tokenizer.json"))
    return folder


def served(folder: Path, *, speculation: bool) -> tuple[Ready, EngineStats]:
    """Of a worker that has answered a request, as it must."""
    settings = EngineSettings(threads=1, cache_mb=8, sequences=4, speculation=speculation)
    engine, ready, _ = load(WorkerSettings(path=str(folder), engine=settings), {})
    assert isinstance(engine, Engine)
    engine.add(Generate("a", (3, 5), Sampling(max_tokens=TOKENS, ignore_eos=True, temperature=0.0, seed=1)), 0.0)
    made: list[int] = []
    steps = 0
    while engine.busy:
        done = engine.step(0.01 * steps)
        made += [token for chunk in done.chunks for token in chunk.token_ids]
        steps += 1
    assert made == [(6 + i) % VOCABULARY for i in range(TOKENS)]
    return ready, engine.step(1.0).stats


def test_it_guesses_for_its_own_model(certain: Path) -> None:
    guessing, stats = served(certain, speculation=True)
    assert stats.draft_tokens_accepted_total == stats.draft_tokens_total > 0
    assert stats.steps_total == TOKENS - stats.draft_tokens_total
    plain, without = served(certain, speculation=False)
    assert (without.draft_tokens_total, without.steps_total) == (0, TOKENS)
    assert guessing.weight_bytes > plain.weight_bytes
    assert guessing.kv_bytes > 0
    assert stats.kv_blocks_total < without.kv_blocks_total, "its K and V take memory"
