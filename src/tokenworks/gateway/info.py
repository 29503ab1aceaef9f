"""What the server says about itself: models, version, health, readiness, metrics, the front page."""

import asyncio
from html import escape
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tokenworks import __version__
from tokenworks.gateway.http import json_response
from tokenworks.gateway.serving import Serving
from tokenworks.telemetry.metrics import CONTENT_TYPE


class ModelCard(msgspec.Struct):
    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: Literal["tokenworks"] = "tokenworks"
    parent: str | None = None
    """Of an adapter: its model."""
    max_model_len: int | None = None
    """Tokens of context, as vLLM names it; null until a model that starts on demand has been started once."""


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class Version(msgspec.Struct):
    version: str


class Readiness(msgspec.Struct):
    ready: bool
    models: dict[str, bool]
    """Models that start with the factory; those started on demand are not waited for."""


async def list_models(request: Request) -> Response:
    """GET /v1/models."""
    serving: Serving = request.app.state.gateway
    return json_response(ModelList([_card(serving, name) for name in (*serving.models, *serving.pool.adapters)]))


async def get_model(request: Request) -> Response:
    """GET /v1/models/{id}."""
    serving: Serving = request.app.state.gateway
    return json_response(_card(serving, request.path_params["id"]))


def _card(serving: Serving, name: str) -> ModelCard:
    model = serving.find(name).name
    known = serving.pool.known(model)
    parent = model if model != name else None
    return ModelCard(name, serving.created_s, parent=parent, max_model_len=known.context_tokens if known else None)


async def version(request: Request) -> Response:
    """GET /version."""
    return json_response(Version(__version__))


async def health(request: Request) -> Response:
    """GET /health: the gateway answers."""
    return Response()


async def ready(request: Request) -> Response:
    """GET /ready: 200 when every model that starts with the factory can answer."""
    serving: Serving = request.app.state.gateway
    models = serving.ready()
    all_ready = all(models.values())
    return json_response(Readiness(all_ready, models), 200 if all_ready else 503)


async def metrics(request: Request) -> Response:
    """GET /metrics, for Prometheus."""
    serving: Serving = request.app.state.gateway
    # The first scrape loads its library, and every one asks the system about processes: off the event loop.
    text = await asyncio.to_thread(serving.metrics.exposition, serving.pool.statuses())
    return Response(text, headers={"content-type": CONTENT_TYPE})


async def front_page(request: Request) -> Response:
    """GET /."""
    serving: Serving = request.app.state.gateway
    models = "".join(f"<li><code>{escape(name)}</code></li>" for name in serving.models)
    base = escape(str(request.base_url).rstrip("/"))
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Tokenworks</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:42em;margin:3em auto;padding:0 1em}"
        "pre{background:#8882;padding:1em;overflow:auto}</style>"
        f"<h1>Tokenworks {escape(__version__)}</h1>"
        "<p>An AI factory: this address speaks the OpenAI and Anthropic APIs. Point any client of theirs at "
        f"<code>{base}/v1</code> (OpenAI) or <code>{base}</code> (Anthropic); any key will do.</p>"
        f"<p>Served here:</p><ul>{models}</ul>"
        f"<pre>curl {base}/v1/chat/completions -H 'content-type: application/json' -d '"
        f'{{"model": "{escape(serving.default_model)}", "messages": [{{"role": "user", "content": "Hello"}}]}}\'</pre>'
        "<p><a href=/openapi.json>API description</a> · <a href=/metrics>metrics</a> · <a href=/ready>ready?</a></p>"
        "</html>"
    )
