"""/v1/embeddings."""

import asyncio
import base64
from array import array
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from tokenworks.gateway.http import json_response, read_body
from tokenworks.gateway.sampling import TokenId, Tokens
from tokenworks.gateway.serving import Serving, TextModel
from tokenworks.gateway.stream import until_disconnect
from tokenworks.protocol.clock import now_s
from tokenworks.protocol.errors import ContextTooLong, InvalidRequest, TokenworksError
from tokenworks.protocol.messages import Embedded, Finish

INPUTS_MAX = 2048
"""As OpenAI's own."""

TokenIds = Annotated[list[TokenId], Meta(min_length=1)]
Inputs = (
    Annotated[str, Meta(min_length=1)] | Annotated[list[str | int | TokenIds], Meta(min_length=1, max_length=2**16)]
)


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings."""

    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Tokens | None = None
    """Only the model's own width: these models were not trained to be cut short."""
    user: str | None = None


class Embedding(msgspec.Struct):
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of little-endian float32."""
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


async def embeddings(request: Request) -> Response:
    """POST /v1/embeddings."""
    serving: Serving = request.app.state.gateway
    arrived_s = now_s()
    body = await read_body(request, EmbeddingsBody)
    model = await serving.embedder(body.model)
    inputs = await _inputs(model, body.input)
    with serving.admitted(len(inputs)):
        embedded = await until_disconnect(request, encoded(serving, model.name, inputs, arrived_s))
    if body.dimensions is not None and body.dimensions != embedded.width:
        raise InvalidRequest(f"vectors of {model.name!r} have {embedded.width} dimensions", param="dimensions")
    row_bytes = 4 * embedded.width
    rows = [embedded.vectors[at : at + row_bytes] for at in range(0, len(embedded.vectors), row_bytes)]
    tokens = sum(map(len, inputs))
    as_text = body.encoding_format == "base64"
    data = [
        Embedding(i, base64.b64encode(row).decode() if as_text else array("f", row).tolist())
        for i, row in enumerate(rows)
    ]
    return json_response(EmbeddingList(data, body.model, EmbeddingUsage(tokens, tokens)))


async def encoded(
    serving: Serving, model: str, inputs: list[list[int]], arrived_s: float, second_from: Sequence[int] = ()
) -> Embedded:
    """What the model makes of the inputs, with time and ending told to the metrics."""
    measured = serving.metrics.request(model, arrived_s)
    finish = Finish.CANCELLED
    try:
        embedded = await serving.pool.embed(model, inputs, second_from)
        finish = Finish.STOP
    except TokenworksError:
        finish = Finish.FAILED
        raise
    finally:
        measured.end(finish, now_s())
    return embedded


async def _inputs(model: TextModel, given: str | list[str | int | list[int]]) -> list[list[int]]:
    items: list[str | list[int]]
    if isinstance(given, str):
        items = [given]
    elif all(isinstance(item, int) for item in given):
        items = [given]  # type: ignore[list-item]
    elif any(isinstance(item, int) for item in given):
        raise InvalidRequest("input mixes token ids with other things", param="input")
    else:
        items = given  # type: ignore[assignment]
    if len(items) > INPUTS_MAX:
        raise InvalidRequest(f"at most {INPUTS_MAX} inputs in one request", param="input")
    result = []
    for item in items:
        await asyncio.sleep(0)  # many texts are long work: streams go on in between
        if isinstance(item, str):
            if not item:
                raise InvalidRequest("an input is empty", param="input")
            token_ids = await model.encode(item, special=True, param="input")
        else:
            if min(item) < 0:
                raise InvalidRequest("token ids start at 0", param="input")
            model.check_ids(item, "input")
            token_ids = item
        if len(token_ids) > model.context_tokens:
            raise ContextTooLong(len(token_ids), None, model.context_tokens, param="input")
        result.append(token_ids)
    return result
