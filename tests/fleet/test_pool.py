"""The pool around scripted workers: every stream is whole, whatever dies."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from scripted_worker import POISON, SILENT, VECTOR, token

from tokenworks.fleet import patience
from tokenworks.fleet.pool import Pool, PoolModel
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.fleet.supervisor import Phase
from tokenworks.protocol.errors import InvalidRequest, ModelError, ModelNotFound, Overloaded, WorkerLost
from tokenworks.protocol.messages import Finish, Generate, TokenChunk
from tokenworks.protocol.sampling import Sampling

SCRIPT = Path(__file__).parent / "scripted_worker.py"
LIMIT_S = 20.0
"""So that a fault is a failure and not a hang."""


def request(name: str, *, tokens: int = 40, prompt: int = 1) -> Generate:
    return Generate(name, (prompt, 2, 3), Sampling(max_tokens=tokens, seed=sum(map(ord, name))))


def expected(asked: Generate) -> list[int]:
    return [token(asked.sampling.seed, position) for position in range(asked.sampling.max_tokens)]


async def collect(pool: Pool, asked: Generate) -> list[TokenChunk]:
    async with aclosing(pool.generate("m", asked)) as chunks:
        return [chunk async for chunk in chunks]


def tokens_of(chunks: list[TokenChunk]) -> list[int]:
    return [token_id for chunk in chunks for token_id in chunk.token_ids]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
        await asyncio.sleep(0.005)


def running_pids(diary: Path) -> list[int]:
    pids = [int(line) for line in diary.read_text().splitlines()] if diary.exists() else []
    return [pid for pid in pids if _alive(pid)]


def _alive(pid: int) -> bool:
    """A zombie is dead: nobody may be there to reap an orphan."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


@pytest.fixture
def open_pool(diary: Path):
    @asynccontextmanager
    async def opened(mode: str = "works", *, start: str = "now", start_limit_s: float = 10.0) -> AsyncIterator[Pool]:
        def command(settings: WorkerSettings, link_fd: int) -> list[str]:
            return [sys.executable, str(SCRIPT), mode, str(diary), str(link_fd)]

        pool = Pool(command=command, start_limit_s=start_limit_s)
        await pool.start([PoolModel("m", WorkerSettings(path="unused"), start)])
        try:
            async with asyncio.timeout(LIMIT_S):
                yield pool
        finally:
            await pool.close()
            assert running_pids(diary) == []

    return opened


async def test_a_stream_ends_once_and_is_whole(open_pool):
    async with open_pool() as pool:
        asked = request("a")
        chunks = await collect(pool, asked)
        assert tokens_of(chunks) == expected(asked)
        assert [chunk.finish for chunk in chunks if chunk.finish] == [Finish.LENGTH]
        assert chunks[-1].finish is Finish.LENGTH


async def test_killed_workers_leave_no_gap_and_no_repeat(open_pool):
    async with open_pool() as pool:
        await pool.ready("m")
        asked = [request(f"r{i}", tokens=150) for i in range(8)]
        tasks = [asyncio.create_task(collect(pool, each)) for each in asked]
        for kills in range(2):
            await until(lambda: pool.stats("m").running == 8)
            await asyncio.sleep(0.05)
            os.kill(pool.statuses()[0].pid, signal.SIGKILL)
            await until(lambda: pool.statuses()[0].restarts == kills + 1)  # noqa: B023
        for each, task in zip(asked, tasks, strict=True):
            chunks = await task
            assert tokens_of(chunks) == expected(each)
            assert sum(chunk.cached_tokens for chunk in chunks) == 1, "the second worker's first chunk is not the first"


async def test_a_stream_outlives_many_kills_in_quick_succession(open_pool):
    """A person or a system short of memory is no fault of the request's, though it never gets to make a token."""
    async with open_pool() as pool:
        asked = request("a", tokens=100)
        task = asyncio.create_task(collect(pool, asked))
        for kills in range(4):
            await until(lambda: pool.statuses()[0].phase is Phase.READY)
            os.kill(pool.statuses()[0].pid, signal.SIGKILL)
            await until(lambda: pool.statuses()[0].restarts == kills + 1)  # noqa: B023
        assert tokens_of(await task) == expected(asked)


