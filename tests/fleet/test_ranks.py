"""A worker of several ranks, which are processes that meet through gloo; each runs the reference on its share."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from small_checkpoints import write_decoder
from test_worker import LIMIT_S, _alive, kill, until
from test_worker import tokens as tokens_of
from tokenizers import Tokenizer, models

from tokenworks.config import EngineSettings
from tokenworks.fleet.pool import Pool, PoolModel
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.protocol.errors import WorkerLost
from tokenworks.protocol.messages import Generate
from tokenworks.protocol.sampling import Sampling


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_decoder("llama-tied-biased", folder)
    Tokenizer(models.WordLevel({"?": 0}, "?")).save(str(folder / "tokenizer.json"))
    return folder


@asynccontextmanager
async def serving(path: Path, ranks: int) -> AsyncIterator[Pool]:
    engine = EngineSettings(cache_mb=1, cache_dtype="float32", step_tokens=16, sequences=4, tensor_parallel=ranks)
    pool = Pool()
    await pool.start([PoolModel("m", WorkerSettings(path=str(path), backend="reference", engine=engine))])
    try:
        async with asyncio.timeout(LIMIT_S):
            yield pool
    finally:
        await pool.close()


def request(number: int, tokens: int) -> Generate:
    prompt = tuple((7 * i * i + 3 * number) % 100 for i in range(9 + 4 * number))
    return Generate(
        f"r{number}", prompt, Sampling(max_tokens=tokens, seed=1, temperature=0.8 * (number % 2), ignore_eos=True)
    )


async def all_tokens(pool: Pool, asked: list[Generate]) -> list[list[int]]:
    return await asyncio.gather(*(tokens_of(pool, each) for each in asked))


def ranks_of(pool: Pool) -> list[int]:
    """Processes that the worker has started."""
    pid = pool.statuses()[0].pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_two_ranks_give_the_tokens_of_one_whoever_dies(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = [request(number, 40) for number in range(3)]
    async with serving(llama, 1) as pool:
        alone = await all_tokens(pool, asked)
    assert len({tuple(each) for each in alone}) == 3
    async with serving(llama, 2) as pool:
        assert await all_tokens(pool, asked) == alone
        (rank,) = ranks_of(pool)
        running = asyncio.create_task(all_tokens(pool, asked))
        done_tokens = pool.stats("m").output_tokens_total
        await until(lambda: pool.stats("m").output_tokens_total >= done_tokens + 20)
        with caplog.at_level(logging.WARNING):
            os.kill(rank, signal.SIGKILL)
            assert await running == alone
        assert "Rank 1 of 2 (tensor_parallel) was killed by SIGKILL." in caplog.text
        assert pool.statuses()[0].restarts == 1
        (rank,) = ranks_of(pool)
        kill(pool)
        await until(lambda: not _alive(rank))


async def test_what_cannot_be_shared_is_said(llama: Path) -> None:
    async with serving(llama, 8) as pool:
        with pytest.raises(WorkerLost, match=r"tensor_parallel: 8 GPUs cannot share .* 5 heads over 1 of K and V"):
            await all_tokens(pool, [request(0, 3)])
