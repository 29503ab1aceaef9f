"""Real workers with real weights: a request's tokens do not depend on who dies while it runs."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from tokenworks.config import EngineSettings
from tokenworks.fleet.pool import Pool, PoolModel
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.fleet.supervisor import Phase
from tokenworks.protocol.errors import EngineError, ModelError, WorkerLost
from tokenworks.protocol.messages import Finish, Generate, TokenChunk
from tokenworks.protocol.sampling import Sampling

LIMIT_S = 120.0
"""So that a fault is a failure and not a hang."""


@asynccontextmanager
async def serving(path: Path, draft: Path | None = None, **engine: int) -> AsyncIterator[Pool]:
    """A pool with one model, "m"; afterwards no process is left."""
    pool = Pool()
    settings = EngineSettings(**{"cache_mb": 64, **engine})
    draft_path = str(draft) if draft else None
    await pool.start([PoolModel("m", WorkerSettings(path=str(path), draft_path=draft_path, engine=settings))])
    seen: set[int] = set()
    try:
        async with asyncio.timeout(LIMIT_S):
            watch = asyncio.create_task(_collect_pids(pool, seen))
            yield pool
    finally:
        watch.cancel()
        await pool.close()
    assert seen, "a worker ran"
    assert not [pid for pid in seen if _alive(pid)]


async def _collect_pids(pool: Pool, seen: set[int]) -> None:
    while True:
        seen |= {status.pid for status in pool.statuses() if status.pid is not None}
        await asyncio.sleep(0.01)


def _alive(pid: int) -> bool:
    """A zombie is dead: nobody may be there to reap an orphan."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
        await asyncio.sleep(0.002)


def request(number: int, *, prompt_tokens: int = 12, tokens: int = 40, temperature: float = 0.0) -> Generate:
    """Odd prompts, so that greedy choices are close and a wrong token shows."""
    prompt_ids = tuple(1000 + (number * 7919 + position * 104729) % 40000 for position in range(prompt_tokens))
    sampling = Sampling(max_tokens=tokens, seed=number, temperature=temperature, top_p=0.95, ignore_eos=True)
    return Generate(f"r{number}", prompt_ids, sampling)


async def collect(pool: Pool, asked: Generate) -> list[TokenChunk]:
    async with aclosing(pool.generate("m", asked)) as chunks:
        return [chunk async for chunk in chunks]


async def tokens(pool: Pool, asked: Generate) -> list[int]:
    chunks = await collect(pool, asked)
    assert [chunk.finish for chunk in chunks if chunk.finish] == [Finish.LENGTH]
    return [token_id for chunk in chunks for token_id in chunk.token_ids]


def kill(pool: Pool, number: int = signal.SIGKILL) -> None:
    pid = pool.statuses()[0].pid
    assert pid is not None
    os.kill(pid, number)


async def test_streams_killed_in_the_middle_go_on_as_if_nothing_had_happened(smollm2):
    greedy = [request(number) for number in range(4)]
    drawn = [request(number, temperature=0.9) for number in range(4, 8)]
    async with serving(smollm2) as pool:
        undisturbed = await asyncio.gather(*(tokens(pool, each) for each in greedy + drawn))
        assert len({tuple(each) for each in undisturbed}) == 8
        running = [asyncio.create_task(tokens(pool, each)) for each in greedy + drawn]
        done_tokens = pool.stats("m").output_tokens_total
        await until(lambda: pool.stats("m").output_tokens_total >= done_tokens + 8 * 12)
        assert pool.stats("m").running == 8
        kill(pool)
        assert await asyncio.gather(*running) == undisturbed
        assert pool.statuses()[0].restarts == 1


async def test_killed_while_prompts_are_computed(smollm2):
    asked = [request(number, prompt_tokens=320, tokens=8) for number in range(3)]
    async with serving(smollm2, step_tokens=32) as pool:
        undisturbed = [await tokens(pool, each) for each in asked]
    async with serving(smollm2, step_tokens=32) as pool:
        running = [asyncio.create_task(tokens(pool, each)) for each in asked]
        await until(lambda: pool.stats("m").steps_total >= 3)
        assert pool.stats("m").output_tokens_total == 0
        kill(pool)
        assert await asyncio.gather(*running) == undisturbed


async def test_killed_while_it_starts(smollm2):
    async with serving(smollm2) as pool:
        running = asyncio.create_task(tokens(pool, request(1)))
        await until(lambda: pool.statuses()[0].pid is not None)
        await asyncio.sleep(0.1)
        assert pool.statuses()[0].phase is Phase.STARTING
        kill(pool)
        assert len(await running) == 40


async def test_a_terminated_worker_finishes_what_it_has_and_its_successor_takes_the_rest(smollm2):
    async with serving(smollm2) as pool:
        await pool.ready("m")
        first = asyncio.create_task(tokens(pool, request(1, tokens=60)))
        await until(lambda: pool.stats("m").running == 1)
        pid = pool.statuses()[0].pid
        kill(pool, signal.SIGTERM)
        await asyncio.sleep(0.05)
        second = asyncio.create_task(tokens(pool, request(2, tokens=10)))
        assert len(await first) == 60
        assert len(await second) == 10
        assert pool.statuses()[0].pid not in (None, pid)
        assert pool.statuses()[0].restarts == 0, "a drained worker has not died"


