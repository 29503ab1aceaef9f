"""/v1/rerank and /v1/score, with MiniLM and with a cross-encoder."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

QUERY = "How do I keep bread fresh?"
DOCUMENTS = [
    "The stock market fell sharply today.",
    "Wrap a loaf in cloth and store it in a bread box, so that it stays fresh for days.",
    "Bread is baked from flour and water.",
]


def test_documents_come_back_best_first(http: httpx.Client) -> None:
    reply = http.post("/v1/rerank", json={"model": "minilm", "query": QUERY, "documents": DOCUMENTS}).json()
    assert [each["index"] for each in reply["results"]] == [1, 2, 0]
    scores = [each["relevance_score"] for each in reply["results"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.5 > scores[2]
    assert reply["results"][0]["document"]["text"] == DOCUMENTS[1]
    tokens = [
        http.post("/tokenize", json={"model": "minilm", "prompt": t}).json()["count"] for t in [QUERY, *DOCUMENTS]
    ]
    assert reply["usage"] == {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    body = {"model": "minilm", "query": QUERY, "documents": [{"text": t} for t in DOCUMENTS], "top_n": 1}
    top = http.post("/v1/rerank", json=body | {"return_documents": False}).json()["results"]
    assert top == [{"index": 1, "relevance_score": scores[0]}]


def test_a_vector_models_score_is_the_cosine(http: httpx.Client) -> None:
    texts = [QUERY, *DOCUMENTS]
    data = http.post("/v1/embeddings", json={"model": "minilm", "input": texts}).json()["data"]
    query, *vectors = np.array([each["embedding"] for each in data])
    body = {"model": "minilm", "text_1": QUERY, "text_2": DOCUMENTS}
    scores = [each["score"] for each in http.post("/v1/score", json=body).json()["data"]]
    np.testing.assert_allclose(scores, np.stack(vectors) @ query, atol=1e-6)


def test_a_cross_encoder_reads_each_pair(http: httpx.Client, crossing: Path) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(crossing).eval()
    tokenizer = Tokenizer.from_file(str(crossing / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pairs = [(DOCUMENTS[2], DOCUMENTS[0]), (QUERY, DOCUMENTS[1]), (DOCUMENTS[1], QUERY)]
    expected = []
    for pair in pairs:
        made = tokenizer.encode(*pair)
        assert sum(made.type_ids) > 2
        with torch.no_grad():
            logit = model(torch.tensor([made.ids]), token_type_ids=torch.tensor([made.type_ids])).logits
        expected.append(float(logit.sigmoid()))
    first, second = zip(*pairs, strict=True)
    body = {"model": "crossing", "text_1": first, "text_2": second}
    reply = http.post("/v1/score", json=body).json()
    np.testing.assert_allclose([each["score"] for each in reply["data"]], expected, atol=1e-5)
    assert reply["usage"]["total_tokens"] == sum(len(tokenizer.encode(*pair).ids) for pair in pairs)
    ranked = http.post("/v1/rerank", json={"model": "crossing", "query": QUERY, "documents": DOCUMENTS}).json()
    by_index = {each["index"]: each["relevance_score"] for each in ranked["results"]}
    assert by_index[1] == reply["data"][1]["score"]


def test_a_long_document_is_refused_or_cut(http: httpx.Client) -> None:
    body: dict[str, Any] = {"model": "crossing", "query": "bread", "documents": ["fresh bread " * 60, "bread"]}
    refused = http.post("/v1/rerank", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    cut = http.post("/v1/rerank", json=body | {"truncate": True}).json()
    words = " ".join(["fresh bread"] * 18)  # [CLS] bread [SEP] ... [SEP] leaves 36 of 40 tokens
    same = http.post("/v1/rerank", json=body | {"documents": [words, "bread"]}).json()
    assert cut["results"] == [
        each | {"document": {"text": body["documents"][each["index"]]}} for each in same["results"]
    ]
    assert cut["usage"] == same["usage"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"model": "smollm2", "query": "a", "documents": ["b"]}, "model"),
        ("/v1/rerank", {"model": "minilm", "query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"model": "minilm", "query": "", "documents": ["b"]}, "query"),
        ("/v1/score", {"model": "minilm", "text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/v1/embeddings", {"model": "crossing", "input": "a"}, "model"),
    ],
)
def test_what_cannot_be_scored_is_told(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    reply = http.post(path, json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
