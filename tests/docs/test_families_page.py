"""The tables of docs/families.md and docs/models.md are those of the code."""

import re
from pathlib import Path

from tokenworks.models.architectures import GGUF_ARCHITECTURES, HF_ARCHITECTURES
from tokenworks.models.sources.catalogue import CATALOGUE

DOCS = Path(__file__).parents[2] / "docs"


def columns(heading: str) -> list[list[str]]:
    """Of every row of the page's tables whose heading begins so, its cells."""
    page = (DOCS / "families.md").read_text()
    found = []
    for table in re.findall(rf"^{re.escape(heading)}.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE):
        found += [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return found


def named(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_architecture_of_safetensors_is_on_the_page_and_no_other() -> None:
    rows = columns("| family | `model_type` |")
    assert len(rows) > 30
    assert named([row[1] for row in rows]) == HF_ARCHITECTURES.keys()


def test_every_architecture_of_gguf_is_on_the_page_and_no_other() -> None:
    rows = columns("| family | `model_type` | GGUF |")
    assert named([row[2] for row in rows]) == GGUF_ARCHITECTURES.keys()


def test_the_catalogue_is_on_the_page() -> None:
    page = (DOCS / "models.md").read_text()
    (row,) = re.findall(r"^\| (.*) \| the built-in catalogue \|$", page, re.MULTILINE)
    assert re.findall(r"`([^`]+)`", row) == list(CATALOGUE)
