"""How a pull tells its watcher how far it is. The command line draws it; tests and libraries may stay silent."""

from typing import Protocol


class Progress(Protocol):
    """Calls come in order: any number of `say`, and for each transfer one `begin` followed by `advance` calls."""

    def say(self, text: str) -> None:
        """One line for people."""

    def begin(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """A transfer starts, `done_bytes` of it being here already; the total is None when the server hides it."""

    def advance(self, count_bytes: int) -> None:
        """So many more bytes have arrived."""


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        pass

    def begin(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        pass

    def advance(self, count_bytes: int) -> None:
        pass