async def test_an_idle_worker_that_is_terminated_exits_and_one_that_is_interrupted_does_not(smollm2):
    async with serving(smollm2) as pool:
        await pool.ready("m")
        pid = pool.statuses()[0].pid
        kill(pool, signal.SIGINT)
        assert len(await tokens(pool, request(1, tokens=3))) == 3
        assert pool.statuses()[0].pid == pid
        kill(pool, signal.SIGTERM)
        await until(lambda: not _alive(pid))


async def test_a_hundred_at_once(smollm2):
    asked = [request(number, tokens=2 + number % 4) for number in range(100)]
    async with serving(smollm2) as pool:
        for each, got in zip(asked, await asyncio.gather(*(tokens(pool, each) for each in asked)), strict=True):
            assert len(got) == each.sampling.max_tokens
        assert (pool.stats("m").running, pool.stats("m").waiting, pool.stats("m").kv_blocks_used) == (0, 0, 0)


async def test_a_client_that_leaves_frees_its_blocks(smollm2):
    async with serving(smollm2) as pool:
        for prompt_tokens in (20, 400):
            chunks = pool.generate("m", request(1, prompt_tokens=prompt_tokens, tokens=1000))
            await anext(chunks)
            assert pool.stats("m").kv_blocks_used > 0
            await chunks.aclose()
            await until(lambda: pool.stats("m").kv_blocks_used == 0)
            assert pool.stats("m").running == 0


async def test_a_client_that_leaves_before_the_first_token(smollm2):
    async with serving(smollm2, step_tokens=32) as pool:
        await pool.ready("m")
        task = asyncio.create_task(collect(pool, request(1, prompt_tokens=1000)))
        await until(lambda: pool.stats("m").kv_blocks_used > 0)
        task.cancel()
        await until(lambda: pool.stats("m").kv_blocks_used == 0)
        assert pool.stats("m").output_tokens_total == 0


async def test_drain_finishes_what_runs(smollm2):
    async with serving(smollm2) as pool:
        running = asyncio.create_task(tokens(pool, request(1, tokens=60)))
        await until(lambda: pool.stats("m").running == 1)
        assert await pool.drain(60.0)
        assert len(await running) == 60


async def test_ready_says_what_the_model_is_and_where_the_time_went(smollm2):
    async with serving(smollm2, context_tokens=500, packed_mb=0) as pool:
        ready = await pool.ready("m")
        assert (ready.kind, ready.context_tokens, ready.vocabulary) == ("generate", 500, 49152)
        assert 60e6 < ready.weight_bytes < 120e6
        assert 60 << 20 < ready.kv_bytes <= 64 << 20
        assert list(ready.load_s) == ["python", "imports", "open", "pack", "engine"]
        assert all(seconds >= 0 for seconds in ready.load_s.values())


async def test_requests_that_cannot_run_fail_alone(smollm2):
    async with serving(smollm2) as pool:
        good = asyncio.create_task(tokens(pool, request(1)))
        bad = Generate("bad", (10**6,), Sampling(max_tokens=1, seed=0))
        (chunk,) = await collect(pool, bad)
        assert chunk.finish is Finish.FAILED
        assert "1000000" in (chunk.error or "")
        with pytest.raises(EngineError, match="no embeddings"):
            await pool.embed("m", [[1]])
        assert len(await good) == 40


async def test_a_worker_with_a_draft_model(smollm2):
    asked = [request(number, temperature=0.9 * (number % 2)) for number in range(4)]
    async with serving(smollm2) as pool:
        alone = await pool.ready("m")
        expected = [await tokens(pool, each) for each in asked]
    async with serving(smollm2, smollm2, packed_mb=0) as pool:
        ready = await pool.ready("m")
        assert list(ready.load_s) == ["python", "imports", "open", "pack", "draft", "engine"]
        assert ready.draft_weight_bytes == ready.weight_bytes == alone.weight_bytes
        assert ready.draft_kv_bytes == ready.kv_bytes
        assert alone.kv_bytes * 0.95 < ready.kv_bytes + ready.draft_kv_bytes <= 64 << 20
        running = [asyncio.create_task(tokens(pool, each)) for each in asked]
        await until(lambda: pool.stats("m").output_tokens_total >= 4 * 12)
        kill(pool)
        assert await asyncio.gather(*running) == expected
        assert pool.statuses()[0].restarts == 1


async def test_a_draft_model_that_cannot_draft(smollm2, minilm, gemma3):
    for other, why in ((minilm, "it is an encoder"), (gemma3, "different vocabularies")):
        async with serving(smollm2, other) as pool:
            with pytest.raises(ModelError, match=why):
                await pool.ready("m")
    async with serving(minilm, smollm2) as pool:  # the setting is for models of text
        assert (await pool.ready("m")).draft_weight_bytes == 0


