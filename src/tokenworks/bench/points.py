"""The points a serving engine is compared at, and how each is taken."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from tokenworks.bench.client import BenchFailed, Client, Streamed
from tokenworks.bench.prompts import Prompts
from tokenworks.protocol.clock import now_s

OUTPUT_TOKENS = 128
PROMPT_TOKENS = 128
LONG_PROMPT_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Point:
    """One figure: the median of `repeats`, in `unit`."""

    name: str
    unit: str
    repeats: tuple[float, ...]

    @property
    def value(self) -> float:
        return median(self.repeats)


async def measure(
    client: Client,
    prompts: Prompts,
    *,
    concurrency: Iterable[int],
    repeats: int,
    memory_bytes: Callable[[], int] | None,
    progress: Callable[[str], None],
) -> list[Point]:
    """All points against a running server, one after the other. `progress` is told what is being measured.

    `memory_bytes`, where the server's processes can be seen, is asked after each point: what they hold only grows.
    """
    progress("warm-up")
    await _together(client, prompts.take(2, PROMPT_TOKENS), 8)
    points = [await _prefill(client, prompts, repeats, progress), await _decode(client, prompts, repeats, progress)]
    held_bytes = []
    for streams in concurrency:
        progress(f"{streams} at once")
        rates, worst = [], []
        for _ in range(repeats):
            rate, first_token_s = await _throughput(client, prompts, streams)
            rates.append(rate)
            worst.append(first_token_s)
        points.append(Point(f"throughput_{streams}", "tok/s", tuple(rates)))
        points.append(Point(f"ttft_worst_{streams}", "s", tuple(worst)))
        if memory_bytes:
            held_bytes.append(memory_bytes())
    if held_bytes:
        points.append(Point("memory_peak", "bytes", (max(held_bytes),)))
    return points


async def _prefill(client: Client, prompts: Prompts, repeats: int, progress: Callable[[str], None]) -> Point:
    """Prompt tokens over the time to the first token."""
    progress(f"a prompt of {LONG_PROMPT_TOKENS} tokens")
    rates = []
    for prompt in prompts.take(repeats + 2, LONG_PROMPT_TOKENS):
        done = await client.complete(prompt, 1)
        rates.append(LONG_PROMPT_TOKENS / done.first_token_s)
    return Point(f"prefill_{LONG_PROMPT_TOKENS}", "tok/s", tuple(rates))


async def _decode(client: Client, prompts: Prompts, repeats: int, progress: Callable[[str], None]) -> Point:
    """Tokens after the first over the time they took, one request alone."""
    progress("one request alone")
    rates = []
    for prompt in prompts.take(repeats, PROMPT_TOKENS):
        done = await client.complete(prompt, OUTPUT_TOKENS)
        rates.append((done.output_tokens - 1) / (done.total_s - done.first_token_s))
    return Point("decode_1", "tok/s", tuple(rates))


async def _throughput(client: Client, prompts: Prompts, streams: int) -> tuple[float, float]:
    """All output tokens over the wall time, and the worst time to a first token in seconds."""
    began_s = now_s()
    done = await _together(client, prompts.take(streams, PROMPT_TOKENS), OUTPUT_TOKENS)
    elapsed_s = now_s() - began_s
    made = sum(one.output_tokens for one in done)
    if made < streams * OUTPUT_TOKENS:
        raise BenchFailed(f"the server made {made} tokens where {streams * OUTPUT_TOKENS} were asked for (ignore_eos)")
    return made / elapsed_s, max(one.first_token_s for one in done)


async def _together(client: Client, prompts: list[list[int]], max_tokens: int) -> list[Streamed]:
    return list(await asyncio.gather(*(client.complete(prompt, max_tokens) for prompt in prompts)))
