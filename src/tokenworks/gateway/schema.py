"""JSON schemas as clients write them, for the library that makes grammars of them: it refuses any keyword that it does
not know, also one that asks for nothing."""

from typing import Any

import msgspec

from tokenworks.protocol.errors import InvalidRequest

FORMATS = frozenset({"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"})
"""The library's. Others are remarks (JSON Schema 2020-12, Validation, 7.2.1): pydantic writes `path` and `password`."""
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose value has schemas by name."""
_VALUES = frozenset({"const", "enum", "default", "examples"})
"""Keywords with values, which may look like schemas."""


def readable(schema: Any, param: str, root: str = "#") -> Any:
    """A copy without what asks for nothing, whose local references begin at `root`. Raises InvalidRequest naming
    `param` for a schema that is nested too deeply."""
    try:
        copy = msgspec.json.decode(msgspec.json.encode(schema))
    except RecursionError:
        raise InvalidRequest("the schema is nested too deeply", param=param) from None
    waiting = [copy]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(part)
        if not isinstance(part, dict):
            continue
        for key, value in list(part.items()):
            if _idle(key, value):
                del part[key]
            elif key == "$ref" and isinstance(value, str) and value.startswith("#"):
                part[key] = root + value[1:]
            elif key in _NAMED and isinstance(value, dict):
                waiting.extend(value.values())
            elif key not in _VALUES:
                waiting.append(value)
    return copy


def _idle(keyword: str, value: object) -> bool:
    match keyword:
        case "format":
            return isinstance(value, str) and value not in FORMATS
        case "uniqueItems":
            return value is False
        case "propertyNames":  # zod writes it for every record
            return value in ({}, {"type": "string"}) or value is True
    return False
