"""The API description is true, and nothing made from it, well or ill formed, is answered with a 500."""

import json

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from running_factory import Factory
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tokenworks.gateway.app import ROUTES, Api

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
)


@pytest.fixture(scope="session")
def api(factory: Factory) -> dict[GenerationMode, BaseSchema]:
    """The description as it is, for requests that violate it; a narrower one for requests that the server runs."""
    text = httpx.get(f"{factory.url}/openapi.json").text
    narrower = json.loads(text)
    keep_short(narrower["components"]["schemas"])
    return {
        GenerationMode.NEGATIVE: schemathesis.openapi.from_dict(json.loads(text)),
        GenerationMode.POSITIVE: schemathesis.openapi.from_dict(narrower),
    }


def keep_short(schemas: dict[str, dict[str, object]]) -> None:
    """Each generated request makes a few tokens, so that many fit in the time of a test."""
    for schema in schemas.values():
        fields = schema.get("properties", {})
        for name in {"max_tokens", "max_completion_tokens", "max_output_tokens", "n"} & fields.keys():
            fields[name] = {"type": "integer", "minimum": 1, "maximum": 2}
            if name != "max_completion_tokens" and str(schema["title"]).endswith("Body"):
                schema["required"] = sorted({*schema.get("required", []), name})


@pytest.mark.parametrize("row", ROUTES, ids=lambda row: f"{row.method} {row.path}")
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_nothing_generated_breaks_the_server(
    api: dict[GenerationMode, BaseSchema], factory: Factory, row: Api, mode: GenerationMode
) -> None:
    # Not through schemathesis's own pytest plugin: it does not know pytest 9.2 yet.
    operation = api[mode][row.path.replace(":path", "")][row.method]
    if mode is GenerationMode.NEGATIVE and row.body is None:
        pytest.skip("takes nothing that could be wrong")

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=20, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def generated(case: Case) -> None:
        case.call_and_validate(base_url=factory.url, checks=CHECKS, timeout=20)

    generated()


def test_every_route_is_described(factory: Factory) -> None:
    paths = httpx.get(f"{factory.url}/openapi.json").json()["paths"]
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
    } <= paths.keys()
    assert set(paths["/v1/responses/{id}"]) == {"get", "delete"}
