"""/openapi.json, made of the route table and the very structs that decode bodies and encode replies."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from tokenworks import __version__
from tokenworks.gateway.http import AnthropicError, ErrorBody
from tokenworks.gateway.info import Readiness

if TYPE_CHECKING:
    from tokenworks.gateway.app import Api

_STATUS_WORDS = {
    400: "The request is wrong; `param` says where",
    404: "No such model or object",
    413: "The body is too large",
    503: "Too much in flight, or no worker; try again",
}


def describe(routes: Sequence["Api"], models: Sequence[str]) -> bytes:
    """The description as JSON (OpenAPI 3.1); `models` are the names that `model` fields may carry."""
    types = [each for api in routes for each in (api.body, api.reply) if each is not None]
    schemas, components = msgspec.json.schema_components(
        [*types, ErrorBody, AnthropicError], ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip([*types, ErrorBody, AnthropicError], schemas, strict=True))
    for component in components.values():
        model = component.get("properties", {}).get("model")
        if model is not None and component["title"].endswith("Body"):
            model["enum" if model.get("type") == "string" else "examples"] = list(models)
    paths: dict[str, dict[str, Any]] = {}
    for api in routes:
        path = api.path.replace(":path", "")
        paths.setdefault(path, {})[api.method.lower()] = _operation(api, schema_of, models)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Tokenworks", "version": __version__},
            "paths": paths,
            "components": {"schemas": components},
        }
    )


def _operation(api: "Api", schema_of: dict[Any, Any], models: Sequence[str]) -> dict[str, Any]:
    def json_content(type_: Any) -> dict[str, Any]:
        return {"application/json": {"schema": schema_of[type_]}}

    ok: dict[str, Any] = {"description": "Done"}
    if api.reply is not None:
        ok["content"] = json_content(api.reply)
    if api.is_form:
        ok["content"]["text/plain"] = {"schema": {"type": "string"}}
    if api.streams:
        ok["content"]["text/event-stream"] = {}  # events: OpenAPI 3.1 describes whole bodies alone
    answers: dict[str, Any] = {"200": ok}
    error = AnthropicError if api.path.startswith("/v1/messages") else ErrorBody
    for status in api.errors:
        answers[str(status)] = {"description": _STATUS_WORDS[status], "content": json_content(error)}
    if api.reply is Readiness:
        answers["503"] = {"description": "Not yet", "content": json_content(Readiness)}
    operation: dict[str, Any] = {"summary": api.summary, "responses": answers}
    if api.body is not None:
        content = json_content(api.body)
        if api.is_form:
            content = {"multipart/form-data": content["application/json"]}
        operation["requestBody"] = {"required": True, "content": content}
    if "{id" in api.path:
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        if "models" in api.path:
            schema["examples"] = list(models)
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": schema}]
    return operation
