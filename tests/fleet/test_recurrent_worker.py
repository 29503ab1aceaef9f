"""Workers of a model with recurrent states: what is lost with one is computed again, bit for bit."""

import asyncio
from pathlib import Path

import pytest
import torch
from test_worker import kill, request, serving, tokens, until
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, NemotronHConfig


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Nemotron-H with random weights."""
    folder = tmp_path_factory.mktemp("nemotron-h")
    config = NemotronHConfig(
        vocab_size=42_000, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, mamba_num_heads=8, mamba_head_dim=16, ssm_state_size=16, n_groups=2,
        layers_block_type=["linear_attention", "mlp", "full_attention", "linear_attention"],
    )  # fmt: skip
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=2 * weight.shape[1] ** -0.5)
    model.save_pretrained(folder)
    Tokenizer(models.WordLevel({"?": 0}, "?")).save(str(folder / "tokenizer.json"))
    return folder


async def test_streams_killed_in_the_middle_go_on_as_if_nothing_had_happened(hybrid: Path) -> None:
    asked = [request(n, prompt_tokens=40 + n, tokens=300, temperature=0.9 * (n % 2)) for n in range(6)]
    async with serving(hybrid, step_tokens=32) as pool:
        undisturbed = await asyncio.gather(*(tokens(pool, each) for each in asked))
        assert len({tuple(each) for each in undisturbed}) == 6
        assert min(len(set(each)) for each in undisturbed) > 20
        alone = [await tokens(pool, each) for each in asked]
        assert alone == undisturbed, "from snapshots"
        assert pool.stats("m").prefix_hit_tokens_total >= 6 * 32
        assert pool.stats("m").state_slots_total > 6
        running = [asyncio.create_task(tokens(pool, each)) for each in asked]
        done_tokens = pool.stats("m").output_tokens_total
        await until(lambda: pool.stats("m").output_tokens_total >= done_tokens + 6 * 50)
        kill(pool)
        assert await asyncio.gather(*running) == undisturbed
        assert pool.statuses()[0].restarts == 1
        assert pool.stats("m").state_slots_used == 0
