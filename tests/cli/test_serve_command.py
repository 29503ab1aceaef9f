"""serve: says where it is, answers, and leaves nothing behind however it ends."""

import contextlib
import json
import re
import shlex
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from command import TOKENWORKS, WITHIN_S, run, serving


def test_serves_until_ctrl_c(smollm2: Path) -> None:
    with serving(str(smollm2), "--name", "mine") as factory:
        assert f"Tokenworks serves mine at {factory.url}" in factory.said
        tried = (
            factory.said.partition("Try it:")[2]
            .partition("tokenworks chat")[0]
            .replace('"messages"', '"max_tokens": 4, "messages"')
        )
        answer = subprocess.run(["bash", "-c", tried], capture_output=True, text=True, check=True).stdout
        assert json.loads(answer)["usage"]["completion_tokens"] <= 4
        assert json.loads(answer)["model"] == "mine"
        assert factory.stop() == (0, "")


def test_a_file_is_served_under_its_name_and_a_signal_in_mid_stream_ends_it(smollm2: Path) -> None:
    with serving(str(smollm2)) as factory:
        body = {"model": smollm2.stem, "prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(
            f"{factory.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as stream:
            assert stream.readline().startswith(b"data:")
            factory.process.send_signal(signal.SIGTERM)
            status, _ = factory.stop(signal.SIGTERM)  # the second does not wait for the stream
        assert status == 0


def test_closed_and_full_streams_end_no_server(smollm2: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = f"{shlex.join(TOKENWORKS)} serve {smollm2} --port {port} <&- 2>&- >/dev/full"
    process = subprocess.Popen(["bash", "-c", f"exec {started}"])
    deadline_s = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready")
            break
        time.sleep(0.05)
    time.sleep(0.1)  # it tells that it is ready
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models").status == 200
    process.terminate()
    assert process.wait(WITHIN_S) == 0


def test_too_little_memory_is_said_so(smollm2: Path, tmp_path: Path) -> None:
    config = tmp_path / "factory.yaml"
    config.write_text(f"models:\n- source: {smollm2}\nengine:\n  cache_mb: 200000000\n")  # beyond all addresses
    done = run("serve", "--config", str(config), "--port", "0")
    assert done.returncode == 2
    assert smollm2.name in done.stderr and "cache_mb" in done.stderr


def test_a_port_in_use(smollm2: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", str(smollm2), "--port", str(port))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: " in done.stderr and "--port" in done.stderr
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(port) in (one.info["cmdline"] or [])]


def test_the_configuration_file(smollm2: Path, tmp_path: Path) -> None:
    config = tmp_path / "factory.yaml"
    config.write_text(f"models:\n- source: {smollm2}\n  name: small\nengine:\n  context_tokens: 64\n")
    with serving("--config", str(config)) as factory:
        assert "serves small at" in factory.said
        body = {"model": "small", "prompt": "a", "max_tokens": 65}
        request = urllib.request.Request(f"{factory.url}/v1/completions", json.dumps(body).encode())
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert b"context length is 64 tokens" in refused.value.read()


def test_a_draft_model(smollm2: Path, tmp_path: Path) -> None:
    config = tmp_path / "factory.yaml"
    models = f"models:\n- source: {smollm2}\n  name: small\n"
    config.write_text(f"{models}engine:\n  draft_model: {smollm2}\n  cache_mb: 64\n")
    with serving("--config", str(config)) as factory:
        assert re.search(r"small: its draft model has \d\d MiB of weights and 3\d MiB of the cache", factory.said)
    config.write_text(f"{models}engine:\n  draft_model: ./nothing\n")
    done = run("serve", "--config", str(config))
    assert done.returncode == 2
    assert "nothing" in done.stderr


def test_a_wrong_configuration_file(tmp_path: Path) -> None:
    config = tmp_path / "factory.yaml"
    config.write_text("server:\n  prot: 80\n")
    done = run("serve", "--config", str(config))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {config}:2: unknown key `prot` in server. Did you mean `port`?")


def test_two_models_of_one_name(smollm2: Path, tmp_path: Path) -> None:
    config = tmp_path / "factory.yaml"
    config.write_text(f"models:\n- source: {smollm2}\n- source: {smollm2}\n")
    done = run("serve", "--config", str(config))
    assert done.returncode == 2 and "give one another `name`" in done.stderr


def test_a_file_that_is_no_model_ends_the_start(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    done = run("serve", str(broken), "--port", "0")
    assert done.returncode == 2
    assert "error: " in done.stderr and "broken.gguf" in done.stderr
