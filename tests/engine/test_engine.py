"""The engine on a real (small, random) model: the same tokens whatever else happens, on the oracle and on the CPU."""

from itertools import pairwise

import numpy as np
import pytest
from gpu_here import GPU
from small_model import EOS, VOCABULARY, Reply, ask, limits, make_engine, run, small_model

from tokenworks.engine.sampler import stream_of, uniforms
from tokenworks.kernels.backend import Backend, Float32, SampleBatch, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.protocol.messages import Finish, Generate
from tokenworks.protocol.sampling import Sampling

PROMPT = [(7 * i * i + 3) % 120 for i in range(30)]


@pytest.fixture(params=[pytest.param(ReferenceBackend, id="reference"), pytest.param(CpuBackend, id="cpu"), GPU])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param()


def mixed_requests() -> list[Generate]:
    """Greedy and sampled, with and without options that change logits, prompts that share a beginning or do not."""
    return [
        ask("greedy", PROMPT, max_tokens=25),
        ask("sampled", PROMPT, temperature=0.9, seed=5, max_tokens=25),
        ask("cut", PROMPT[:17], temperature=1.3, top_k=20, top_p=0.8, min_p=0.02, seed=6, max_tokens=30),
        ask("penalised", PROMPT[3:], temperature=0.7, repetition_penalty=1.3, presence_penalty=0.4, max_tokens=25),
        ask("counted", PROMPT[5:12], temperature=0.5, frequency_penalty=0.9, logit_bias={4: 2.0, 9: -100.0}),
        ask("short", [5], temperature=1.0, min_tokens=6, max_tokens=9),
    ]


def alone(backend: Backend, request: Generate) -> Reply:
    return run(make_engine(backend, limits()), request)[request.request_id]


def test_alone_as_in_a_batch_after_preemption_and_in_any_chunks(backend: Backend) -> None:
    requests = mixed_requests()
    expected = {request.request_id: alone(backend, request) for request in requests}
    preemptions = []
    for sizes in (limits(), limits(blocks=18), limits(step_tokens=7, sequences=3), limits(block_tokens=16, blocks=16)):
        engine = make_engine(backend, sizes)
        replies = run(engine, *requests)
        for name, reply in replies.items():
            assert (reply.tokens, reply.finish) == (expected[name].tokens, expected[name].finish), (name, sizes)
        preemptions.append(engine.step(0.0).stats.preemptions_total)
    assert preemptions[1] > 0


def test_who_is_begun_is_told_before_the_step_that_begins_it(backend: Backend) -> None:
    engine, told = make_engine(backend, limits(sequences=2)), []
    engine.on_begin = told.append
    for name in "abc":
        engine.add(ask(name, PROMPT, max_tokens=3, temperature=0.0), 0.0)
    assert told == [], "they wait in line"
    engine.step(0.0)
    assert told[0][0] == "a"
    while engine.busy:
        engine.step(0.0)
    assert sorted(name for names in told for name in names) == ["a", "b", "c"]


