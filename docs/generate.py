"""Writes the pages that are made from the code: docs/cli.md from real --help output, the tables of
docs/configuration.md from the schema. A test fails when they are stale; `make docs` renews them."""

import argparse
import ast
import os
import re
from pathlib import Path

import msgspec
from msgspec import inspect

from tokenworks import cli, config
from tokenworks.config_file import expected

DOCS = Path(__file__).parent
HELP_COLUMNS = "100"


def cli_page() -> str:
    os.environ["COLUMNS"] = HELP_COLUMNS
    parts = [
        "# Commands\n\nMade from the commands' own `--help` by `make docs`.\n",
        _section("##", "tokenworks", cli.parser()),
    ]
    for name in cli.COMMANDS:
        parser, _ = cli.command_parser(name)
        parts.append(_section("##", parser.prog, parser))
        for action in parser._actions:  # argparse has no public way to a subparser
            if isinstance(action, argparse._SubParsersAction):
                parts += [_section("###", sub.prog, sub) for sub in action.choices.values()]
    return "\n".join(parts)


def _section(level: str, title: str, parser: argparse.ArgumentParser) -> str:
    return f"{level} {title}\n```text\n{parser.format_help().strip()}\n```\n"


def configuration_tables() -> str:
    """One table for each struct of the schema, top down."""
    documented = _attribute_docs(Path(config.__file__))
    parts = []
    for title, struct in (
        ("The file", config.Factory),
        ("Each entry of `models`", config.ServedModel),
        ("`engine`", config.EngineSettings),
        ("`server`", config.ServerSettings),
    ):
        kind = inspect.type_info(struct)
        assert isinstance(kind, inspect.StructType)
        rows = [
            f"| `{field.encode_name}` | {expected(field.type)} | {_default(field)} "
            f"| {documented.get(f'{struct.__name__}.{field.name}', '')} |"
            for field in kind.fields
        ]
        heading = f"### {title}\n{(struct.__doc__ or '').strip()}\n"
        parts.append("\n".join([heading, "| key | value | default | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    if field.default is None or field.default is msgspec.NODEFAULT:
        return ""
    if isinstance(field.default, msgspec.Struct):
        return "see below"
    if isinstance(field.default, tuple):
        return ", ".join(f"`{entry.source}` ({entry.start})" for entry in field.default)
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{field.default}`"


def _attribute_docs(module: Path) -> dict[str, str]:
    """`Class.attribute`: the string under it. Python itself forgets these."""
    found = {}
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ClassDef):
            for attribute, text in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(attribute, ast.AnnAssign)
                    and isinstance(attribute.target, ast.Name)
                    and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)
                ):
                    # On one line, as a table needs it.
                    found[f"{node.name}.{attribute.target.id}"] = " ".join(str(text.value.value).split())
    return found


def pages() -> dict[Path, str]:
    """Every made page, and what it should say."""
    configuration = DOCS / "configuration.md"
    tables = f"<!-- made by `make docs` -->\n{configuration_tables()}\n<!-- end -->"
    written = configuration.read_text()
    return {
        DOCS / "cli.md": cli_page(),
        configuration: re.sub(
            r"<!-- made by `make docs` -->.*<!-- end -->", lambda _: tables, written, flags=re.DOTALL
        ),
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
