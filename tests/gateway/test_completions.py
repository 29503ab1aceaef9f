"""/v1/completions, as evaluation harnesses and load generators call it."""

import math

import httpx
import openai
import pytest

TEXT = "The capital of France is Paris, and the capital of Italy is"


def tokens_of(http: httpx.Client, text: str) -> list[int]:
    return http.post("/tokenize", json={"model": "smollm2", "prompt": text}).json()["tokens"]


def test_a_text_its_token_ids_and_a_list_of_either_say_the_same(client: openai.OpenAI, http: httpx.Client) -> None:
    ids = tokens_of(http, TEXT)
    ask = {"model": "smollm2", "temperature": 0, "max_tokens": 6}
    text = client.completions.create(**ask, prompt=TEXT).choices[0].text
    assert "Rome" in text
    assert client.completions.create(**ask, prompt=ids).choices[0].text == text
    for prompts in ([TEXT, "One, two,"], [ids, tokens_of(http, "One, two,")]):
        both = client.completions.create(**ask, prompt=prompts)
        assert [choice.index for choice in both.choices] == [0, 1]
        assert both.choices[0].text == text
        assert "three" in both.choices[1].text
        assert both.usage.prompt_tokens == len(ids) + 4


def test_the_default_length_is_16_tokens(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="smollm2", prompt=TEXT, temperature=0, logprobs=0, extra_body={"ignore_eos": True}
    )
    assert (reply.usage.completion_tokens, len(reply.choices[0].logprobs.tokens)) == (16, 16)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scoring_a_prompt_as_evaluation_harnesses_do(
    client: openai.OpenAI, http: httpx.Client, max_tokens: int
) -> None:
    ids = tokens_of(http, TEXT)
    ask = {"model": "smollm2", "echo": True, "logprobs": 1, "temperature": 0, "seed": 1}
    [choice] = client.completions.create(**ask, prompt=[ids], max_tokens=max_tokens).choices
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(ids) + max_tokens
    assert "".join(logprobs.tokens) == choice.text
    assert choice.text.startswith(TEXT)
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert [choice.text[at:] for at in logprobs.text_offset] == [
        "".join(logprobs.tokens[number:]) for number in range(len(logprobs.tokens))
    ]
    for token, logprob, top in zip(
        logprobs.tokens[1:], logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True
    ):
        assert top[token] == logprob <= max(top.values()) <= 0
    # " Paris" after "France is": what an evaluation of facts rests on.
    at = logprobs.tokens.index(" Paris")
    assert max(logprobs.top_logprobs[at], key=logprobs.top_logprobs[at].get) == " Paris"
    # The same again (now from the prefix cache), and the sum agrees with growing the prompt token by token.
    again = client.completions.create(**ask, prompt=[ids], max_tokens=max_tokens).choices[0].logprobs
    assert again.token_logprobs == logprobs.token_logprobs
    # And the same as what generation says of the token it makes there.
    made = client.completions.create(model="smollm2", prompt=ids[:at], max_tokens=1, temperature=0, logprobs=1)
    assert math.isclose(made.choices[0].logprobs.token_logprobs[0], logprobs.token_logprobs[at], abs_tol=1e-4)


def test_an_echo_stands_before_the_text_whole_and_streamed(client: openai.OpenAI) -> None:
    ask = {"model": "smollm2", "prompt": TEXT, "temperature": 0, "max_tokens": 5, "logprobs": 0}
    plain = client.completions.create(**ask).choices[0]
    echoed = client.completions.create(**ask, echo=True).choices[0]
    assert echoed.text == TEXT + plain.text
    assert echoed.logprobs.tokens[-5:] == plain.logprobs.tokens
    chunks = list(client.completions.create(**ask, echo=True, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == echoed.text
    streamed = [t for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.token_logprobs]
    assert streamed == echoed.logprobs.token_logprobs
    offsets = [t for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.text_offset]
    assert offsets == echoed.logprobs.text_offset
    assert chunks[-1].usage.completion_tokens == 5


def test_a_prompt_that_fills_the_context_can_be_scored_and_one_token_more_is_refused(client: openai.OpenAI) -> None:
    ask = {"model": "smollm2", "max_tokens": 0, "echo": True, "logprobs": 0}
    reply = client.completions.create(**ask, prompt=[504] * 768)
    assert len(reply.choices[0].logprobs.token_logprobs) == reply.usage.total_tokens == 768
    for prompt_tokens, max_tokens in ((769, 0), (768, 1), (760, 9), (768, None)):
        ask = {"model": "smollm2", "max_tokens": max_tokens, "echo": True}
        with pytest.raises(openai.BadRequestError, match="maximum context length is 768 tokens") as refused:
            client.completions.create(**ask, prompt=[504] * prompt_tokens)
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize("logprobs", [None, 1])
def test_scoring_alone_makes_no_token_whole_and_streamed(client: openai.OpenAI, logprobs: int | None) -> None:
    ask = {"model": "smollm2", "prompt": TEXT, "max_tokens": 0, "echo": True, "logprobs": logprobs}
    whole = client.completions.create(**ask)
    [choice] = whole.choices
    assert (choice.text, choice.finish_reason, whole.usage.completion_tokens) == (TEXT, "length", 0)
    *chunks, last = client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage == whole.usage.model_copy(update={"prompt_tokens_details": last.usage.prompt_tokens_details})


def test_tokenize_and_detokenize_are_inverse(http: httpx.Client) -> None:
    text = "naïve 日本 🙂 <|im_end|>"
    tokenized = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert tokenized["count"] == len(tokenized["tokens"]) == len(tokenized["token_strs"])
    assert tokenized["max_model_len"] == 768
    assert http.post("/detokenize", json={"tokens": tokenized["tokens"]}).json() == {"prompt": text}
    chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]}).json()
    rendered = http.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
    assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_what_the_models_cannot_do_is_refused(client: openai.OpenAI) -> None:
    for extra in ({"suffix": "end"}, {"best_of": 3}, {"max_tokens": 0}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="smollm2", prompt=TEXT, **extra)
        assert refused.value.param == next(iter(extra))
