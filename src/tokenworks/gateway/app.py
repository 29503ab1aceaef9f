"""The route table: every path this server has, what it takes and what it gives. The API description is made of it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tokenworks.config import ServerSettings
from tokenworks.gateway import (
    adapters,
    chat,
    chat_types,
    completions,
    embeddings,
    info,
    messages,
    messages_types,
    rerank,
    responses,
    responses_types,
    tokenize,
    transcriptions,
)
from tokenworks.gateway.http import ERROR_HANDLERS
from tokenworks.gateway.responses_store import ResponsesStore
from tokenworks.gateway.serving import Serving

if TYPE_CHECKING:
    from tokenworks.fleet.pool import Pool, PoolModel


@dataclass(frozen=True, slots=True)
class Api:
    """One row of the table. `body` and `reply` are msgspec types; a reply of None has no JSON."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[ASGIApp]]
    summary: str
    body: Any = None
    reply: Any = None
    streams: bool = False
    """With `stream: true` the reply is server-sent events."""
    errors: tuple[int, ...] = ()
    is_form: bool = False
    """The body is multipart/form-data."""


_MODEL_ERRORS = (400, 404, 413, 503)

ROUTES: tuple[Api, ...] = (
    Api(
        "POST", "/v1/chat/completions", chat.chat_completions, "Answer a conversation",
        chat_types.ChatBody, chat_types.ChatCompletion, True, _MODEL_ERRORS,
    ),
    Api(
        "POST", "/v1/completions", completions.completions, "Continue a text, or score one",
        completions.CompletionBody, completions.Completion, True, _MODEL_ERRORS,
    ),
    Api(
        "POST", "/v1/responses", responses.create_response, "Answer, with stored state",
        responses_types.ResponsesBody, responses_types.Response, True, _MODEL_ERRORS,
    ),
    Api(
        "GET", "/v1/responses/{id}", responses.get_response, "A stored response",
        None, responses_types.Response, False, (404,),
    ),
    Api(
        "POST", "/v1/responses/input_tokens", responses.count_input_tokens, "Count a prompt's tokens",
        responses_types.ResponsesBody, responses_types.InputTokens, False, _MODEL_ERRORS,
    ),
    Api(
        "GET", "/v1/responses/{id}/input_items", responses.list_input_items, "What a stored response was made of",
        None, responses_types.ItemList, False, (400, 404),
    ),
    Api(
        "DELETE", "/v1/responses/{id}", responses.delete_response, "Forget a stored response",
        None, responses_types.DeletedResponse, False, (404,),
    ),
    Api(
        "POST", "/v1/embeddings", embeddings.embeddings, "Texts to vectors",
        embeddings.EmbeddingsBody, embeddings.EmbeddingList, False, _MODEL_ERRORS,
    ),
    Api(
        "POST", "/v1/rerank", rerank.rerank, "Documents by how well they answer a query",
        rerank.RerankBody, rerank.Reranked, False, _MODEL_ERRORS,
    ),
    Api(
        "POST", "/v1/score", rerank.score, "How well one text answers another",
        rerank.ScoreBody, rerank.ScoreList, False, _MODEL_ERRORS,
    ),
    Api(
        "POST", "/v1/audio/transcriptions", transcriptions.transcriptions, "A recording to text",
        transcriptions.TranscriptionBody, transcriptions.Transcription, True,
        _MODEL_ERRORS, is_form=True,
    ),
    Api(
        "POST", "/v1/audio/translations", transcriptions.translations, "A recording to English text",
        transcriptions.TranslationBody, transcriptions.Transcription, False,
        _MODEL_ERRORS, is_form=True,
    ),
    Api(
        "POST", "/v1/messages", messages.messages, "Answer a conversation (Anthropic's API)",
        messages_types.MessagesBody, messages_types.MessageReply, True, _MODEL_ERRORS,
    ),
    Api(
        "POST", "/v1/messages/count_tokens", messages.count_tokens, "Count a prompt's tokens (Anthropic's API)",
        messages_types.CountTokensBody, messages_types.TokenCount, False, _MODEL_ERRORS,
    ),
    Api("GET", "/v1/models", info.list_models, "The models served", None, info.ModelList),
    Api("GET", "/v1/models/{id:path}", info.get_model, "One model", None, info.ModelCard, False, (404,)),
    Api(
        "POST", "/v1/load_lora_adapter", adapters.load_adapter, "Serve a LoRA adapter",
        adapters.LoadBody, None, False, _MODEL_ERRORS,
    ),
    Api(
        "POST", "/v1/unload_lora_adapter", adapters.unload_adapter, "Serve a LoRA adapter no longer",
        adapters.UnloadBody, None, False, (400, 404, 413),
    ),
    Api(
        "POST", "/tokenize", tokenize.tokenize, "A text or conversation to token ids",
        tokenize.TokenizeBody, tokenize.Tokenized, False, _MODEL_ERRORS,
    ),
    Api(
        "POST", "/detokenize", tokenize.detokenize, "Token ids to text",
        tokenize.DetokenizeBody, tokenize.Detokenized, False, _MODEL_ERRORS,
    ),
    Api("GET", "/version", info.version, "This program's version", None, info.Version),
    Api("GET", "/health", info.health, "The gateway answers"),
    Api("GET", "/ready", info.ready, "Every model that starts with the factory can answer", None, info.Readiness),
)  # fmt: skip


def _route(path: str) -> Route:
    """One route for all methods of a path: of two with one path, the first alone would say what is allowed."""
    handlers = {api.method: api.handler for api in ROUTES if api.path == path}

    async def dispatch(request: Request) -> ASGIApp:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, dispatch, methods=list(handlers))


def build_app(
    pool: "Pool", models: "Sequence[PoolModel]", settings: ServerSettings, store: ResponsesStore
) -> Starlette:
    """The ASGI application over a started pool. Its lifespan is the pool's owner's (server.py)."""
    serving = Serving(pool, models, settings, store)

    async def openapi(request: Request) -> Response:
        from tokenworks.gateway.openapi import describe

        return Response(describe(ROUTES, list(serving.models)), media_type="application/json")

    routes = [_route(path) for path in dict.fromkeys(api.path for api in ROUTES)]
    routes.append(Route("/metrics", info.metrics, methods=["GET"]))
    routes.append(Route("/openapi.json", openapi, methods=["GET"]))
    routes.append(Route("/", info.front_page, methods=["GET"]))
    app = Starlette(routes=routes, exception_handlers=ERROR_HANDLERS)
    app.router.redirect_slashes = False
    app.state.gateway = serving
    return app
