"""Writes two texts of different sources, to calibrate on and to measure on: python benchmarks/texts.py FOLDER

calibrate.txt: docstrings of numpy, torch.nn, transformers' generation and sympy, as far as they are installed.
measure.txt: the Python manual's topics. No sentence of one is meant to be in the other.
"""

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

from tokenworks.bench.prompts import manual_texts

SOURCES = (("numpy", "", 600), ("torch", "nn", 600), ("transformers", "generation", 500), ("sympy", "", 800))
"""Package, folder in it, and the least characters of a docstring."""
LIMIT = 400_000


def docstrings(folder: Path, least: int) -> str:
    found: list[str] = []
    for path in sorted(folder.rglob("*.py")):
        if "test" not in str(path.relative_to(folder)) and sum(map(len, found)) < LIMIT:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                    text = ast.get_docstring(node)
                    found += [text] if text and len(text) > least else []
    return "\n\n".join(found)


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    for package, folder, least in SOURCES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            parts.append(docstrings(Path(spec.origin).parent / folder, least))
    (out / "calibrate.txt").write_text("\n\n".join(parts), "utf-8")
    (out / "measure.txt").write_text("\n\n".join(manual_texts()), "utf-8")


if __name__ == "__main__":
    main()
