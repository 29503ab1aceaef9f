"""A model's tokenizer: text to token ids and back, and what its files say about special tokens and chat."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tokenizers import AddedToken, Tokenizer

from tokenworks.config import data_directory
from tokenworks.models.files.json_file import read_json
from tokenworks.models.text.ends import ENDS
from tokenworks.protocol.errors import ModelError

_CACHE_VERSION = 5


class Pair(NamedTuple):
    """Two texts as one input."""

    token_ids: list[int]
    owners: list[int | None]
    """Of each token whether it is the first text's (0), the second's (1), or neither's (None)."""
    second_from: int
    """Where tokens of type 1 begin, where the model has types: those of the second text and what closes it."""


@dataclass(frozen=True, slots=True)
class ModelTokenizer:
    """Token ids are those of the model's vocabulary."""

    tokenizer: Tokenizer
    eos_token_ids: frozenset[int]
    bos_token: str
    """Empty when the model has none; so for eos_token."""
    eos_token: str
    chat_template: str | None
    """Jinja source."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Special tokens written in `text` are recognised. `special` also adds those that the model expects around
        every text (BOS; [CLS] and [SEP]): for plain prompts, not for a rendered chat template, which has its own."""
        # The library's `encode` keeps the interpreter's lock all the while; this lets other threads go on.
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids

    def encode_pair(self, first: str, second: str) -> "Pair":
        """Two texts as one input, with the special tokens that the model expects around and between them."""
        # Not the `fast` method: it does not tell whose a token is.
        made = self.tokenizer.encode_batch([(first, second)])[0]
        types = made.type_ids
        return Pair(made.ids, made.sequence_ids, types.index(1) if 1 in types else len(types))

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        # As above: `decode` would keep the lock for a quarter of a second of a million ids.
        return self.tokenizer.decode_batch([ids], skip_special_tokens=skip_special)[0]


def load_tokenizer(path: Path) -> ModelTokenizer:
    """The tokenizer of a model folder or GGUF file. Raises ModelError naming the file and what is wrong with it."""
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_gguf(path)
    raise ModelError(f"{path}: no such file or folder.")


def _from_folder(folder: Path) -> ModelTokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ModelError(f"{folder}: it has no tokenizer.json, the one tokenizer file that is supported.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for whatever is wrong in the file
        raise ModelError(f"{path}: not a usable tokenizer ({error}).") from error
    tokenizer.no_truncation()  # some files cut or pad to a length that was handy in training
    tokenizer.no_padding()
    settings = _json_or_empty(folder / "tokenizer_config.json")
    _add_tokens(tokenizer, settings)
    eos = _content(settings.get("eos_token"))
    ids = {tokenizer.token_to_id(eos)} | {
        number
        for name in ("config.json", "generation_config.json")
        for number in _listed(_json_or_empty(folder / name).get("eos_token_id"))
    }
    return ModelTokenizer(
        tokenizer, _ends(tokenizer, ids), _content(settings.get("bos_token")), eos, _chat_template(folder, settings)
    )


class _Kept(msgspec.Struct, frozen=True):
    """A ModelTokenizer as a file: the library's own tokenizer.json, and what goes with it."""

    tokenizer: msgspec.Raw
    eos_token_ids: frozenset[int]
    bos_token: str
    eos_token: str
    chat_template: str | None


def _from_gguf(path: Path) -> ModelTokenizer:
    """Builds the tokenizer once per file; later starts load what was built, with neither numpy nor the GGUF reader.

    The key is what changes when the file does: its place, size and time. A cache that cannot be read or written only
    costs time.
    """
    status = path.stat()
    identity = f"{_CACHE_VERSION} {path.resolve()} {status.st_size} {status.st_mtime_ns}"
    kept_path = data_directory() / "tokenizers" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    if kept_path.exists():
        with suppress(Exception):  # a damaged file is built again
            kept = msgspec.json.decode(kept_path.read_bytes(), type=_Kept)
            tokenizer = Tokenizer.from_buffer(bytes(kept.tokenizer))
            return ModelTokenizer(tokenizer, kept.eos_token_ids, kept.bos_token, kept.eos_token, kept.chat_template)
    built = _build_from_gguf(path)
    with suppress(OSError):
        kept_path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=kept_path.parent)
        raw = msgspec.Raw(built.tokenizer.to_str().encode())
        with os.fdopen(handle, "wb") as out:
            out.write(
                msgspec.json.encode(
                    _Kept(raw, built.eos_token_ids, built.bos_token, built.eos_token, built.chat_template)
                )
            )
        Path(part).replace(kept_path)
    return built


def _build_from_gguf(path: Path) -> ModelTokenizer:
    from tokenworks.models.files.gguf import open_gguf
    from tokenworks.models.text.gguf_tokenizer import build_tokenizer

    file = open_gguf(path)
    tokenizer = build_tokenizer(file)
    bos, eos = (
        tokenizer.id_to_token(number) or "" if isinstance(number, int) else ""
        for number in (file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    )
    ids = {file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    template = file.metadata.get("tokenizer.chat_template")
    return ModelTokenizer(
        tokenizer, _ends(tokenizer, ids), bos, eos, template if isinstance(template, str) and template else None
    )


def _add_tokens(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Makes the tokenizer recognise the special tokens that only tokenizer_config.json declares."""
    listed = settings.get("added_tokens_decoder")
    added = {int(number): entry for number, entry in listed.items()} if isinstance(listed, dict) else {}
    for number in sorted(added):
        content = _content(added[number])
        if content and tokenizer.token_to_id(content) in (None, number):
            flags = {
                key: added[number].get(key, False) is True for key in ("special", "lstrip", "rstrip", "normalized")
            }
            tokenizer.add_tokens([AddedToken(content, **flags)])
    extra = settings.get("additional_special_tokens")
    roles = [settings.get(f"{role}_token") for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask")]
    for content in map(_content, roles + (extra if isinstance(extra, list) else [])):
        if content and tokenizer.token_to_id(content) is not None:
            tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False)])


def _ends(tokenizer: Tokenizer, ids: Iterable[object]) -> frozenset[int]:
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    named = {special[token] for token in ENDS if token in special}
    return frozenset(named | {number for number in ids if isinstance(number, int)})


def _json_or_empty(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _content(token: object) -> str:
    """A token is written as its text, or as a table that has it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """From its own file, from tokenizer_config.json, or from where older models that see have it."""
    own = folder / "chat_template.jinja"
    if own.exists():
        return own.read_text("utf-8")
    return _template(settings.get("chat_template")) or _template(
        _json_or_empty(folder / "chat_template.json").get("chat_template")
    )


def _template(value: object) -> str | None:
    """One template, or a list of named ones, of which we take the default."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
