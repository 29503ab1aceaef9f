"""Requests with LoRA adapters: each as if alone, whatever else runs; adapters come and go meanwhile."""

from collections import Counter

import msgspec
import numpy as np
import pytest
from small_model import (
    EOS,
    HEAD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    WIDTH,
    Reply,
    ask,
    limits,
    no_tokenizer,
    run,
    small_model,
)

from tokenworks.engine.adapters import AdapterSlots
from tokenworks.engine.engine import Engine
from tokenworks.kernels.adapter import LowRank
from tokenworks.kernels.backend import Backend, Limits
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError
from tokenworks.protocol.messages import Adapter, Finish, Generate

PROMPT = [(7 * i * i + 3) % 120 for i in range(30)]
BACKENDS = pytest.mark.parametrize("backend", [ReferenceBackend(), CpuBackend()], ids=lambda backend: backend.name)
SHAPES = {
    "q": (HEADS * HEAD, WIDTH), "k": (KV_HEADS * HEAD, WIDTH), "v": (KV_HEADS * HEAD, WIDTH),
    "gate": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN),
}  # fmt: skip


def adapter(number: int, version: int = 0) -> Adapter:
    return Adapter(f"a{number}", f"/adapters/{number}", version)


def files(which: Adapter) -> dict[str, LowRank]:
    """What the small model's adapters have in their files."""
    if which.name == "a99":
        raise ModelError("adapter 99 is broken")
    rng = np.random.default_rng([int(which.name[1:]), which.version])

    def tensor(*shape: int) -> Tensor:
        values = rng.standard_normal(shape).astype(np.float32)
        return Tensor("side", "F32", shape, values.reshape(-1).view(np.uint8))

    return {
        f"{layer}.{name}": LowRank(tensor(3, inner), tensor(outer, 3), 0.05)
        for layer in range(LAYERS)
        for name, (outer, inner) in SHAPES.items()
    }


class Files:
    """Counts how often each adapter is read."""

    def __init__(self) -> None:
        self.reads: Counter[Adapter] = Counter()

    def __call__(self, which: Adapter) -> dict[str, LowRank]:
        self.reads[which] += 1
        return files(which)


def engine_of(backend: Backend, sizes: Limits, slots: int = 4, read: Files | None = None) -> Engine:
    program, weights = small_model()
    executable = backend.compile(program, weights, sizes)
    return Engine(
        executable, sizes, eos_token_ids=frozenset({EOS}), context_tokens=200, vocabulary=VOCABULARY,
        tokenizer_json=no_tokenizer, adapters=AdapterSlots(executable, slots, read or Files()),
    )  # fmt: skip


def ask_with(number: int | None, request_id: str, prompt: list[int] = PROMPT, **how: object) -> Generate:
    request = ask(request_id, prompt, ignore_eos=True, **how)
    return request if number is None else msgspec.structs.replace(request, adapter=adapter(number))


REQUESTS = [
    ask_with(None, "plain", max_tokens=20),
    ask_with(1, "one", max_tokens=20),
    ask_with(2, "two", max_tokens=20),
    ask_with(1, "one sampled", temperature=0.9, seed=5, max_tokens=20),
    ask_with(3, "three", PROMPT[3:20], temperature=1.1, seed=6, max_tokens=24),
    ask_with(2, "short", [5], temperature=1.0, seed=7, max_tokens=9),
]


@BACKENDS
def test_the_same_whatever_else_happens(backend: Backend) -> None:
    expected = {each.request_id: run(engine_of(backend, limits()), each)[each.request_id].tokens for each in REQUESTS}
    assert len({tuple(expected[name]) for name in ("plain", "one", "two")}) == 3
    preemptions = []
    for sizes, slots in ((limits(), 4), (limits(blocks=24), 4), (limits(step_tokens=7, sequences=3), 2), (limits(), 1)):
        engine = engine_of(backend, sizes, slots)
        replies = run(engine, *REQUESTS)
        assert {name: reply.tokens for name, reply in replies.items()} == expected, sizes
        preemptions.append(engine.step(0.0).stats.preemptions_total)
    assert preemptions[1] > 0


