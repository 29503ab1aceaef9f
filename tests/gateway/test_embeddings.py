"""/v1/embeddings through the official client, with MiniLM."""

import base64
import math

import httpx
import numpy as np
import openai
import pytest

TEXTS = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell sharply today."]


def vectors(client: openai.OpenAI, texts: object) -> np.ndarray:
    reply = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
    return np.array([item.embedding for item in reply.data])


def test_close_meanings_are_close_and_vectors_have_length_one(client: openai.OpenAI) -> None:
    cat, kitten, market = vectors(client, TEXTS)
    assert math.isclose(np.linalg.norm(cat), 1, abs_tol=1e-5)
    assert cat @ kitten > 0.5 > 0.2 > cat @ market


def test_an_input_has_the_same_vector_alone_in_a_list_and_as_token_ids(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    alone = vectors(client, TEXTS[0])[0]
    assert np.array_equal(alone, vectors(client, TEXTS)[0])
    ids = http.post("/tokenize", json={"model": "minilm", "prompt": TEXTS[0]}).json()["tokens"]
    assert np.array_equal(alone, vectors(client, ids)[0])
    assert np.array_equal(alone, vectors(client, [ids, ids])[1])


def test_both_encodings_carry_the_same_numbers(client: openai.OpenAI, http: httpx.Client) -> None:
    body = {"model": "minilm", "input": TEXTS[1], "encoding_format": "base64"}
    data = base64.b64decode(http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(data, "<f4"), vectors(client, TEXTS[1])[0].astype("f4"))


def test_usage_counts_every_input(client: openai.OpenAI, http: httpx.Client) -> None:
    counts = [http.post("/tokenize", json={"model": "minilm", "prompt": text}).json()["count"] for text in TEXTS]
    assert client.embeddings.create(model="minilm", input=TEXTS).usage.prompt_tokens == sum(counts)


def test_requests_for_embeddings_are_measured(client: openai.OpenAI, http: httpx.Client) -> None:
    def figures() -> dict[str, float]:
        lines = [line.rpartition(" ") for line in http.get("/metrics").text.splitlines() if '"minilm"' in line]
        return {name: float(value) for name, _, value in lines}

    vectors(client, "It starts on demand.")
    before = figures()
    vectors(client, ["The first of two.", "The second."])
    grown = {name: value - before.get(name, 0) for name, value in figures().items()}
    assert grown['tokenworks_requests_total{finish="stop",model="minilm"}'] == 1
    assert grown['tokenworks_request_duration_seconds_count{model="minilm"}'] == 1
    assert grown['tokenworks_prompt_tokens_total{model="minilm"}'] > 8
    assert figures()['tokenworks_requests_running{model="minilm"}'] == 0


def test_dimensions_are_the_models_own_or_refused(client: openai.OpenAI) -> None:
    assert len(client.embeddings.create(model="minilm", input="a", dimensions=384).data[0].embedding) == 384
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="minilm", input="a", dimensions=100)
    assert refused.value.param == "dimensions"


def test_each_model_does_its_own_work_only(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="smollm2", input="a")
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "Hi"}])


def test_an_input_longer_than_the_context_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="minilm", input="word " * 2000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    assert "max_tokens" not in refused.value.message