async def test_a_worker_that_hangs_is_replaced_and_its_streams_go_on(open_pool, monkeypatch):
    monkeypatch.setattr(patience, "FLOOR_S", 2.0)
    async with open_pool() as pool:
        asked = [request(f"r{i}", tokens=300) for i in range(3)]
        tasks = [asyncio.create_task(collect(pool, each)) for each in asked]
        await until(lambda: pool.stats("m").running == 3)
        os.kill(pool.statuses()[0].pid, signal.SIGSTOP)
        for each, task in zip(asked, tasks, strict=True):
            assert tokens_of(await task) == expected(each)
        assert pool.statuses()[0].restarts >= 1  # more on a machine that stalls


async def test_poison_is_failed_and_its_neighbours_are_not(open_pool):
    async with open_pool() as pool:
        asked = [request(f"r{i}", tokens=300) for i in range(4)]
        neighbours = [asyncio.create_task(collect(pool, each)) for each in asked]
        await until(lambda: pool.stats("m").running == 4)
        with pytest.raises(WorkerLost, match="again and again"):
            await collect(pool, request("poison", prompt=POISON))
        for each, task in zip(asked, neighbours, strict=True):
            assert tokens_of(await task) == expected(each)


async def test_a_worker_that_hangs_at_start_is_given_up(open_pool):
    async with open_pool("hangs", start_limit_s=0.3) as pool:
        with pytest.raises(WorkerLost, match="too long"):
            await pool.ready("m")
        with pytest.raises(WorkerLost, match="too long"):
            await collect(pool, request("a"))


async def test_a_model_that_cannot_be_used_says_why_at_once(open_pool, diary):
    async with open_pool("unusable") as pool:
        with pytest.raises(ModelError, match=r"weights\.gguf: not a GGUF file"):
            await pool.ready("m")
        with pytest.raises(WorkerLost, match="not a GGUF file"):
            await collect(pool, request("a"))
        assert len(diary.read_text().splitlines()) == 1


async def test_a_worker_that_always_crashes_at_start_is_given_up_with_its_last_words(open_pool, diary):
    async with open_pool("crashes") as pool:
        with pytest.raises(WorkerLost, match="no luck today"):
            await pool.ready("m")
        assert pool.statuses()[0].phase is Phase.GIVEN_UP
        assert len(diary.read_text().splitlines()) == 3


async def test_a_request_waits_for_a_worker_that_starts_at_the_third_try(open_pool):
    async with open_pool("crashes_twice") as pool:
        asked = request("a")
        assert tokens_of(await collect(pool, asked)) == expected(asked)


async def test_a_worker_that_talks_nonsense_is_replaced(open_pool):
    async with open_pool("garbage_once") as pool:
        asked = request("a")
        assert tokens_of(await collect(pool, asked)) == expected(asked)


async def test_workers_that_always_talk_nonsense_are_given_up(open_pool, diary):
    async with open_pool("garbage") as pool:
        with pytest.raises(WorkerLost, match=r"again and again.*cannot be taken"):
            await collect(pool, request("a"))
        assert len(diary.read_text().splitlines()) <= 4, "3 that the request is blamed for, and the one after them"


async def test_closing_the_iterator_cancels(open_pool):
    async with open_pool() as pool:
        chunks = pool.generate("m", request("a", tokens=100_000))
        await anext(chunks)
        assert pool.stats("m").running == 1
        await chunks.aclose()
        await until(lambda: pool.stats("m").running == 0)
        assert pool.statuses()[0].in_flight == 0


async def test_a_client_that_does_not_read_delays_nobody_and_misses_nothing(open_pool):
    async with open_pool() as pool:
        lazy, brisk = request("lazy", tokens=300), request("brisk", tokens=300)
        chunks = pool.generate("m", lazy)
        first = await anext(chunks)
        assert tokens_of(await collect(pool, brisk)) == expected(brisk)
        await until(lambda: pool.statuses()[0].in_flight == 0)
        rest = [chunk async for chunk in chunks]
        assert len(rest) == 1, "what was not read is one chunk by now"
        assert tokens_of([first, *rest]) == expected(lazy)


async def test_first_requests_share_one_start(open_pool, diary):
    async with open_pool(start="on_demand") as pool:
        assert pool.statuses()[0].phase is Phase.OFF
        asked = [request(f"r{i}") for i in range(20)]
        for each, chunks in zip(asked, await asyncio.gather(*(collect(pool, each) for each in asked)), strict=True):
            assert tokens_of(chunks) == expected(each)
        assert len(diary.read_text().splitlines()) == 1


