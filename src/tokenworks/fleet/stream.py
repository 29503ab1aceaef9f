"""What the gateway holds of one request while a worker computes it."""

import asyncio
from collections.abc import Sequence

import msgspec

from tokenworks.protocol.errors import TokenworksError
from tokenworks.protocol.messages import AdapterLoaded, Embed, Embedded, Generate, LoadAdapter, TokenChunk

_MERGE_AT = 64


def merge(chunks: Sequence[TokenChunk]) -> TokenChunk:
    """Consecutive chunks of one request as one."""
    first, last = chunks[0], chunks[-1]
    if first is last:
        return first
    return TokenChunk(
        request_id=first.request_id,
        token_ids=tuple(token_id for chunk in chunks for token_id in chunk.token_ids),
        logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs),
        prompt_logprobs=first.prompt_logprobs,
        cached_tokens=first.cached_tokens,
        finish=last.finish,
        stop_token_id=last.stop_token_id,
        error=last.error,
    )


class TokenStream:
    """One Generate: the tokens so far, with which another worker can carry on, and the chunks not yet read.

    The worker's side only ever appends; a client that reads slowly finds several chunks merged into one. So what is
    kept unread is bounded by the request's own max_tokens, and a slow client delays nobody.
    """

    __slots__ = ("_error", "_first_seen", "_output_ids", "_request", "_submitted_tokens", "_unread", "_waiter")

    def __init__(self, request: Generate) -> None:
        self._request = request
        self._output_ids = list(request.output_ids)
        self._submitted_tokens = len(self._output_ids)
        self._first_seen = False
        self._unread: list[TokenChunk] = []
        self._error: TokenworksError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def message(self) -> Generate:
        """What to send to a worker, from the start or to carry on."""
        self._submitted_tokens = len(self._output_ids)
        return msgspec.structs.replace(self._request, output_ids=tuple(self._output_ids))

    @property
    def made_tokens(self) -> int:
        """Tokens since `message`."""
        return len(self._output_ids) - self._submitted_tokens

    def take(self, chunk: TokenChunk) -> None:
        """The worker's side: the next chunk."""
        self._output_ids += chunk.token_ids
        if self._first_seen:
            if chunk.cached_tokens or chunk.prompt_logprobs:  # a second worker's first chunk: the client has had these
                chunk = msgspec.structs.replace(chunk, cached_tokens=0, prompt_logprobs=())
        else:
            self._first_seen = True
        self._unread.append(chunk)
        if len(self._unread) == _MERGE_AT:
            self._unread = [merge(self._unread)]
        self._wake()

    def fail(self, error: TokenworksError) -> None:
        """The worker's side: there will be no more."""
        self._error = error
        self._wake()

    async def next(self) -> TokenChunk:
        """The client's side: everything that has come, as one chunk. Raises what `fail` was given, after the rest."""
        while not self._unread:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        unread, self._unread = self._unread, []
        return merge(unread)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EmbedCall:
    """One Embed: nothing of it is kept until it is whole, so another worker begins anew."""

    made_tokens = 0

    def __init__(self, request: Embed) -> None:
        self._request = request
        self.result: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()

    def message(self) -> Embed:
        """What to send to a worker."""
        return self._request

    def take(self, embedded: Embedded) -> None:
        """The worker's side: the answer."""
        if not self.result.done():
            self.result.set_result(embedded)

    def fail(self, error: TokenworksError) -> None:
        """The worker's side: there will be no answer."""
        if not self.result.done():
            self.result.set_exception(error)


class LoadCall:
    """One LoadAdapter."""

    made_tokens = 0

    def __init__(self, request: LoadAdapter) -> None:
        self._request = request
        self.result: asyncio.Future[AdapterLoaded] = asyncio.get_running_loop().create_future()

    def message(self) -> LoadAdapter:
        """What to send to a worker."""
        return self._request

    def take(self, loaded: AdapterLoaded) -> None:
        """The worker's side: the answer."""
        if not self.result.done():
            self.result.set_result(loaded)

    def fail(self, error: TokenworksError) -> None:
        """The worker's side: there will be no answer."""
        if not self.result.done():
            self.result.set_exception(error)