def test_the_same_with_a_prefix_hit(backend: Backend) -> None:
    for request in mixed_requests():
        engine = make_engine(backend, limits())
        first, second = (run(engine, request)[request.request_id] for _ in range(2))
        assert second.tokens == first.tokens
        assert (first.cached_tokens, second.cached_tokens) == (0, (len(request.prompt_ids) - 1) // 4 * 4)


def test_output_is_cached_too(backend: Backend) -> None:
    engine = make_engine(backend, limits())
    first = run(engine, ask("a", PROMPT, max_tokens=20, ignore_eos=True))["a"]
    turn = [*PROMPT, *first.tokens, 3, 4, 5]
    assert run(engine, ask("b", turn))["b"].cached_tokens == (len(PROMPT) + 19) // 4 * 4


def test_carried_on_from_any_token_by_another_worker(backend: Backend) -> None:
    for request in mixed_requests():
        whole = alone(backend, request)
        for done in (1, len(whole.tokens) // 2, len(whole.tokens) - 1):
            sent = tuple(whole.tokens[:done])
            rest = alone(backend, Generate(request.request_id, request.prompt_ids, request.sampling, sent))
            assert [*sent, *rest.tokens] == whole.tokens
            assert rest.finish == whole.finish


def test_carried_on_when_nothing_is_left_to_do(backend: Backend) -> None:
    whole = alone(backend, ask("a", PROMPT, max_tokens=3, ignore_eos=True))
    rest = alone(backend, ask("a", PROMPT, tuple(whole.tokens), max_tokens=3, ignore_eos=True))
    assert (rest.tokens, rest.finish) == ([], Finish.LENGTH)


def direct(backend: Backend, request: Generate) -> list[int]:
    """The slow, obvious generation: the whole text in one step for each token, and the options spelt out."""
    program, weights = small_model()
    sampling, prompt = request.sampling, list(request.prompt_ids)
    output: list[int] = []
    while len(output) < sampling.max_tokens:
        text = [*prompt, *output]
        executable = backend.compile(program, weights, limits(step_tokens=100))
        logits = executable.run(
            StepBatch(
                np.array(text, np.int32), np.arange(len(text), dtype=np.int32), np.array([0, len(text)], np.int32),
                np.arange(25, dtype=np.int32)[None, : -(-len(text) // 4)].copy(), np.array([len(text) - 1], np.int32),
            )
        ).copy()  # fmt: skip
        adjusted = spelt_out(logits[0], sampling, prompt, output)
        uniform = uniforms(np.array([stream_of(sampling.seed)]), np.array([len(output)]))
        how = SampleBatch(
            np.array([sampling.temperature], np.float32), np.array([sampling.top_k], np.int32),
            np.array([sampling.top_p], np.float32), np.array([sampling.min_p], np.float32), uniform,
        )  # fmt: skip
        output.append(int(executable.sample(adjusted[None], how)[0]))
        if output[-1] in {EOS, *sampling.stop_token_ids} and not sampling.ignore_eos:
            break
    return output


def spelt_out(logits: Float32, sampling: Sampling, prompt: list[int], output: list[int]) -> Float32:
    """One token after the other."""
    adjusted = logits.copy()
    for token in range(VOCABULARY):
        value = logits[token]
        if token in prompt or token in output:
            penalty = np.float32(sampling.repetition_penalty)
            value = value / penalty if value > 0 else value * penalty
        value -= np.float32(sampling.frequency_penalty) * np.float32(output.count(token))
        value -= np.float32(sampling.presence_penalty) * np.float32(token in output)
        value += np.float32(sampling.logit_bias.get(token, 0))
        if len(output) < sampling.min_tokens and token in {EOS, *sampling.stop_token_ids}:
            value = np.float32(-np.inf)
        adjusted[token] = value
    return adjusted


def test_every_option_as_spelt_out(backend: Backend) -> None:
    if backend.name == "cuda":
        pytest.skip("a GPU sums a prompt's tokens in another order than decodes'")
    rng = np.random.default_rng(12)
    requests = mixed_requests()
    for i in range(12):
        biased, biases = rng.integers(0, VOCABULARY, 3).tolist(), rng.normal(0, 4, 3).tolist()
        options = {
            "temperature": [0.0, 0.6, 1.0, 1.5], "top_k": [0, 1, 5, 40], "top_p": [1.0, 0.9, 0.3], "min_p": [0.0, 0.05],
            "repetition_penalty": [1.0, 0.8, 1.4], "presence_penalty": [0.0, -0.5, 1.0],
            "frequency_penalty": [0.0, 0.7], "min_tokens": [0, 4],
        }  # fmt: skip
        how = {name: rng.choice(values).item() for name, values in options.items()}
        how["logit_bias"] = dict(zip(biased, biases, strict=True))
        how["stop_token_ids"] = tuple(rng.integers(0, 120, 4).tolist())
        prompt = rng.integers(0, 120, rng.integers(1, 20)).tolist()
        requests.append(ask(f"r{i}", prompt, max_tokens=10, seed=int(rng.integers(2**63)), **how))
    every_token = rng.permutation(120)[:60].tolist()
    requests.append(
        ask("many", every_token, temperature=1.0, repetition_penalty=0.7, frequency_penalty=0.2, max_tokens=35)
    )
    replies = run(make_engine(backend, limits()), *requests)
    for request in requests:
        assert replies[request.request_id].tokens == direct(backend, request), request


def test_a_seed_gives_its_own_stream(backend: Backend) -> None:
    def tokens(seed: int) -> list[int]:
        return alone(backend, ask("a", PROMPT, temperature=1.5, seed=seed, max_tokens=20, ignore_eos=True)).tokens

    assert tokens(1) == tokens(1)
    assert len({tuple(tokens(seed)) for seed in (1, 2, 2**63, -1, 2**70)}) == 5


def test_sampling_follows_the_distribution() -> None:
    """4,000 first tokens at temperature 1 against the softmax: chi-squared over the ten likeliest and the rest."""
    backend = CpuBackend()
    [at] = alone(backend, ask("p", PROMPT, logprobs=10, max_tokens=1)).chunks[0].logprobs
    engine = make_engine(backend, limits(sequences=32, step_tokens=128, logit_rows=32, blocks=300))
    asked = [ask(f"s{seed}", PROMPT, temperature=1.0, seed=seed, max_tokens=1) for seed in range(4000)]
    counts = np.bincount([reply.tokens[0] for reply in run(engine, *asked).values()], minlength=VOCABULARY)
    probabilities = np.exp([logprob for _, logprob in at.top])
    expected = np.append(probabilities, 1 - probabilities.sum()) * 4000
    seen = [counts[token] for token, _ in at.top]
    observed = np.array([*seen, 4000 - sum(seen)])
    assert ((observed - expected) ** 2 / expected).sum() < 29.6, "10 degrees of freedom: one chance in a thousand"


def test_logprobs_are_of_the_models_own_distribution(backend: Backend) -> None:
    plain = alone(backend, ask("a", PROMPT, logprobs=VOCABULARY - 1, max_tokens=1)).chunks[0]
    bent = alone(
        backend, ask("a", PROMPT, logprobs=3, max_tokens=1, logit_bias={17: 100.0}, temperature=0.1, top_k=2)
    ).chunks[0]
    assert bent.token_ids == (17,)
    everything = dict(plain.logprobs[0].top)
    assert sum(np.exp(list(everything.values()))) == pytest.approx(1, abs=0.02)
    assert bent.logprobs[0].logprob == pytest.approx(everything[17])
    assert bent.logprobs[0].rank == [token for token, _ in plain.logprobs[0].top].index(17) + 1
    assert bent.logprobs[0].top == plain.logprobs[0].top[:3]
    assert alone(backend, ask("a", PROMPT, logprobs=0, max_tokens=1)).chunks[0].logprobs[0].top == ()
    assert alone(backend, ask("a", PROMPT, max_tokens=1)).chunks[0].logprobs == ()


def test_prompt_logprobs_are_what_each_prefix_predicts(backend: Backend) -> None:
    engine = make_engine(backend, limits(logit_rows=9))
    run(engine, ask("warm", PROMPT))  # a prefix hit would leave rows out
    asked = [ask("none", PROMPT, max_tokens=0, prompt_logprobs=2), ask("some", PROMPT, max_tokens=3, prompt_logprobs=0)]
    replies = run(engine, *asked, ask("other", PROMPT[4:], max_tokens=30))
    none, some = replies["none"], replies["some"]
    assert (none.tokens, none.finish, len(none.chunks)) == ([], Finish.LENGTH, 1)
    assert (len(some.tokens), some.finish) == (3, Finish.LENGTH)
    prefixes = [ask(f"{i}", PROMPT[:i], logprobs=VOCABULARY, max_tokens=1) for i in range(1, len(PROMPT))]
    predicted = run(make_engine(backend, limits()), *prefixes)
    assert [at.token_id for at in none.chunks[0].prompt_logprobs] == PROMPT[1:]
    for i, (at, bare) in enumerate(
        zip(none.chunks[0].prompt_logprobs, some.chunks[0].prompt_logprobs, strict=True), start=1
    ):
        top = predicted[f"{i}"].chunks[0].logprobs[0].top
        assert at.logprob == bare.logprob == dict(top)[PROMPT[i]]
        assert at.top == top[:2]
        assert bare.top == ()


def test_what_ends_a_sequence(backend: Backend) -> None:
    free = alone(backend, ask("a", PROMPT, max_tokens=12, ignore_eos=True)).tokens
    assert len(free) == 12
    stop = free[5]
    first = free.index(stop)
    stopped = alone(backend, ask("a", PROMPT, stop_token_ids=(stop, 1), ignore_eos=True))
    assert (stopped.tokens, stopped.finish) == (free[: first + 1], Finish.STOP)
    assert stopped.chunks[-1].stop_token_id == stop
    forced = {EOS: 100.0}
    at_eos = alone(backend, ask("a", PROMPT, logit_bias=forced))
    assert (at_eos.tokens, at_eos.finish, at_eos.chunks[-1].stop_token_id) == ([EOS], Finish.STOP, EOS)
    ignored = alone(backend, ask("a", PROMPT, logit_bias=forced, ignore_eos=True, max_tokens=4))
    assert (ignored.tokens, ignored.finish) == ([EOS] * 4, Finish.LENGTH)
    later = alone(backend, ask("a", PROMPT, logit_bias=forced, min_tokens=3))
    assert EOS not in later.tokens[:3]
    assert (later.tokens[3:], later.finish) == ([EOS], Finish.STOP)


def test_the_context_is_the_limit(backend: Backend) -> None:
    engine = make_engine(backend, limits(), context_tokens=35)
    reply = run(engine, ask("a", PROMPT, max_tokens=100, ignore_eos=True))["a"]
    assert (len(reply.tokens), reply.finish) == (5, Finish.LENGTH)
    engine = make_engine(backend, limits(blocks=8))
    reply = run(engine, ask("a", PROMPT, max_tokens=100, ignore_eos=True))["a"]
    assert (len(reply.tokens), reply.finish) == (2, Finish.LENGTH)


def test_several_outputs_of_one_prompt_share_its_blocks(backend: Backend) -> None:
    engine = make_engine(backend, limits())
    for i in range(6):
        engine.add(ask(str(i), PROMPT, temperature=1.0, seed=i, max_tokens=2, ignore_eos=True), 0.0)
    most = 0
    while engine.busy:
        most = max(most, engine.step(0.0).stats.kv_blocks_used)
    assert most <= 7 + 6, "28 tokens of the prompt shared, then a block for each"


def test_impossible_ids_fail_that_request(backend: Backend) -> None:
    engine = make_engine(backend, limits())
    replies = run(
        engine, ask("a", [1, VOCABULARY]), ask("b", [-1]), ask("c", [1], logit_bias={VOCABULARY: 1.0}),
        ask("d", [1], stop_token_ids=(-5,)), ask("fine", PROMPT),
    )  # fmt: skip
    assert [replies[name].finish for name in "abcd"] == [Finish.FAILED] * 4
    assert all("token id" in str(replies[name].error) for name in "abcd")
    assert replies["fine"].tokens == alone(backend, ask("fine", PROMPT)).tokens


def test_a_bias_that_leaves_nothing_fails_that_request(backend: Backend) -> None:
    nothing = dict.fromkeys(range(VOCABULARY), -np.inf)
    replies = run(make_engine(backend, limits()), ask("a", PROMPT, logit_bias=nothing), ask("fine", PROMPT))
    assert replies["a"].finish is Finish.FAILED
    assert "no token to choose" in str(replies["a"].error)
    assert replies["fine"].tokens == alone(backend, ask("fine", PROMPT)).tokens


def test_nothing_is_kept_of_a_request_that_has_ended(backend: Backend) -> None:
    engine = make_engine(backend, limits())
    requests = [ask(str(n), PROMPT, presence_penalty=1.0, max_tokens=n) for n in range(1, 5)]
    for request in requests:
        engine.add(request, 0.0)
    engine.step(0.0)
    engine.cancel("4")
    run(engine)
    assert not engine._sampler._adjustments
    assert not engine._scheduler._sequences


def test_uniform_numbers() -> None:
    numbers = uniforms(np.repeat(np.array([stream_of(s) for s in range(100)]), 1000), np.tile(np.arange(1000), 100))
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    assert len(np.unique(numbers)) > 99_000
    counts, _ = np.histogram(numbers, 100, (0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 149, "99 degrees of freedom: one chance in a thousand"
    rows = numbers.reshape(100, 1000)
    assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in pairwise(rows)) < 0.15
