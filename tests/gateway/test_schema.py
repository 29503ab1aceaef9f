"""JSON schemas as clients write them."""

from pathlib import Path
from typing import Any

import pydantic
import pytest

from tokenworks.gateway.grammar import json_schema_grammar
from tokenworks.gateway.schema import FORMATS, readable
from tokenworks.gateway.tools import HERMES, Tool, forced_grammar
from tokenworks.protocol.errors import InvalidRequest


class Account(pydantic.BaseModel):
    home: Path
    password: pydantic.SecretStr
    picture: bytes
    pages: dict[str, pydantic.AnyUrl]
    friends: list["Account"]


ZOD = {
    "type": "object",
    "properties": {"sizes": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}}},
    "required": ["sizes"],
}


@pytest.mark.parametrize("schema", [Account.model_json_schema(), ZOD])
def test_what_usual_libraries_write_is_taken(schema: dict[str, Any]) -> None:
    json_schema_grammar(schema, "here")
    forced_grammar(HERMES, [Tool("f", "", schema)], parallel=False)


def test_only_what_asks_for_nothing_is_left_out() -> None:
    told = {
        "properties": {"format": {"type": "string"}, "propertyNames": {"type": "string"}, "uniqueItems": {}},
        "const": {"format": "path"},
        "items": [{"format": "uuid"}, {"format": "path", "uniqueItems": False}, {"uniqueItems": True}],
        "propertyNames": {"pattern": "a"},
        "$ref": "#/$defs/a",
        "$defs": {"propertyNames": {"propertyNames": True, "$ref": "#"}},
    }
    given = {**told, "items": [{"format": "uuid"}, {}, {"uniqueItems": True}]}
    given |= {"$ref": "#/x/$defs/a", "$defs": {"propertyNames": {"$ref": "#/x"}}}
    before = str(told)
    assert readable(told, "here", "#/x") == given
    assert str(told) == before


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_known_formats_are_kept_to(name: str) -> None:
    assert f'"{name}"' in json_schema_grammar({"type": "string", "format": name}, "here").text


def test_depth_is_bounded() -> None:
    schema: dict[str, Any] = {}
    for _ in range(3000):
        schema = {"items": schema}
    with pytest.raises(InvalidRequest) as refused:
        readable(schema, "here")
    assert refused.value.param == "here"