@BACKENDS
def test_a_prefix_is_found_by_its_own_adapter_only(backend: Backend) -> None:
    engine = engine_of(backend, limits())
    alone = {n: run(engine_of(backend, limits()), ask_with(n, "r"))["r"].tokens for n in (None, 1, 2)}
    for number in (1, None, 2):
        first, again = (run(engine, ask_with(number, "r"))["r"] for _ in range(2))
        assert (first.cached_tokens, again.cached_tokens) == (0, 28)
        assert first.tokens == again.tokens == alone[number]
    newer = msgspec.structs.replace(ask_with(1, "r"), adapter=adapter(1, version=1))
    reply = run(engine, newer)["r"]
    assert reply.cached_tokens == 0
    assert reply.tokens != alone[1]


def test_a_request_goes_on_from_its_tokens() -> None:
    whole = run(engine_of(CpuBackend(), limits()), ask_with(1, "r", max_tokens=20))["r"].tokens
    rest = msgspec.structs.replace(ask_with(1, "r", max_tokens=20), output_ids=tuple(whole[:9]))
    assert run(engine_of(CpuBackend(), limits()), rest)["r"].tokens == whole[9:]


def test_slots_go_to_whoever_needs_them() -> None:
    read = Files()
    engine = engine_of(CpuBackend(), limits(), slots=2, read=read)
    expected = {n: run(engine_of(CpuBackend(), limits()), ask_with(n, "r"))["r"].tokens for n in range(5)}
    replies = run(engine, *(ask_with(n, str(n)) for n in range(5)))
    assert {int(name): reply.tokens for name, reply in replies.items()} == expected
    assert read.reads == {adapter(n): 1 for n in range(5)}
    run(engine, ask_with(4, "r"))  # still there
    assert read.reads[adapter(4)] == 1
    assert run(engine, ask_with(0, "r"))["r"].tokens == expected[0]  # loaded again
    assert read.reads[adapter(0)] == 2


def test_one_that_is_dropped_finishes_what_runs() -> None:
    read = Files()
    engine = engine_of(CpuBackend(), limits(), read=read)
    expected = run(engine_of(CpuBackend(), limits()), ask_with(1, "r", max_tokens=30))["r"].tokens
    engine.add(ask_with(1, "r", max_tokens=30), 0.0)
    replies = {"r": Reply(), "other": Reply()}
    for number in range(100):
        for chunk in engine.step(number * 0.01).chunks:
            replies[chunk.request_id].chunks.append(chunk)
        if number == 3:
            engine.drop_adapter(adapter(1))
            assert engine.load_adapter(adapter(2)) is None
            engine.add(ask_with(2, "other"), 0.0)
        if not engine.busy:
            break
    assert replies["r"].tokens == expected
    assert replies["other"].finish is Finish.LENGTH
    run(engine, ask_with(1, "r"))
    assert read.reads == {adapter(1): 2, adapter(2): 1}


def test_what_is_wrong_fails_its_own_request() -> None:
    engine = engine_of(CpuBackend(), limits(), slots=1)
    assert engine.load_adapter(adapter(99)) == "adapter 99 is broken"
    replies = run(engine, ask_with(99, "bad"), ask_with(1, "good"))
    assert (replies["bad"].finish, replies["bad"].error) == (Finish.FAILED, "adapter 99 is broken")
    assert replies["good"].finish is Finish.LENGTH
    engine.add(ask_with(1, "runs"), 0.0)
    engine.add(ask_with(2, "waits"), 0.0)
    engine.step(0.0)
    engine.cancel("waits")
    replies = run(engine)
    assert replies["waits"].finish is Finish.CANCELLED
    program, weights = small_model()
    without = Engine(
        CpuBackend().compile(program, weights, limits()), limits(), eos_token_ids=frozenset(), context_tokens=200,
        vocabulary=VOCABULARY, tokenizer_json=no_tokenizer,
    )  # fmt: skip
    assert run(without, ask_with(1, "r"))["r"].error == "this model takes no adapters"
