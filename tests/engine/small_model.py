"""A Llama of two layers with random weights: small enough for the slow reference, real enough to be sensitive."""

from collections.abc import Callable
from functools import cache

import numpy as np

from tokenworks.engine.draft import DraftModel
from tokenworks.engine.engine import Engine
from tokenworks.kernels.backend import Backend, Executable, Limits
from tokenworks.kernels.program import Program, ProgramBuilder
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.messages import Finish, Generate, TokenChunk, TokenLogprobs
from tokenworks.protocol.sampling import Sampling

VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, LAYERS = 128, 64, 4, 2, 32, 96, 2
EOS = 127


@cache
def small_model(vocabulary: int = VOCABULARY, seed: int = 3) -> tuple[Program, dict[str, Tensor]]:
    rng = np.random.default_rng(seed)
    weights: dict[str, Tensor] = {}

    def weight(name: str, *shape: int, scale: float | None = None) -> str:
        scale = scale if scale is not None else 2.5 / np.sqrt(shape[-1])
        values = (rng.standard_normal(shape) * scale).astype(np.float32)
        weights[name] = Tensor(name, "F32", shape, values.reshape(-1).view(np.uint8))
        return name

    def ones(name: str) -> str:
        weights[name] = Tensor(name, "F32", (WIDTH,), np.ones(WIDTH, np.float32).view(np.uint8))
        return name

    frequencies = (10000.0 ** (-np.arange(HEAD // 2) / (HEAD // 2))).astype(np.float32)
    weights["rope"] = Tensor("rope", "F32", (HEAD // 2,), frequencies.view(np.uint8))
    build = ProgramBuilder()
    x = build.embed(weight("embed", vocabulary, WIDTH, scale=1.0), WIDTH)
    for i in range(LAYERS):
        h = build.rmsnorm(x, ones(f"{i}.norm"), 1e-5)
        q_width, kv_width = HEADS * HEAD, KV_HEADS * HEAD
        names = [weight(f"{i}.q", q_width, WIDTH), weight(f"{i}.k", kv_width, WIDTH), weight(f"{i}.v", kv_width, WIDTH)]
        qkv = build.linear(h, names, q_width + 2 * kv_width)
        a = build.attend(
            build.rope(qkv.columns(0, q_width), HEAD, "rope"),
            build.rope(qkv.columns(q_width, kv_width), HEAD, "rope"),
            qkv.columns(q_width + kv_width, kv_width),
            heads=HEADS, kv_heads=KV_HEADS, head_size=HEAD, scale=HEAD**-0.5,
        )  # fmt: skip
        x = build.add(x, build.linear(a, [weight(f"{i}.o", WIDTH, q_width)], WIDTH))
        h = build.rmsnorm(x, ones(f"{i}.norm2"), 1e-5)
        gate_up = build.linear(h, [weight(f"{i}.gate", HIDDEN, WIDTH), weight(f"{i}.up", HIDDEN, WIDTH)], 2 * HIDDEN)
        h = build.gate(gate_up.columns(0, HIDDEN), gate_up.columns(HIDDEN, HIDDEN), "silu")
        x = build.add(x, build.linear(h, [weight(f"{i}.down", WIDTH, HIDDEN)], WIDTH))
    h = build.rmsnorm(build.select_rows(x), ones("norm"), 1e-5)
    return build.finish(build.linear(h, [weight("head", vocabulary, WIDTH)], vocabulary)), weights


def limits(**changes: int) -> Limits:
    sizes = {"step_tokens": 32, "sequences": 8, "logit_rows": 16, "blocks": 64, "block_tokens": 4, "threads": 1}
    return Limits(**{**sizes, **changes}, cache_dtype="float32")


def no_tokenizer() -> str:
    raise AssertionError("no grammar was asked for")


def make_engine(
    backend: Backend,
    sizes: Limits,
    *,
    context_tokens: int = 200,
    vocabulary: int = VOCABULARY,
    eos: int = EOS,
    tokenizer_json: Callable[[], str] = no_tokenizer,
    speculate: bool = True,
    draft: DraftModel | None = None,
) -> Engine:
    program, weights = small_model(vocabulary)
    executable: Executable = backend.compile(program, weights, sizes)
    return Engine(
        executable, sizes, eos_token_ids=frozenset({eos}), context_tokens=context_tokens, vocabulary=vocabulary,
        tokenizer_json=tokenizer_json, speculate=speculate, draft=draft,
    )  # fmt: skip


def ask(request_id: str, prompt: list[int], output: tuple[int, ...] = (), priority: int = 0, **how: object) -> Generate:
    how = {"max_tokens": 12, "seed": 11, "temperature": 0.0, **how}
    return Generate(request_id, tuple(prompt), Sampling(**how), output, priority)  # type: ignore[arg-type]


class Reply:
    """All chunks of one request, put together."""

    def __init__(self) -> None:
        self.chunks: list[TokenChunk] = []

    @property
    def tokens(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        return [at for chunk in self.chunks for at in chunk.logprobs]

    @property
    def finish(self) -> Finish | None:
        assert all(chunk.finish is None for chunk in self.chunks[:-1]), "a chunk after the last"
        return self.chunks[-1].finish

    @property
    def error(self) -> str | None:
        return self.chunks[-1].error

    @property
    def cached_tokens(self) -> int:
        return self.chunks[0].cached_tokens


def run(engine: Engine, *requests: Generate, steps: int = 10_000) -> dict[str, Reply]:
    """Adds the requests at once and steps until nothing is left.

    By its clock every step takes as long as any other, so guesses are always worth running.
    """
    for request in requests:
        engine.add(request, 0.0)
    replies: dict[str, Reply] = {request.request_id: Reply() for request in requests}
    for number in range(steps):
        if not engine.busy:
            return replies
        for chunk in engine.step(number * 0.01).chunks:
            replies.setdefault(chunk.request_id, Reply()).chunks.append(chunk)
    raise AssertionError(f"not done after {steps} steps")
