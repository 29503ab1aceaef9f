"""Token ids to text as they arrive: never half a character, constant work per token.

A decoder of the `tokenizers` library is a chain of steps over token strings. The chains of the models we serve act on
each token alone, so a token has fixed bytes, looked up once; text is those bytes through an incremental UTF-8 decoder.
"""

import codecs
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return alphabet


_BYTE_OF = _byte_level_alphabet()


class Vocabulary:
    """The bytes each token of a tokenizer adds to a text.

    Raises ValueError for a decoder whose tokens do not stand alone (WordPiece and the like: not generative models).
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {}
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token_id: str(token.content) for token_id, token in added.items()}
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._byte_level = False
        self._byte_fallback = False
        self._replacements: list[tuple[str, str]] = []
        decoder = tokenizer.decoder
        self._read_step(json.loads(decoder.__getstate__()) if decoder is not None else {"type": "Sequence"})

    def _read_step(self, step: dict[str, Any]) -> None:
        match step["type"]:
            case "Sequence":
                for inner in step.get("decoders", ()):
                    self._read_step(inner)
            case "ByteLevel":
                self._byte_level = True
            case "ByteFallback":
                self._byte_fallback = True
            case "Replace" if "String" in step["pattern"]:
                self._replacements.append((step["pattern"]["String"], step["content"]))
            case "Metaspace":
                self._replacements.append((step["replacement"], " "))
            case "Fuse" | "Strip":
                pass  # Strip takes a space from the start of a text; what we decode goes on after a prompt.
            case other:
                raise ValueError(f"cannot decode tokens one by one with a {other} decoder")

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes (perhaps part of a character) of any token, special ones spelled out; b"" for an unknown id."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            if all(character in _BYTE_OF for character in token):
                return bytes(_BYTE_OF[character] for character in token)
            return token.encode()
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode()

    def token_text(self, token_id: int) -> str:
        """A token alone, for logprobs: part of a character shows as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")


class Detokeniser:
    """One sequence's text so far, as a stream. Special tokens leave no text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._bytes_of = vocabulary.token_bytes
        self._special_ids = vocabulary.special_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """The whole characters that these tokens complete."""
        special = self._special_ids
        data = b"".join([self._bytes_of(token_id) for token_id in token_ids if token_id not in special])
        return self._decoder.decode(data)

    def flush(self) -> str:
        """At the end: U+FFFD for bytes that never became a character."""
        return self._decoder.decode(b"", True)
