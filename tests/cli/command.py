"""The command line as a user meets it: processes, what they say, what they leave behind."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

WITHIN_S = 120
TOKENWORKS = (sys.executable, "-m", "tokenworks")


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    done = subprocess.run([*TOKENWORKS, *words], capture_output=True, text=True, input=stdin, timeout=WITHIN_S)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@dataclass
class Serving:
    """A factory that said it is ready."""

    process: "subprocess.Popen[str]"
    url: str
    said: str

    def stop(self, how: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Exit status, and what it said on standard error. No process of it may be left."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=WITHIN_S)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert alive == [], "processes were left behind"
        return self.process.returncode, errors


@contextmanager
def serving(*words: str) -> Iterator[Serving]:
    """`tokenworks serve --port 0 WORDS`, from its word that it is ready."""
    command = [*TOKENWORKS, "serve", "--port", "0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = ""
        for line in process.stdout:
            said += line
            if "Ctrl-C" in line:
                break
        url = re.search(r"at (http://\S+), ready", said)
        assert url, f"{said}{process.communicate(timeout=WITHIN_S)[1]}"
        yield Serving(process, url[1], said)
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=WITHIN_S)


def children_of(pid: int) -> Sequence[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)
