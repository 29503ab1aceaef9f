"""The plan of the house names what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "src" / "tokenworks"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_the_page_names_exists() -> None:
    named = re.findall(r"`((?:\w+/)+\w+\.(?:py|cpp))`", PAGE)
    assert len(named) > 25
    assert [name for name in named if not (HOUSE / name).is_file()] == []


def test_every_room_is_on_the_page() -> None:
    rooms = {path.parent.name for path in HOUSE.glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^\| `(\w+)/` \|", PAGE, re.MULTILINE))
