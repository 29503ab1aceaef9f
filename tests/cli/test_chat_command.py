"""chat in a pipe and in a real terminal (a pty), against a factory of its own and against a running one."""

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from command import TOKENWORKS, WITHIN_S, children_of, run, serving


@pytest.fixture(scope="module")
def url(smollm2: Path) -> Iterator[str]:
    with serving(str(smollm2), "--name", "small") as factory:
        yield factory.url


def test_a_pipe_is_one_question(url: str) -> None:
    done = run("chat", "--url", f"{url}/v1/", stdin="Say hello in one word.\n")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 1


def test_an_unknown_model_is_a_mistake_in_the_servers_words(url: str) -> None:
    done = run("chat", "nonsuch", "--url", url, stdin="Hello\n")
    assert done.returncode == 2
    assert "'nonsuch'" in done.stderr and "small" in done.stderr


def test_its_own_factory_ends_with_it(smollm2: Path, tmp_path: Path) -> None:
    model = tmp_path / "capital.gguf"
    model.symlink_to(smollm2)
    done = run("chat", str(model), "--system", "Answer in one word.", stdin="What is the capital of France?")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert [one for one in psutil.process_iter(["cmdline"]) if str(model) in (one.info["cmdline"] or [])] == []


def test_a_killed_chat_takes_its_factory_along(smollm2: Path) -> None:
    chat = subprocess.Popen([*TOKENWORKS, "chat", str(smollm2)], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    while len(children_of(chat.pid)) < 2:  # the server, its worker
        assert chat.poll() is None
        time.sleep(0.02)
    family = children_of(chat.pid)
    chat.terminate()
    chat.communicate(timeout=WITHIN_S)
    assert chat.returncode == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


class Terminal:
    """A person at a terminal."""

    def __init__(self, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*TOKENWORKS, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: _take_terminal(theirs),
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> str:
        """What came up to and with `text`; the next call looks behind it."""
        end_s = time.monotonic() + WITHIN_S
        while text not in self.seen:
            assert time.monotonic() < end_s, f"{text!r} never came; seen: {self.seen!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                self.seen += os.read(self._ours, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def close(self) -> int:
        status = self.process.wait(WITHIN_S)
        os.close(self._ours)
        return status


def _take_terminal(terminal: int) -> None:
    """Makes it the controlling terminal, so that a typed Ctrl-C becomes a signal."""
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def test_a_conversation(url: str) -> None:
    terminal = Terminal("chat", "--url", url)
    terminal.wait_for("small at ")
    terminal.wait_for("> ")
    terminal.type("/help\n")
    terminal.wait_for("/quit    leave")
    terminal.type("My name is Ada. Say hello to me.\n")
    terminal.wait_for("a second)")
    terminal.type("/clear\n")
    terminal.wait_for("Forgotten.")
    terminal.type("/quit\n")
    assert terminal.close() == 0


def test_ctrl_c_stops_the_answer_and_twice_leaves(url: str) -> None:
    terminal = Terminal("chat", "--url", url)
    terminal.wait_for("> ")
    terminal.type("Write a very long story about the sea, of ten thousand words.\n")
    terminal.wait_for("the")
    terminal.type("\x03")
    terminal.wait_for("(stopped; Ctrl-C again leaves)")
    terminal.wait_for("> ")
    # CPython's readline loses a Ctrl-C that comes between writing the prompt and waiting for keys: press until it goes.
    while terminal.process.poll() is None:
        terminal.type("\x03")
        time.sleep(0.1)
    # One that comes while Python ends, when nobody handles it any more, is the end as well.
    assert terminal.close() in (0, -signal.SIGINT)
