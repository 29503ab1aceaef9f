"""Stored responses, so that a later request can go on from `previous_response_id`: one SQLite file, bounded."""

import logging
import sqlite3
import threading
from pathlib import Path
from typing import NamedTuple

from tokenworks.protocol.errors import FactoryError

RESPONSES_MAX = 10_000
TOTAL_BYTES_MAX = 256 * 2**20


class StoredResponse(NamedTuple):
    """What is kept of one response, as JSON."""

    response: bytes
    conversation: bytes
    """The whole conversation including this response's output: going on needs no chain of rows, so neither deletion
    nor eviction of an earlier response breaks a later one."""


class ResponsesStore:
    """Blocking and thread-safe; the oldest responses go when there are too many."""

    def __init__(self, path: Path) -> None:
        """Raises FactoryError when nothing can be written there."""
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._create_table()
        except (OSError, sqlite3.Error) as error:
            raise FactoryError(
                f"{path}: stored responses cannot be kept there ({error}). Make room or give write access, "
                "or choose another folder with TOKENWORKS_HOME."
            ) from error
        [(self._bytes, self._count)] = self._connection.execute(
            "SELECT coalesce(sum(bytes), 0), count(*) FROM responses"
        )

    def _create_table(self) -> None:
        self._connection.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=5000;"
            "CREATE TABLE IF NOT EXISTS responses("
            " number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, response BLOB NOT NULL,"
            " conversation BLOB NOT NULL, bytes INTEGER NOT NULL)"
        )

    def put(self, response_id: str, stored: StoredResponse) -> None:
        """Keeps it. A full disk is logged and loses the record, not the answer that has been made."""
        try:
            self._put(response_id, stored)
        except sqlite3.Error:
            logging.getLogger(__name__).exception("response %s is not kept", response_id)

    def _put(self, response_id: str, stored: StoredResponse) -> None:
        size = len(stored.response) + len(stored.conversation)
        with self._lock:
            self._connection.execute(
                "INSERT INTO responses(id, response, conversation, bytes) VALUES (?, ?, ?, ?)",
                (response_id, stored.response, stored.conversation, size),
            )
            self._bytes += size
            self._count += 1
            while self._count > RESPONSES_MAX or (self._bytes > TOTAL_BYTES_MAX and self._count > 1):
                [(number, freed)] = self._connection.execute(
                    "SELECT number, bytes FROM responses ORDER BY number LIMIT 1"
                )
                self._connection.execute("DELETE FROM responses WHERE number = ?", (number,))
                self._bytes -= freed
                self._count -= 1

    def get(self, response_id: str) -> StoredResponse | None:
        with self._lock:
            row = self._connection.execute(
                "SELECT response, conversation FROM responses WHERE id = ?", (response_id,)
            ).fetchone()
        return None if row is None else StoredResponse(*row)

    def delete(self, response_id: str) -> bool:
        """Whether it was there."""
        with self._lock:
            row = self._connection.execute(
                "DELETE FROM responses WHERE id = ? RETURNING bytes", (response_id,)
            ).fetchone()
            if row is not None:
                self._bytes -= row[0]
                self._count -= 1
        return row is not None

    def close(self) -> None:
        with self._lock:
            self._connection.close()