@pytest.mark.parametrize("content", [b"", b"GGUF", b"hello" * 1000])
async def test_a_file_that_is_no_model_is_answered_with_its_name(tmp_path, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    async with serving(path) as pool:
        with pytest.raises(ModelError, match=r"broken\.gguf"):
            await pool.ready("m")
        with pytest.raises(WorkerLost, match=r"broken\.gguf"):
            await collect(pool, request(1))


async def test_embeddings(minilm):
    async with serving(minilm) as pool:
        ready = await pool.ready("m")
        assert ready.kind == "embed"
        inputs = [[101, 7592 + n, 2088, 102] for n in range(30)] + [[101, *range(2000, 2200), 102]]
        together = await pool.embed("m", inputs)
        vectors = np.frombuffer(together.vectors, "<f4").reshape(len(inputs), together.width)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
        counted = sum(map(len, inputs))
        assert pool.stats("m").prompt_tokens_total == counted
        alone = []
        for each in inputs:
            alone.append(await pool.embed("m", [each]))
            counted += len(each)
            assert pool.stats("m").prompt_tokens_total == counted, "whoever has the answer finds it counted"
        assert b"".join(each.vectors for each in alone) == together.vectors
        with pytest.raises(EngineError, match="input 0"):
            await pool.embed("m", [[10**6]])
        (chunk,) = await collect(pool, request(1))
        assert chunk.finish is Finish.FAILED
        assert pool.stats("m").prompt_tokens_total == counted, "a refusal takes nothing back"
        kill(pool)
        assert (await pool.embed("m", inputs)).vectors == together.vectors


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process that is stopped")


@pytest.mark.parametrize("when", ["starting", "working", pytest.param("stopped", marks=LINUX)])
def test_a_worker_dies_with_its_gateway(smollm2, when):
    """Killed, with no chance to say so."""
    program = f"""
import asyncio
from tokenworks.fleet.pool import Pool, PoolModel
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.protocol.messages import Generate
from tokenworks.protocol.sampling import Sampling
async def main():
    pool = Pool()
    await pool.start([PoolModel("m", WorkerSettings(path={str(smollm2)!r}))])
    if {when!r} != "starting":
        await anext(pool.generate("m", Generate("r", (1, 2), Sampling(max_tokens=2000, seed=1, ignore_eos=True))))
    while pool.statuses()[0].pid is None:
        await asyncio.sleep(0.01)
    print(pool.statuses()[0].pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as gateway:
        pid = int(gateway.stdout.readline())
        assert _alive(pid)
        if when == "stopped":
            os.kill(pid, signal.SIGSTOP)
            while ") T " not in Path(f"/proc/{pid}/stat").read_text():
                time.sleep(0.001)
        gateway.kill()

    async def gone() -> None:
        async with asyncio.timeout(LIMIT_S):
            await until(lambda: not _alive(pid))

    asyncio.run(gone())


def packed_files(home: Path) -> list[Path]:
    return list((home / "packed").glob("*.packed"))


async def first_tokens(path: Path) -> tuple[int, ...]:
    """Of one request; then whether its worker mapped its weights. Ends when packed weights are kept."""
    async with serving(path) as pool:
        ready = await pool.ready("m")
        chunks = await collect(pool, request(1, tokens=8))
        await until(lambda: bool(packed_files(Path(os.environ["TOKENWORKS_HOME"]))))
    return (*(token for chunk in chunks for token in chunk.token_ids), "map" in ready.load_s)


async def test_packed_weights_are_kept_beside_the_steps_and_mapped_by_the_next_start(smollm2, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path))
    first, second = await first_tokens(smollm2), await first_tokens(smollm2)
    assert first[:-1] == second[:-1]
    assert (first[-1], second[-1]) == (False, True)


async def test_two_workers_that_start_at_once_keep_one_file(smollm2, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path))
    one, other = await asyncio.gather(first_tokens(smollm2), first_tokens(smollm2))
    assert one[:-1] == other[:-1]
    assert len(packed_files(tmp_path)) == 1
    assert (await first_tokens(smollm2))[-1] is True


async def test_a_worker_killed_while_it_writes_leaves_nothing_that_counts(smollm2, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path))
    async with serving(smollm2) as pool:
        await pool.ready("m")
        await until(lambda: any(part.stat().st_size for part in (tmp_path / "packed").glob("*.part")))
        (status,) = pool.statuses()
        os.kill(status.pid, signal.SIGKILL)
        assert not packed_files(tmp_path), "it was killed in time"
        await until(lambda: bool(packed_files(tmp_path)))  # by the one that the supervisor starts instead
    assert (await first_tokens(smollm2))[-1] is True
    assert not list((tmp_path / "packed").glob("*.part"))


async def test_a_home_that_cannot_be_written_to_does_not_stop_a_start(smollm2, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "file"))
    async with serving(smollm2) as pool:
        assert "pack" in (await pool.ready("m")).load_s
        assert (await collect(pool, request(1, tokens=8)))[-1].finish == Finish.LENGTH
