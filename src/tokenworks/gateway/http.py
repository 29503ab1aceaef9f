"""The edge: bodies read within bounds and decoded, failures turned into replies in each API's own shape."""

import asyncio
import logging
import re
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tokenworks.gateway.stream import ClientGone
from tokenworks.protocol.errors import (
    BodyTooLarge,
    BodyTooSlow,
    EngineError,
    InvalidRequest,
    Overloaded,
    TokenworksError,
)

T = TypeVar("T")

_BODY_PAUSE_S = 60

_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_encode = msgspec.json.Encoder().encode


async def read_body(request: Request, type_: type[T]) -> T:
    """The request's JSON as `type_`. Raises as `read_bytes`, and InvalidRequest naming the field for anything that is
    not the JSON that `type_` describes."""
    return decode(await read_bytes(request, request.app.state.gateway.max_body_bytes), type_)


async def read_bytes(request: Request, limit_bytes: int) -> bytes:
    """The request's body. Raises InvalidRequest for one that is compressed, BodyTooLarge as soon as the announced or
    the received size passes the limit (the rest is never kept), and BodyTooSlow when none of it comes for a while."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise InvalidRequest(f"the body's content-encoding is {encoding[:50]}; this server takes none")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    data, pieces = bytearray(), request.stream()
    try:
        while True:
            async with asyncio.timeout(_BODY_PAUSE_S):
                data += await anext(pieces)
            if len(data) > limit_bytes:
                raise _too_large(limit_bytes)
    except StopAsyncIteration:
        return bytes(data)
    except TimeoutError:
        raise BodyTooSlow(f"nothing more of the body came for {_BODY_PAUSE_S} seconds") from None


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit_bytes} bytes, the most this server takes")


def decode(data: bytes, type_: type[T]) -> T:
    """JSON to `type_`; InvalidRequest naming the field."""
    decoder = _decoders.get(type_)
    if decoder is None:
        decoder = _decoders[type_] = msgspec.json.Decoder(type_)
    try:
        try:
            return decoder.decode(data)  # type: ignore[no-any-return]
        except msgspec.ValidationError as error:
            if "Expected `int" not in str(error) or "got `float`" not in str(error):
                raise
            # In JSON 1.0 is an integer too, and some languages' clients know no other numbers.
            return msgspec.convert(_whole(msgspec.json.decode(data)), type_)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not valid UTF-8") from None
    except RecursionError:
        raise InvalidRequest("the JSON is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


def _whole(value: Any) -> Any:
    """JSON with every number that is an integer as an int."""
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def invalid_field(error: msgspec.ValidationError) -> InvalidRequest:
    """msgspec ends its message with ` - at `$.path``; clients want the path in `param`."""
    message = str(error)
    at = re.search(r" - at `(?:key in )?\$\.?(.*)`$", message)
    missing = re.search(r"missing required field `(\w+)`", message)
    param = at.group(1) if at else ""
    if missing:
        param = f"{param}.{missing.group(1)}" if param else missing.group(1)
    return InvalidRequest(message.replace("`$.", "`"), param=param or None)


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(body), status, headers, media_type="application/json")


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """An error in OpenAI's shape."""

    error: ErrorDetail


class AnthropicErrorDetail(msgspec.Struct):
    type: str
    message: str


class AnthropicError(msgspec.Struct):
    """An error in Anthropic's shape."""

    error: AnthropicErrorDetail
    type: str = "error"


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    500: "api_error",
    503: "overloaded_error",
}


def openai_error(error: TokenworksError) -> ErrorBody:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    code = None if error.code == kind else error.code
    return ErrorBody(ErrorDetail(error.message, kind, error.param, code))


def anthropic_error(error: TokenworksError) -> AnthropicError:
    return AnthropicError(AnthropicErrorDetail(_ANTHROPIC_TYPES.get(error.status, "api_error"), error.message))


def error_response(request: Request, error: TokenworksError, headers: dict[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    if isinstance(error, Overloaded):
        headers["retry-after"] = "1"
    if isinstance(error, BodyTooSlow):
        headers["connection"] = "close"
    if request.url.path.startswith("/v1/messages"):
        return json_response(anthropic_error(error), error.status, headers)
    return json_response(openai_error(error), error.status, headers)


class _HTTPError(TokenworksError):
    """Routing's own refusals (404, 405), in the tree's shape."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, "invalid_request_error"


async def on_tokenworks_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TokenworksError)
    return error_response(request, error)


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"there is nothing at {request.url.path}; GET /openapi.json lists what there is",
        405: f"{request.url.path} does not take {request.method}",
    }.get(error.status_code, error.detail)
    return error_response(request, _HTTPError(error.status_code, message), dict(error.headers or {}))


async def on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the status is for the metrics


async def on_other_error(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).exception("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(request, EngineError("internal error; the server's log has the details"))


ERROR_HANDLERS: dict[Any, Any] = {
    TokenworksError: on_tokenworks_error,
    HTTPException: on_http_error,
    ClientGone: on_client_gone,
    ClientDisconnect: on_client_gone,  # in the middle of its body
    Exception: on_other_error,
}
