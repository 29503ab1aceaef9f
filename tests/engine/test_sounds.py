"""Requests that begin with a sound: the same tokens alone, together, with a prefix hit, after preemption, in chunks of
any size, and as transformers would have chosen; one that waits for its sound holds up no other."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from ahead import run_ahead
from small_model import ask, run
from speech_checkpoints import FRAMES, HEARD, VOCABULARY, noise, sound_of, write_whisper
from transformers import WhisperForConditionalGeneration

from tokenworks.config import EngineSettings
from tokenworks.engine.engine import Engine
from tokenworks.fleet.load import load
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.protocol.messages import Finish, Generate, Picture

PROMPT = [200, 17, 90]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    write_whisper(folder)
    return folder


def engine_of(model: Path, **settings: object) -> Engine:
    how = {"block_tokens": 4, "cache_mb": 1, "threads": 1, "cache_dtype": "float32", **settings}
    engine, ready, _ = load(WorkerSettings(path=str(model), engine=EngineSettings(**how)), {})  # type: ignore[arg-type]
    assert isinstance(engine, Engine)
    assert (ready.kind, ready.heard_tokens, ready.heard_tones) == ("transcribe", HEARD, 10)
    return engine


def listen(name: str, what: int, frames: int = FRAMES, **how: object) -> Generate:
    request = ask(name, [0] * HEARD + PROMPT, **{"ignore_eos": True, "max_tokens": 20, **how})  # type: ignore[arg-type]
    return msgspec.structs.replace(request, sound=sound_of(noise(what, frames)))


@torch.no_grad()
def test_64_greedy_tokens_are_those_of_transformers(model: Path) -> None:
    made = run(engine_of(model, step_tokens=16), listen("one", 1, max_tokens=64))["one"].tokens
    assert len(made) == 64
    assert len(set(made)) > 3
    reference = WhisperForConditionalGeneration.from_pretrained(model, attn_implementation="eager")
    ids = torch.tensor([PROMPT + made])
    logits = reference(input_features=torch.tensor(noise(1).T[None]), decoder_input_ids=ids).logits[0]
    assert logits[len(PROMPT) - 1 : -1].argmax(dim=1).tolist() == made


def test_the_same_tokens_however_they_are_run(model: Path) -> None:
    requests = [listen("one", 1), listen("two", 2), listen("short", 3, 9)]
    alone = {each.request_id: run(engine_of(model), each)[each.request_id].tokens for each in requests}
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    together = run(engine_of(model), *requests)
    assert {name: reply.tokens for name, reply in together.items()} == alone
    in_chunks = run(engine_of(model, step_tokens=11, sequences=2), *requests)
    assert {name: reply.tokens for name, reply in in_chunks.items()} == alone
    halfway = msgspec.structs.replace(requests[1], output_ids=tuple(alone["two"][:5]))  # as after a worker's death
    assert run(engine_of(model), halfway)["two"].tokens == alone["two"][5:]


def test_steps_begin_before_tokens_are_seen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [listen("one", 1), listen("two", 2), listen("short", 3, 9)]
    alone = {each.request_id: run(engine_of(model), each)[each.request_id].tokens for each in requests}
    unseen = run_ahead(monkeypatch)
    for settings in ({}, {"step_tokens": 11, "sequences": 2}):
        together = run(engine_of(model, **settings), *requests)
        assert {name: reply.tokens for name, reply in together.items()} == alone
    assert sum(unseen) > 50, "most tokens but each one's first"


def test_a_sound_heard_before_is_found_again(model: Path) -> None:
    engine = engine_of(model)
    first = run(engine, listen("first", 1))["first"]
    again = run(engine, listen("again", 1))["again"]
    assert (first.cached_tokens, again.cached_tokens) == (0, (HEARD + len(PROMPT) - 1) // 4 * 4)
    assert again.tokens == first.tokens
    assert run(engine, listen("other", 2))["other"].cached_tokens == 0
    assert engine.step(0.0).stats.pictures_encoded_total == 2


def test_preempted_sequences_hear_again_what_they_heard(model: Path) -> None:
    # A token takes 2 x 3 x 48 float32: a megabyte has room for 910; twenty at their ends have 1200 beside 4 sounds.
    requests = [listen(f"r{n}", n % 4, max_tokens=57, seed=n, temperature=1.0) for n in range(20)]
    engine = engine_of(model)
    replies = run(engine, *requests)
    assert engine.step(0.0).stats.preemptions_total > 0
    for request in requests[::6]:
        assert replies[request.request_id].tokens == run(engine_of(model), request)[request.request_id].tokens


def test_one_that_writes_goes_on_while_another_ones_sound_is_encoded(model: Path) -> None:
    engine = engine_of(model)
    engine.add(listen("writes", 1, max_tokens=30), 0.0)
    while not any(chunk.token_ids for chunk in engine.step(0.0).chunks):
        pass
    engine.add(listen("waits", 2), 0.0)
    written = 0
    for _ in range(100):
        chunks = {chunk.request_id: chunk for chunk in engine.step(0.0).chunks}
        if "waits" in chunks:
            break
        written += len(chunks["writes"].token_ids)
    assert written >= 4  # the encoder's parts at least


def test_a_request_is_cancelled_while_its_sound_is_encoded(model: Path) -> None:
    engine = engine_of(model)
    engine.add(listen("gone", 1), 0.0)
    engine.step(0.0)
    engine.cancel("gone")
    (chunk,) = engine.step(0.0).chunks
    assert chunk.finish is Finish.CANCELLED
    assert engine.step(0.0).stats.kv_blocks_used == 0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sound": None}, "has one sound"),
        ({"pictures": (Picture(0, 1, 1, 1, 1, b"", b""),)}, "has one sound"),
        ({"prompt_ids": (0,) * HEARD}, "the first 37 of more"),
        ({"sound": sound_of(noise(1, FRAMES + 1))}, "at most 74 frames"),
    ],
)
def test_what_cannot_be_heard_is_refused(model: Path, changes: dict[str, object], complaint: str) -> None:
    request = msgspec.structs.replace(listen("bad", 1), **changes)
    reply = run(engine_of(model), request)["bad"]
    assert reply.finish is Finish.FAILED
    assert complaint in (reply.error or "")


def test_a_vocabulary_is_as_wide_as_the_checkpoint_says(model: Path) -> None:
    tokens = run(engine_of(model), listen("all", 1, max_tokens=59, temperature=50.0))["all"].tokens
    assert len(tokens) == 59
    assert max(tokens) < VOCABULARY
    assert np.unique(tokens).size > 30
