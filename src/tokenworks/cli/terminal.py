"""What the commands share on the terminal: tables, sizes for people."""

from collections.abc import Sequence


def size(size_bytes: int) -> str:
    """In SI units: 98.4 MB."""
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.2f} GB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first row being their names; nothing is cut off."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
