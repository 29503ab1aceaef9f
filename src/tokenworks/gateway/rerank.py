"""/v1/rerank (the shape that Jina and Cohere have) and /v1/score (vLLM's): how well texts answer a query.

A cross-encoder reads each pair of texts; of a model that makes vectors, the score is the cosine between them.
"""

import uuid
from array import array
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from tokenworks.gateway.embeddings import INPUTS_MAX, encoded
from tokenworks.gateway.http import json_response, read_body
from tokenworks.gateway.serving import Serving, TextModel
from tokenworks.gateway.stream import until_disconnect
from tokenworks.protocol.clock import now_s, wall_time_s
from tokenworks.protocol.errors import ContextTooLong, InvalidRequest
from tokenworks.protocol.messages import Embedded

Text = Annotated[str, Meta(min_length=1)]
Texts = Text | Annotated[list[Text], Meta(min_length=1, max_length=INPUTS_MAX)]


class Document(msgspec.Struct):
    text: Text


class RerankBody(msgspec.Struct, kw_only=True):
    """POST /v1/rerank."""

    model: str
    query: Text
    documents: Annotated[list[Text | Document], Meta(min_length=1, max_length=INPUTS_MAX)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    """So many of the best; None: all."""
    return_documents: bool = True
    truncate: bool = False
    """A document that does not fit beside the query is cut, not refused."""
    user: str | None = None


class Ranked(msgspec.Struct, omit_defaults=True):
    index: int
    relevance_score: float
    document: Document | None = None


class RerankUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Reranked(msgspec.Struct):
    id: str
    model: str
    usage: RerankUsage
    results: list[Ranked]
    """Best first."""


class ScoreBody(msgspec.Struct, kw_only=True):
    """POST /v1/score: one text_1 against every text_2, or as many of each, pair by pair."""

    model: str
    text_1: Texts
    text_2: Texts
    truncate: bool = False
    """A second text that does not fit beside the first is cut, not refused."""
    user: str | None = None


class Score(msgspec.Struct):
    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreList(msgspec.Struct):
    id: str
    created: int
    model: str
    data: list[Score]
    usage: RerankUsage
    object: Literal["list"] = "list"


async def rerank(request: Request) -> Response:
    """POST /v1/rerank."""
    body = await read_body(request, RerankBody)
    documents = [each.text if isinstance(each, Document) else each for each in body.documents]
    scores, tokens = await _scores(request, body.model, [body.query], documents, "documents", body.truncate)
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: body.top_n]
    results = [
        Ranked(index, scores[index], Document(documents[index]) if body.return_documents else None) for index in order
    ]
    return json_response(Reranked(f"rerank-{uuid.uuid4().hex}", body.model, RerankUsage(tokens, tokens), results))


async def score(request: Request) -> Response:
    """POST /v1/score."""
    body = await read_body(request, ScoreBody)
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(first) not in (1, len(second)):
        raise InvalidRequest("text_1 needs one text, or as many as text_2", param="text_1")
    scores, tokens = await _scores(request, body.model, first, second, "text_2", body.truncate)
    data = [Score(index, each) for index, each in enumerate(scores)]
    usage = RerankUsage(tokens, tokens)
    return json_response(ScoreList(f"score-{uuid.uuid4().hex}", int(wall_time_s()), body.model, data, usage))


async def _scores(
    request: Request, name: str, first: Sequence[str], second: Sequence[str], param: str, truncate: bool
) -> tuple[list[float], int]:
    """For each of `second`, its score against its own of `first`, or the only one; and how many tokens were read."""
    serving: Serving = request.app.state.gateway
    arrived_s = now_s()
    model = await serving.scorer(name)
    if model.kind == "score":
        firsts = list(first) * (len(second) // len(first))
        pairs = [await _pair(model, a, b, param, truncate) for a, b in zip(firsts, second, strict=True)]
        inputs, seconds = [token_ids for token_ids, _ in pairs], [second_from for _, second_from in pairs]
    else:
        inputs, seconds = [await model.encode(text, special=True, param=param) for text in (*first, *second)], []
        for token_ids in inputs:
            if truncate:
                del token_ids[model.context_tokens :]
            elif len(token_ids) > model.context_tokens:
                raise ContextTooLong(len(token_ids), None, model.context_tokens, param=param)
    with serving.admitted(len(inputs)):
        answer = await until_disconnect(request, encoded(serving, model.name, inputs, arrived_s, seconds))
    scores = _cosines(answer, len(first)) if model.kind == "embed" else array("f", answer.vectors).tolist()
    return scores, sum(map(len, inputs))


def _cosines(answer: Embedded, first: int) -> list[float]:
    """Between each vector from number `first` on and its own of those before, or the only one."""
    import numpy as np  # a third of the gateway's start, which needs it for nothing else

    rows = np.frombuffer(answer.vectors, "<f4").reshape(-1, answer.width).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines: list[float] = (rows[:first] * rows[first:]).sum(axis=1).tolist()
    return cosines


async def _pair(model: TextModel, first: str, second: str, param: str, truncate: bool) -> tuple[list[int], int]:
    """Both texts as the tokenizer joins them, and where the second begins."""
    token_ids, owners, second_from = await model.encode_pair(first, second, param=param)
    excess = len(token_ids) - model.context_tokens
    if excess <= 0:
        return token_ids, second_from
    of_second = [place for place, owner in enumerate(owners) if owner == 1]
    if not truncate or excess >= len(of_second):
        raise ContextTooLong(len(token_ids), None, model.context_tokens, param=param)
    dropped = set(of_second[-excess:])
    return [each for place, each in enumerate(token_ids) if place not in dropped], second_from
