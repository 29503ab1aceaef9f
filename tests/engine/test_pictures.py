"""Prompts with pictures through the engine: the same tokens alone, together, with a prefix hit, after preemption, in
chunks of any size; texts go on while pictures are encoded."""

import json
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
import torch
from ahead import run_ahead
from small_model import Reply, ask, run
from transformers import AutoModelForImageTextToText
from vision_checkpoints import FAMILIES, drawing, prompt_of, reference_inputs, write_vision_model

from tokenworks.config import EngineSettings
from tokenworks.engine.engine import Engine
from tokenworks.fleet.load import load
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.models.vision.processors import open_processor
from tokenworks.protocol.messages import Finish, Generate, Picture

TEXT = list(range(30, 60))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_vision_model(request.param, folder)
    return folder


def engine_of(model: Path, **settings: object) -> Engine:
    how = {"block_tokens": 4, "cache_mb": 1, "threads": 1, "cache_dtype": "float32", **settings}
    engine, *_ = load(WorkerSettings(path=str(model), engine=EngineSettings(**how)), {})  # type: ignore[arg-type]
    assert isinstance(engine, Engine)
    return engine


def question(model: Path, name: str, seeds: list[int], size: tuple[int, int] = (50, 20), **how: object) -> Generate:
    """A text, pictures with some text between them, and a text."""
    processor = open_processor(model)
    assert processor is not None
    ids, pictures = TEXT[:7], []
    for seed in seeds:
        for tile in processor.show(drawing(*size, seed)).tiles:
            digest = sha256(tile.pixels).digest()[:16]
            pictures.append(Picture(len(ids), tile.rows, tile.columns, tile.width, tile.height, tile.pixels, digest))
            ids = [*ids, *[0] * (tile.rows * tile.columns), 40, 41]
    how = {"ignore_eos": True, **how}
    return msgspec.structs.replace(ask(name, [*ids, *TEXT[7:12]], **how), pictures=tuple(pictures))  # type: ignore[arg-type]


def renamed(request: Generate, name: str) -> Generate:
    return msgspec.structs.replace(request, request_id=name)


def test_the_same_tokens_however_they_are_run(model: Path) -> None:
    one, two, text = question(model, "one", [1]), question(model, "two", [2, 1]), ask("text", TEXT, ignore_eos=True)
    alone = {each.request_id: run(engine_of(model), each)[each.request_id].tokens for each in (one, two, text)}
    assert alone["one"] != alone["two"]
    engine = engine_of(model)
    together = run(engine, one, two, text)
    assert {name: reply.tokens for name, reply in together.items()} == alone
    in_chunks = run(engine_of(model, step_tokens=23, sequences=3), two, text)
    assert in_chunks["two"].tokens == alone["two"]
    halfway = msgspec.structs.replace(two, output_ids=tuple(alone["two"][:5]))  # as after a worker's death
    assert run(engine_of(model), halfway)["two"].tokens == alone["two"][5:]


def test_steps_begin_before_tokens_are_seen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [question(model, "one", [1]), question(model, "two", [2, 1]), ask("text", TEXT, ignore_eos=True)]
    alone = {each.request_id: run(engine_of(model), each)[each.request_id].tokens for each in requests}
    unseen = run_ahead(monkeypatch)
    for settings in ({}, {"step_tokens": 23, "sequences": 3}):
        together = run(engine_of(model, speculation=False, **settings), *requests)
        assert {name: reply.tokens for name, reply in together.items()} == alone
    assert sum(unseen) > 50, "most tokens but each one's first"


def test_equal_pictures_hit_the_prefix_cache_and_others_miss(model: Path) -> None:
    engine, first = engine_of(model), question(model, "first", [1])
    tokens = run(engine, first)["first"].tokens
    again = run(engine, renamed(first, "again"))["again"]
    assert again.tokens == tokens
    assert again.cached_tokens == (len(first.prompt_ids) - 1) // 4 * 4
    other = run(engine, question(model, "other", [5]))["other"]
    assert other.cached_tokens == 4  # what is before the picture: 7 tokens
    assert other.tokens == run(engine_of(model), question(model, "other", [5]))["other"].tokens != tokens


