"""What a client sees when clients leave, workers die and the factory is told to stop."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
from running_factory import Factory, start_factory

LONG = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Tell me a very long story."}],
    "temperature": 0,
    "max_tokens": 400,
    "extra_body": {"ignore_eos": True},
}


def in_flight(http: httpx.Client) -> int:
    """Sequences that the engine runs or holds waiting, by its own account."""
    lines = http.get("/metrics").text.splitlines()
    names = ("tokenworks_requests_running", "tokenworks_requests_waiting")
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(names))


def wait_until(condition: object, limit_s: float = 10) -> bool:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine(factory: Factory, http: httpx.Client, stream: bool) -> None:
    async with openai.AsyncOpenAI(base_url=f"{factory.url}/v1", api_key="any", max_retries=0) as client:
        call = asyncio.create_task(client.chat.completions.create(**{**LONG, "n": 3}, stream=stream))
        if stream:
            chunks = await call
            async for chunk in chunks:
                if chunk.choices[0].delta.content:
                    break
            assert in_flight(http) >= 1
            await chunks.close()
        else:
            assert await asyncio.to_thread(wait_until, lambda: in_flight(http) == 3)
            call.cancel()
    assert await asyncio.to_thread(wait_until, lambda: in_flight(http) == 0, 3)


def test_a_killed_worker_leaves_no_gap_and_no_repeat_in_a_stream(client: openai.OpenAI, factory: Factory) -> None:
    ask = {**LONG, "max_tokens": 150}
    undisturbed = client.chat.completions.create(**ask).choices[0].message.content
    text, killed = "", False
    for chunk in client.chat.completions.create(**ask, stream=True):
        text += chunk.choices[0].delta.content or ""
        if not killed and len(text) > 100:
            killed = True
            [worker] = [each for each in factory.workers() if "smollm2" in " ".join(each.cmdline()).lower()]
            worker.send_signal(signal.SIGKILL)
    assert killed
    assert text == undisturbed


def test_told_to_stop_it_finishes_what_runs_and_leaves_no_process(smollm2: Path, minilm: Path, tmp_path: Path) -> None:
    factory = start_factory(smollm2, minilm, minilm, tmp_path)
    workers = factory.workers()
    assert workers
    with openai.OpenAI(base_url=f"{factory.url}/v1", api_key="any", max_retries=0) as client:
        assert httpx.get(f"{factory.url}/ready").json() == {"ready": True, "models": {"smollm2": True}}
        chunks = iter(client.chat.completions.create(**{**LONG, "max_tokens": 60}, stream=True))
        next(chunks)
        factory.process.send_signal(signal.SIGINT)
        finishes = [chunk.choices[0].finish_reason for chunk in chunks]
    assert finishes[-1] == "length"
    assert factory.process.wait(15) == 0
    assert not any(worker.is_running() for worker in workers)


def test_a_port_in_use_is_said_at_once(smollm2: Path, factory: Factory) -> None:
    port = factory.url.rpartition(":")[2]
    code = (
        "from tokenworks.config import ServerSettings; from tokenworks.gateway.server import bind, AddressInUse\n"
        f"try: bind(ServerSettings(port={port}))\n"
        "except AddressInUse as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"127.0.0.1:{port}" in said
    assert "--port" in said
