"""Ranks on GPUs: one that meets itself, through NCCL and by graph; and two, where there are two GPUs."""

from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pytest
import torch
from chunked_steps import STEPS, assert_close, batch, by_graph_and_eagerly, compiled
from gpu_here import DEVICE
from small_checkpoints import write_decoder
from tokenizers import Tokenizer, models

from tokenworks.config import EngineSettings
from tokenworks.fleet.pool import Pool, PoolModel
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.kernels.backend import Backend
from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.cuda.group import TorchGroup
from tokenworks.kernels.shard import RankBackend
from tokenworks.protocol.messages import Generate, TokenLogprobs
from tokenworks.protocol.sampling import Sampling


@pytest.fixture
def one_of_one(backend: Backend, tmp_path: Path) -> Iterator[RankBackend]:
    """The only rank of a group."""
    group = TorchGroup(0, 1, tmp_path / "meeting", cast(Literal["cuda", "cpu"], DEVICE))
    yield RankBackend(CudaBackend(DEVICE, group), 0, 1)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["llama-tied-biased", "deepseek-v3", "qwen3-5"])
def test_one_rank_meets_itself(name: str, backend: Backend, one_of_one: RankBackend, tmp_path: Path) -> None:
    write_decoder(name, tmp_path, torch.bfloat16)
    ours, theirs = (compiled(tmp_path, each) for each in (one_of_one, backend))
    for step in STEPS:
        assert_close(np.array(ours.run(step)), np.array(theirs.run(step)))
    if ours._main.graphs is not None:
        for pieces in ([(0, 23, 24)], [(0, 23, 24), (2, 10, 11)]):
            np.testing.assert_array_equal(*by_graph_and_eagerly(ours, batch(*pieces)))


async def test_two_gpus_say_what_one_says(real: None, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    write_decoder("qwen2", tmp_path, torch.bfloat16)
    Tokenizer(models.WordLevel({"?": 0}, "?")).save(str(tmp_path / "tokenizer.json"))
    prompt = tuple((7 * i * i + 3) % 100 for i in range(40))

    async def said(ranks: int) -> list[TokenLogprobs]:
        engine = EngineSettings(device="gpu", cache_mb=64, step_tokens=16, tensor_parallel=ranks)
        pool, asked = Pool(), Generate("r", prompt, Sampling(max_tokens=20, seed=1, temperature=0.0, logprobs=0))
        await pool.start([PoolModel("m", WorkerSettings(path=str(tmp_path), engine=engine))])
        try:
            async with aclosing(pool.generate("m", asked)) as chunks:
                return [each async for chunk in chunks for each in chunk.logprobs]
        finally:
            await pool.close()

    one, two = await said(1), await said(2)
    assert len(one) == len(two) == 20
    for mine, right in zip(two, one, strict=True):
        if mine.token_id != right.token_id:  # of two that are all but equally likely
            break
        assert mine.logprob == pytest.approx(right.logprob, abs=0.05)
    assert two[0].token_id == one[0].token_id
