"""A conversation with a chat completions server: its history, and one streamed answer at a time."""

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tokenworks.protocol.clock import now_s
from tokenworks.protocol.errors import FactoryError, InvalidRequest

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Everything that a terminal obeys rather than shows, but tab and newline: a model must not steer the terminal."""

CONNECT_WITHIN_S = 10.0


class ServerFailed(FactoryError):
    """The server cannot be reached, or failed."""


@dataclass(slots=True)
class Stats:
    """Of the latest answer."""

    output_tokens: int = 0
    first_token_s: float = 0.0
    total_s: float = 0.0

    def __str__(self) -> str:
        if self.output_tokens < 2:
            return f"{self.output_tokens} token in {self.total_s:.2f} s"
        rate = (self.output_tokens - 1) / max(self.total_s - self.first_token_s, 1e-9)
        return f"{self.output_tokens} tokens, the first after {self.first_token_s:.2f} s, then {rate:.0f} a second"


@dataclass(slots=True)
class Conversation:
    """Turns so far. A question whose answer failed is taken back; an answer cut short stays as far as it came."""

    url: str
    model: str | None
    system: str | None
    options: dict[str, Any]
    """Of the request body, beyond the messages: sampling, length."""
    stats: Stats = field(default_factory=Stats)
    _turns: list[dict[str, str]] = field(default_factory=list)
    _http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(timeout=httpx.Timeout(None, connect=CONNECT_WITHIN_S))

    def close(self) -> None:
        self._http.close()

    def clear(self) -> None:
        self._turns.clear()

    def model_name(self) -> str:
        """The model asked for, or the first one served."""
        if self.model is None:
            try:
                answer = self._http.get(f"{self.url}/v1/models", timeout=CONNECT_WITHIN_S)
                self.model = _checked(answer)["data"][0]["id"]
            except (httpx.HTTPError, httpx.InvalidURL, KeyError, IndexError, ValueError) as error:
                raise InvalidRequest(f"{self.url} gives no list of models ({error}): is a server there?") from error
        return self.model

    def ask(self, question: str) -> Generator[str, None, None]:
        """The answer's pieces, safe to print. Closing the iterator stops the answer on the server.

        Raises InvalidRequest or ServerFailed with the server's own words.
        """
        self._turns.append({"role": "user", "content": question})
        body = {
            "model": self.model_name(),
            "messages": [*([{"role": "system", "content": self.system}] if self.system else []), *self._turns],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }
        answer = ""
        self.stats = Stats()
        sent_s = now_s()
        try:
            with self._http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    _checked(response)
                for event in _events(response):
                    for choice in event.get("choices", []):
                        if piece := choice.get("delta", {}).get("content"):
                            self.stats.first_token_s = self.stats.first_token_s or now_s() - sent_s
                            answer += piece
                            yield CONTROL_CHARACTERS.sub("", piece)
                    if usage := event.get("usage"):
                        self.stats.output_tokens = usage["completion_tokens"]
        except httpx.HTTPError as error:
            raise ServerFailed(f"{self.url} broke off: {error or type(error).__name__}.") from error
        finally:
            self.stats.total_s = now_s() - sent_s
            if answer:
                self._turns.append({"role": "assistant", "content": answer})
            else:
                self._turns.pop()


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data:") and line != "data: [DONE]":
            event = json.loads(line[5:])
            if error := event.get("error"):
                raise ServerFailed(error.get("message", str(error)) if isinstance(error, dict) else str(error))
            yield event


def _checked(response: httpx.Response) -> Any:
    """The JSON of an answer with status 200. Raises InvalidRequest (4xx) or ServerFailed with the server's words."""
    if response.status_code == 200:
        return response.json()
    try:
        error = response.json()["error"]
        said = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        said = f"{response.url} answers {response.status_code}"
    raise (InvalidRequest if response.is_client_error else ServerFailed)(said)