async def test_drain_finishes_what_runs_and_refuses_what_comes(open_pool):
    async with open_pool() as pool:
        asked = request("a", tokens=100)
        task = asyncio.create_task(collect(pool, asked))
        await until(lambda: pool.stats("m").running == 1)
        drained = asyncio.create_task(pool.drain(10.0))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await collect(pool, request("late"))
        assert await drained
        assert tokens_of(await task) == expected(asked)


async def test_drain_has_a_time_limit_and_close_ends_the_rest(open_pool):
    async with open_pool() as pool:
        task = asyncio.create_task(collect(pool, request("a", prompt=SILENT)))
        await until(lambda: pool.stats("m").running == 1)
        assert not await pool.drain(0.05)
        await pool.close()
        with pytest.raises(WorkerLost, match="shutting down"):
            await task


async def test_embeddings(open_pool):
    async with open_pool() as pool:
        embedded = await pool.embed("m", [[1, 2], [3]])
        assert (embedded.width, embedded.vectors) == (4, VECTOR * 2)


async def test_bad_calls(open_pool):
    async with open_pool() as pool:
        with pytest.raises(ModelNotFound, match="Served: m"):
            await anext(pool.generate("other", request("a")))
        task = asyncio.create_task(collect(pool, request("twice", prompt=SILENT)))
        await until(lambda: pool.statuses()[0].in_flight == 1)
        with pytest.raises(InvalidRequest, match="already running"):
            await collect(pool, request("twice"))
        assert pool.statuses()[0].in_flight == 1, "the first one is not disturbed"
        task.cancel()


async def test_closing_right_after_starting_leaves_nothing(open_pool):
    async with open_pool():
        pass  # the fixture looks for processes


def test_workers_die_with_the_gateway(diary):
    """Even when it is killed with no chance to say so, and while a worker still starts."""
    program = f"""
import asyncio, sys
from tokenworks.fleet import patience
from tokenworks.fleet.pool import Pool, PoolModel
from tokenworks.fleet.settings import WorkerSettings
async def main():
    pool = Pool(command=lambda settings, fd: [sys.executable, {str(SCRIPT)!r}, "works", {str(diary)!r}, str(fd)])
    await pool.start([PoolModel("m", WorkerSettings(path=""))])
    await pool.ready("m")
    print("up", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout.readline() == b"up\n"
        assert len(running_pids(diary)) == 1
        gateway.kill()

    async def gone() -> None:
        async with asyncio.timeout(LIMIT_S):
            await until(lambda: running_pids(diary) == [])

    asyncio.run(gone())


@pytest.mark.parametrize("seed", range(3))
async def test_in_chaos_every_stream_is_whole_or_failed_and_never_wrong(open_pool, seed):
    """Deaths and clients that leave, at random moments."""
    chance = random.Random(seed)

    async def client(number: int) -> None:
        asked = request(f"r{seed}-{number}", tokens=chance.randint(1, 120))
        leaves_after = chance.choice((None, None, chance.randint(0, 60)))
        got: list[int] = []
        await asyncio.sleep(chance.random())
        try:
            async with aclosing(pool.generate("m", asked)) as chunks:
                async for chunk in chunks:
                    got += chunk.token_ids
                    if leaves_after is not None and len(got) >= leaves_after:
                        break
                else:
                    assert got == expected(asked)
        except WorkerLost:
            failed.append(number)
        assert got == expected(asked)[: len(got)]

    async def killer() -> None:
        while True:
            await asyncio.sleep(0.15 + chance.random() / 3)
            pid = pool.statuses()[0].pid
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    failed: list[int] = []
    async with open_pool() as pool:
        killing = asyncio.create_task(killer())
        clients = [asyncio.create_task(client(number)) for number in range(60)]
        await asyncio.sleep(2.5)
        killing.cancel()
        await asyncio.gather(*clients)
        assert len(failed) < 60, "some get through"
        assert pool.statuses()[0].in_flight == 0
        await until(lambda: pool.stats("m").running == 0)


@pytest.mark.parametrize(
    "scenario",
    [
        test_killed_workers_leave_no_gap_and_no_repeat,
        test_a_worker_that_hangs_at_start_is_given_up,
        test_a_worker_that_talks_nonsense_is_replaced,
        test_drain_has_a_time_limit_and_close_ends_the_rest,
        test_closing_right_after_starting_leaves_nothing,
    ],
)
def test_on_the_loop_that_the_server_uses(scenario, open_pool):
    uvloop.run(scenario(open_pool))
