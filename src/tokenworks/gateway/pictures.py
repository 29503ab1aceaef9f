"""Pictures in requests: where they are, what the model makes of them, and which tokens stand for them.

While messages become text, each picture is a MARK in its message's content; the model's chat template then writes its
own mark for it, and that is exchanged for the words that the model was trained to read there. The same words written by
a client are text: they are guarded on the way.
"""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenworks.gateway.fetch import Fetcher
from tokenworks.protocol.errors import ContextTooLong, EngineError, InvalidRequest
from tokenworks.protocol.messages import Picture

if TYPE_CHECKING:
    from tokenworks.models.vision.processors import Processor, Shown

# Two of Unicode's noncharacters, which no text has.
MARK = "\ufdd1"
_GUARD = "\ufdd0"

MOST_PICTURES = 64
"""In one request."""
MOST_BYTES = 48 << 20
"""Of one request's pictures as the model sees them: below what a message to a worker may hold."""
_AT_ONCE = 2
"""So many requests' pictures are decoded at a time: an image takes three bytes for each of its pixels."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a picture is: at a URL, or in the request, in base64."""

    url: str | None
    base64: str = ""


class Pictures:
    """Those of one request, in the order in which its messages show them."""

    def __init__(self) -> None:
        self.sources: list[Source] = []

    def at(self, url: str) -> str:
        """Notes a picture at a data: or http(s): URL. What to write in its message."""
        return self._add(Source(url))

    def given(self, data: str) -> str:
        """Notes a picture given in base64. What to write in its message."""
        return self._add(Source(None, data))

    def _add(self, source: Source) -> str:
        self.sources.append(source)
        return MARK


class Sight:
    """One model's pictures."""

    def __init__(self, processor: "Processor", placeholder_id: int, fetcher: Fetcher) -> None:
        self._processor, self._placeholder_id, self._fetcher = processor, placeholder_id, fetcher
        self._room = asyncio.Semaphore(_AT_ONCE)

    def parts(self, content: str) -> list[dict[str, Any]]:
        """A message's content as the templates of such models take it: texts and pictures."""
        result: list[dict[str, Any]] = []
        for number, text in enumerate(content.split(MARK)):
            if number:
                result.append({"type": "image"})
            if text:
                result.append({"type": "text", "text": text})
        return result or [{"type": "text", "text": ""}]

    def guarded(self, content: str) -> str:
        """Without the words that stand for pictures: `place` brings them back as text."""
        for token in {self._processor.mark, self._processor.placeholder}:
            content = content.replace(token, token[0] + _GUARD + token[1:])
        return content

    async def look(self, sources: Sequence[Source], context_tokens: int, param: str) -> "list[Shown]":
        """Fetches and decodes the pictures, and brings them into the model's form. Raises InvalidRequest, naming
        `param`, for one that cannot be had or is none, ContextTooLong for more than the context holds."""
        if len(sources) > MOST_PICTURES:
            raise InvalidRequest(f"{len(sources)} pictures; a request may have {MOST_PICTURES}", param=param)
        files = [await self._file(source, param) for source in sources]
        async with self._room:
            shown = await asyncio.to_thread(self._show, files, param)
        tokens = sum(tile.rows * tile.columns for each in shown for tile in each.tiles)
        if tokens > context_tokens:
            raise ContextTooLong(tokens, None, context_tokens, param=param)
        return shown

    def written(self, text: str, shown: "Sequence[Shown]") -> tuple[str, list[bool]]:
        """A rendered template with the pictures' words in it; and of each placeholder in that, whether it is a
        picture's. Raises InvalidRequest when the template leaves pictures out."""
        pieces = text.split(self._processor.mark)
        if len(pieces) != len(shown) + 1:
            raise InvalidRequest(f"the model's chat template shows {len(pieces) - 1} of {len(shown)} pictures")
        result, of_pictures = [], []
        for number, guarded in enumerate(pieces):
            piece = guarded.replace(_GUARD, "")
            result.append(piece)
            of_pictures += [False] * piece.count(self._processor.placeholder)
            if number < len(shown):
                result.append(shown[number].words)
                of_pictures += [True] * shown[number].words.count(self._processor.placeholder)
        return "".join(result), of_pictures

    def place(self, ids: Sequence[int], of_pictures: Sequence[bool], shown: "Sequence[Shown]") -> tuple[Picture, ...]:
        """The pictures with the places of their tokens in a prompt."""
        placeholders = [at for at, token_id in enumerate(ids) if token_id == self._placeholder_id]
        if len(placeholders) != len(of_pictures):
            raise EngineError("the tokenizer does not keep the tokens that stand for pictures")
        places = [at for at, picture in zip(placeholders, of_pictures, strict=True) if picture]
        pictures, used = [], 0
        for tile in (tile for each in shown for tile in each.tiles):
            tokens = tile.rows * tile.columns
            at = places[used]
            if places[used + tokens - 1] != at + tokens - 1:
                raise EngineError("a picture's tokens do not follow each other")
            used += tokens
            size = f"{tile.width} {tile.height} ".encode()
            digest = hashlib.blake2b(size + tile.pixels, digest_size=24).digest()
            pictures.append(Picture(at, tile.rows, tile.columns, tile.width, tile.height, tile.pixels, digest))
        return tuple(pictures)

    async def _file(self, source: Source, param: str) -> bytes:
        if source.url is None:
            return _decoded(source.base64, param)
        if source.url[:5].lower() == "data:":
            head, _, data = source.url.partition(",")
            if not head.lower().endswith(";base64"):
                raise InvalidRequest("a data: URL must be in base64 (data:image/png;base64,...)", param=param)
            return _decoded(data, param)
        return await self._fetcher.get(source.url, param)

    def _show(self, files: Sequence[bytes], param: str) -> "list[Shown]":
        from tokenworks.models.vision.picture import open_picture

        shown: list[Shown] = []
        total = 0
        for file in files:
            shown.append(self._processor.show(open_picture(file, param)))
            total += sum(len(tile.pixels) for tile in shown[-1].tiles)
            if total > MOST_BYTES:
                raise InvalidRequest("the pictures are too many, or too large, for one request", param=param)
        return shown


def _decoded(data: str, param: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("the picture is not valid base64", param=param) from None