@torch.no_grad()
def test_greedy_continuations_are_those_of_transformers(model: Path) -> None:
    family, images = json.loads((model / "config.json").read_text())["model_type"], [drawing(50, 20, 1), drawing(9, 40)]
    ids, pictures = prompt_of(model, images)
    request = ask("one", ids, max_tokens=64, ignore_eos=True)
    request = msgspec.structs.replace(request, pictures=tuple(pictures))
    made = run(engine_of(model, step_tokens=32), request)["one"].tokens
    assert len(made) == 64
    assert len(set(made)) > 3
    # One pass over all of it shows what the reference would have chosen at every place.
    whole = [*ids, *made]
    reference = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    logits = reference(
        input_ids=torch.tensor([whole]), **reference_inputs(family, model, images, whole, pictures)
    ).logits
    assert logits[0, len(ids) - 1 : -1].argmax(dim=-1).tolist() == made


def test_a_hit_that_ends_within_a_picture(model: Path) -> None:
    """The block in which it ends goes on differently."""
    engine, one = engine_of(model, block_tokens=10), question(model, "one", [1], (20, 20))
    picture = one.pictures[-1]
    cut = picture.end - picture.end % 10
    assert picture.at < cut < picture.end
    other = msgspec.structs.replace(one, request_id="other", prompt_ids=(*one.prompt_ids[: picture.end], *TEXT[20:30]))
    run(engine, one)
    reply = run(engine, other)["other"]
    assert reply.cached_tokens == cut
    assert reply.tokens == run(engine_of(model), other)["other"].tokens


def test_after_preemption(model: Path) -> None:
    requests = [question(model, f"r{seed}", [seed], max_tokens=60) for seed in range(3)]
    alone = [run(engine_of(model), each)[each.request_id].tokens for each in requests]
    longest = max(len(each.prompt_ids) for each in requests)
    # Room for little more than one of them.
    engine = engine_of(model, step_tokens=64, sequences=4)
    pool = engine._scheduler._space.pool  # type: ignore[attr-defined]
    taken = pool.take(pool.free - (3 * longest + 40) // 4)
    together = run(engine, *requests)
    assert [together[each.request_id].tokens for each in requests] == alone
    assert engine.step(0.0).stats.preemptions_total > 0
    assert taken


def test_texts_go_on_while_a_picture_is_encoded(model: Path) -> None:
    engine = engine_of(model, speculation=False)
    engine.add(ask("text", TEXT, max_tokens=50, ignore_eos=True), 0.0)
    engine.step(0.0)
    engine.add(question(model, "picture", [1]), 0.0)
    made = 0
    for number in range(1, 50):
        chunks = {chunk.request_id: chunk for chunk in engine.step(number * 0.01).chunks}
        if "picture" in chunks:
            break
        assert len(chunks["text"].token_ids) == 1
        made += 1
    assert made > 3


def test_a_picture_that_does_not_fit_is_refused(model: Path) -> None:
    good = question(model, "good", [1])
    first, end = good.pictures[0], len(good.prompt_ids)
    for change, complaint in [
        ({"pixels": first.pixels[:-3]}, "bytes"),
        ({"rows": first.rows + 1}, "tokens"),
        ({"at": end - 1}, "stands at"),
        ({"width": first.width + 1}, "multiples"),
    ]:
        bad = msgspec.structs.replace(first, **change)
        reply = run(engine_of(model), msgspec.structs.replace(good, pictures=(bad, *good.pictures[1:])))["good"]
        assert reply.finish is Finish.FAILED
        assert complaint in (reply.error or "")
    reply = run(engine_of(model), question(model, "scored", [1], prompt_logprobs=0))["scored"]
    assert reply.finish is Finish.FAILED


def test_a_cancelled_picture_leaves_nothing(model: Path) -> None:
    engine = engine_of(model)
    engine.add(question(model, "gone", [3]), 0.0)
    engine.step(0.0)
    engine.cancel("gone")
    reply = Reply()
    reply.chunks += engine.step(0.1).chunks
    assert reply.finish is Finish.CANCELLED
    assert not engine.busy
    assert run(engine, renamed(question(model, "next", [3]), "next"))["next"].finish is Finish.LENGTH
