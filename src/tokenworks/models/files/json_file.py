"""Reads the JSON files of a checkpoint folder; apart, so that the gateway can without numpy."""

import json
from pathlib import Path
from typing import Any

from tokenworks.protocol.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError naming the file."""
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: a JSON object was expected.")
    return value


def read_json_value(path: Path) -> Any:
    """Any JSON value from a file. Raises ModelError naming the file."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}).") from error
