"""Every family through the engine: 64 greedy tokens are the reference library's, alone and in a batch."""

import copy
from pathlib import Path

import numpy as np
import pytest
from family_models import of_checkpoint
from small_checkpoints import DECODERS, reference_logits, reference_model, write_decoder
from small_model import ask, limits, run

from tokenworks.kernels.cpu.backend import CpuBackend

TOKENS = 64
PROMPTS = [[(7 * i * i + 3) % 101 for i in range(first, last)] for first, last in ((0, 23), (5, 6), (9, 20))]
TIE = 2e-4
"""Logits nearer than this are alike: which is larger depends on the order of sums."""


FAMILIES = {config.model_type: name for name, config in reversed(DECODERS.items())} | {"": "nemotron-3"}
"""One model for each model_type, and the one that has kinds of layers of its own."""


@pytest.mark.parametrize("name", FAMILIES.values())
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config = copy.deepcopy(DECODERS[name])
    config.tie_word_embeddings = False  # else the last token is the likeliest
    write_decoder(name, tmp_path, config=config)
    requests = [ask(str(number), prompt, max_tokens=TOKENS, ignore_eos=True) for number, prompt in enumerate(PROMPTS)]
    sizes = limits(step_tokens=9, blocks=80)
    together = run(of_checkpoint(tmp_path, CpuBackend(), sizes), *requests)
    alone = run(of_checkpoint(tmp_path, CpuBackend(), sizes), requests[0])["0"].tokens
    assert together["0"].tokens == alone
    model = reference_model(tmp_path)
    made = set[int]()
    for number, prompt in enumerate(PROMPTS):
        ours = together[str(number)].tokens
        assert len(ours) == TOKENS
        made |= set(ours)
        # One pass over all of it shows what the reference would have chosen at every place.
        logits = reference_logits(model, prompt + ours)[len(prompt) - 1 : -1]
        lacking = logits.max(axis=-1) - logits[np.arange(TOKENS), ours]
        assert lacking.max() < TIE, f"at {np.flatnonzero(lacking >= TIE)[0]} of request {number}"
    assert len(made) > 2
