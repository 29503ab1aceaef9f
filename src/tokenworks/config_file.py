"""Reads factory.yaml: every complaint names file, line, what was expected, and a near miss if there is one.

YAML is composed to nodes, which know their lines; the plain values are validated by msgspec against `config.Factory`;
its complaint carries a path (`$.models[0].start`), which leads back to the node.
"""

import difflib
import re
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml
from msgspec import inspect

from tokenworks.config import Factory
from tokenworks.protocol.errors import ConfigError


def load(path: Path) -> Factory:
    """The configuration in `path`. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            str(path), 0, f"cannot be read: {error.strerror}. Write it, or leave --config out."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), 1, "is not UTF-8 text.") from error
    return parse(text, str(path))


def parse(text: str, file: str) -> Factory:
    """The configuration that `text` describes; `file` is for the complaints. Raises ConfigError."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_oddities(node, file)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(file, mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(file, 1, f"not YAML: {error}") from error
    if node is None:  # an empty file: all defaults
        return Factory()
    try:
        return msgspec.convert(values, Factory)
    except msgspec.ValidationError as error:
        raise _explain(str(error), node, values, file) from error


def expected(kind: inspect.Type) -> str:
    """A schema type in words."""
    match kind:
        case inspect.UnionType(types=types):
            return " or ".join(expected(one) for one in types if not isinstance(one, inspect.NoneType))
        case inspect.LiteralType(values=values):
            return " or ".join(f"`{value}`" for value in values)
        case inspect.IntType(gt=0):
            return "a whole number above 0"
        case inspect.IntType(ge=low, le=high) if low is not None and high is not None:
            return f"a whole number from {low} to {high}"
        case inspect.IntType():
            return "a whole number"
        case inspect.BoolType():
            return "`true` or `false`"
        case inspect.StrType():
            return "text"
        case inspect.VarTupleType(item_type=item):
            return f"a list, each {expected(item)}"
        case inspect.DictType(value_type=value):
            return f"names, each with {expected(value)}"
        case inspect.StructType(fields=fields):
            return f"keys of {', '.join(field.encode_name for field in fields)}"
    raise AssertionError(f"no words for {kind}: add them when the schema gains such a type")


def _explain(complaint: str, root: yaml.Node, values: Any, file: str) -> ConfigError:
    what, _, where = complaint.partition(" - at `")
    path: tuple[str | int, ...] = tuple(
        int(index) if index else key for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", where.rstrip("`"))
    )
    kind, node, value = inspect.type_info(Factory), root, values
    for step in path:
        kind, node, value = _child_type(kind, step), _child(node, step), value[step]
    line = node.start_mark.line + 1
    name = ".".join(str(step) for step in path) or "the file"

    if unknown := re.search(r"unknown field `(.*)`", what):
        key, keys = unknown[1], [field.encode_name for field in _struct(kind).fields]
        near = difflib.get_close_matches(key, keys, 1)
        hint = f"Did you mean `{near[0]}`? " if near else ""
        return ConfigError(
            file, _key_line(node, key), f"unknown key `{key}` in {name}. {hint}Known: {', '.join(keys)}."
        )
    if missing := re.search(r"missing required field `(.*)`", what):
        return ConfigError(file, line, f"{name} lacks `{missing[1]}`.")
    shown = "nothing" if value is None else f"{value!r}" if isinstance(value, str | int | float) else "another shape"
    return ConfigError(file, line, f"{name}: expected {expected(kind)}, got {shown}.")


def _refuse_oddities(node: yaml.Node | None, file: str, above: tuple[yaml.Node, ...] = ()) -> None:
    """What YAML allows and a reader of this file would be fooled by: a key given twice (the last wins elsewhere), a
    value that contains itself, sets and other kinds that only look like lists."""
    if node is None:
        return
    line = node.start_mark.line + 1
    if any(node is other for other in above):
        raise ConfigError(file, line, "a value contains itself.")
    if isinstance(node, yaml.MappingNode):
        if node.tag != "tag:yaml.org,2002:map":
            raise ConfigError(file, line, f"expected plain keys and values, got {node.tag.rpartition(':')[2]}.")
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                raise ConfigError(file, key.start_mark.line + 1, f"`{key.value}` is there twice: keep one.")
            seen.add(str(key.value))
            _refuse_oddities(value, file, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_oddities(item, file, (*above, node))


def _child(node: yaml.Node, step: str | int) -> yaml.Node:
    if isinstance(step, int):
        return cast(yaml.Node, node.value[step])
    return next(cast(yaml.Node, value) for key, value in node.value if key.value == step)


def _key_line(node: yaml.Node, key: str) -> int:
    return next(int(name.start_mark.line) + 1 for name, _ in node.value if str(name.value) == key)


def _child_type(kind: inspect.Type, step: str | int) -> inspect.Type:
    if isinstance(step, int):
        assert isinstance(kind, inspect.VarTupleType)
        return kind.item_type
    return next(field.type for field in _struct(kind).fields if field.encode_name == step)


def _struct(kind: inspect.Type) -> inspect.StructType:
    assert isinstance(kind, inspect.StructType)
    return kind
