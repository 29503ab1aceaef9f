"""Every kind of part in the engine: the same tokens alone, in a batch, in any chunks, after preemption, with a prefix
hit."""

import pytest
from family_models import MODELS, engine_of
from small_model import ask, limits, run

from tokenworks.kernels.backend import Backend
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.protocol.messages import Generate

PROMPT = [(7 * i * i + 3) % 120 for i in range(30)]
REQUESTS = [
    ask("greedy", PROMPT, max_tokens=20, ignore_eos=True),
    ask("sampled", PROMPT, temperature=0.9, seed=5, max_tokens=20, ignore_eos=True),
    ask("other", PROMPT[3:20], temperature=1.1, seed=6, max_tokens=24, ignore_eos=True),
    ask("short", [5], temperature=1.0, seed=7, max_tokens=9, ignore_eos=True),
]


def alone(name: str, backend: Backend, request: Generate) -> list[int]:
    return run(engine_of(name, backend, limits()), request)[request.request_id].tokens


@pytest.mark.parametrize("backend", [ReferenceBackend(), CpuBackend()], ids=lambda backend: backend.name)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_whatever_else_happens(name: str, backend: Backend) -> None:
    expected = {request.request_id: alone(name, backend, request) for request in REQUESTS}
    assert len(set(expected["sampled"])) > 5
    preemptions = []
    for sizes in (limits(), limits(blocks=18), limits(step_tokens=7, sequences=3)):
        engine = engine_of(name, backend, sizes)
        replies = run(engine, *REQUESTS)
        assert {name: reply.tokens for name, reply in replies.items()} == expected, sizes
        again = run(engine, REQUESTS[1])["sampled"]
        assert again.tokens == expected["sampled"]
        stats = engine.step(0.0).stats
        # A state is found at its snapshots only, and these are gone with their block when blocks are short.
        assert again.cached_tokens > 0 or (stats.state_slots_total and sizes.blocks == 18)
        preemptions.append(stats.preemptions_total)
    assert preemptions[1] > 0
