"""Text files as windows of tokens: what calibration and measuring run on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tokenworks.models.text.tokenizer import ModelTokenizer
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.quant.forward import Int32


def read_texts(paths: Sequence[Path]) -> list[str]:
    """UTF-8 texts of files, and of all .txt, .md and .rst files of folders, in order of their names."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for end in ("txt", "md", "rst") for file in path.rglob(f"*.{end}"))
            if not inside:
                raise InvalidRequest(f"{path}: no .txt, .md or .rst files in this folder.")
            files += inside
        else:
            files.append(path)
    try:
        return [file.read_text("utf-8", "replace") for file in files]
    except OSError as error:
        raise InvalidRequest(f"{error.filename}: this text cannot be read ({error.strerror}).") from None


def windows(texts: Sequence[str], tokenizer: ModelTokenizer, *, count: int, length: int) -> Int32:
    """[count, length] token ids: windows at even distances over all texts, each with the tokens (BOS; [CLS], [SEP])
    that the model expects around a text. Fewer when the texts are shorter. Raises InvalidRequest when there is not
    one whole window."""
    around = tokenizer.encode("", special=True)
    before, after = around[: (len(around) + 1) // 2], around[(len(around) + 1) // 2 :]
    ids = [number for text in texts for number in tokenizer.encode(text, special=False)]
    inner = length - len(around)
    if len(ids) < inner:
        raise InvalidRequest(f"The texts are {len(ids)} tokens; one window needs {inner}. Give more text.")
    count = min(count, len(ids) // inner)
    starts = [number * (len(ids) - inner) // max(1, count - 1) for number in range(count)]
    return np.array([before + ids[start : start + inner] + after for start in starts], np.int32)
