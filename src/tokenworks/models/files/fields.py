"""Typed reading of a model's metadata (config.json or GGUF key-values), with errors that name file, key and value."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from tokenworks.protocol.errors import ModelError

T = TypeVar("T")
_MAX_INTEGER = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Fields:
    """Values of `table`; a key that is absent or null takes the default, or is an error when there is none.

    `prefix` goes before each key, in look-ups and in errors.
    """

    path: Path
    table: Mapping[str, Any]
    prefix: str = ""

    def integer(self, key: str, default: int | None = None, *, maximum: int = _MAX_INTEGER) -> int:
        """A positive integer."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= maximum:
            raise self.wrong(key, f"an integer from 1 to {maximum}")
        return value

    def count(self, key: str, default: int = 0) -> int:
        """An integer from 0 on."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_INTEGER:
            raise self.wrong(key, f"an integer from 0 to {_MAX_INTEGER}")
        return value

    def number(self, key: str, default: float | None = None, *, zero: bool = False) -> float:
        """A positive number, or zero where that is said."""
        value = self._get(key, default)
        if not _is_number(value) or not (0 < value < math.inf or (zero and value == 0)):
            raise self.wrong(key, "a positive number")
        return float(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` positive numbers."""
        values = self._get(key, None)
        if not isinstance(values, list) or len(values) != count or not all(_is_number(v) and v > 0 for v in values):
            raise self.wrong(key, f"a list of {count} positive numbers")
        return tuple(map(float, values))

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def one_of(self, key: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """The choice that the value names."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(key, f"one of {', '.join(choices)}")
        return choices[value]

    def section(self, key: str) -> "Fields | None":
        """A table within the table, if it is there."""
        value = self.table.get(self.prefix + key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return Fields(self.path, value)

    def has(self, key: str) -> bool:
        return self.table.get(self.prefix + key) is not None

    def refuse(self, key: str, harmless: tuple[object, ...], why: str) -> None:
        """Raises ModelError when the key is there with any but a harmless value."""
        value = self.table.get(self.prefix + key)
        if value is not None and value not in harmless:
            raise ModelError(f"{self.path}: {self.prefix}{key} is {value!r}: {why}.")

    def wrong(self, key: str, expected: str) -> ModelError:
        value = self.table.get(self.prefix + key)
        found = "is missing" if value is None else f"is {value!r}"
        return ModelError(f"{self.path}: {self.prefix}{key} {found}; {expected} was expected.")

    def _get(self, key: str, default: object) -> object:
        value = self.table.get(self.prefix + key)
        return default if value is None else value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
