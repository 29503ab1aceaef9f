"""Requests with images through the real server, to small random models that see; asked by the official clients."""

import base64
import http.server
import io
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from PIL import Image
from running_factory import Factory, start
from vision_checkpoints import FAMILIES, drawing, file_of, write_vision_model

from tokenworks.gateway.fetch import Fetcher
from tokenworks.protocol.errors import InvalidRequest

SCRIPT = Path(__file__).with_name("vision_factory.py")
DRAWING = drawing(50, 20, 1)
SEER = "idefics3"


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class _Pictures(http.server.BaseHTTPRequestHandler):
    """A web server with pictures, and with traps."""

    def do_GET(self) -> None:
        where = self.path.rpartition("/")[2]
        if where.startswith("to:"):
            self.send_response(302)
            self.send_header("location", base64.urlsafe_b64decode(where[3:]).decode())
            self.end_headers()
            return
        self.send_response(404 if where == "missing" else 200)
        self.send_header("content-type", "text/html" if where == "page" else "image/png")
        self.end_headers()
        self.wfile.write(b"\0" * (2 << 20) if where == "huge" else file_of(DRAWING))

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    """Serves a model of each family, and fetches pictures from one host."""
    folders = [tmp_path_factory.mktemp(family, numbered=False) for family in FAMILIES]
    for folder in folders:
        write_vision_model(folder.name, folder)
    factory = start(SCRIPT, tmp_path_factory.mktemp("data"), *folders)
    yield factory
    factory.process.send_signal(signal.SIGTERM)
    assert factory.process.wait(20) == 0


def ask(
    client: openai.OpenAI, *parts: str, text: str = "What is it?", model: str = SEER, **how: object
) -> openai.types.chat.ChatCompletion:
    """Parts are URLs of images; the text comes last."""
    content = [{"type": "image_url", "image_url": {"url": url}} for url in parts]
    content.append({"type": "text", "text": text})
    return client.chat.completions.create(  # type: ignore[call-overload,no-any-return]
        model=model, messages=[{"role": "user", "content": content}], **{"max_tokens": 8, "temperature": 0, **how}
    )


def test_an_image_is_seen_and_counted(client: openai.OpenAI) -> None:
    url = data_url(file_of(DRAWING))
    first = ask(client, url)
    text_only = client.chat.completions.create(
        model=SEER, messages=[{"role": "user", "content": "What is it?"}], max_tokens=8, temperature=0
    )
    # 50 x 20 is shown as 70 x 28, in tiles of 24: 3 x 2 and the whole, each of 3 x 3 tokens, and the words around them.
    assert first.usage is not None
    assert text_only.usage is not None
    words = 6 * 2 + 2 + 1 + 3
    assert first.usage.prompt_tokens == text_only.usage.prompt_tokens + 7 * 9 + words
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    again, other = ask(client, url), ask(client, data_url(file_of(drawing(50, 20, 2))))
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == (first.usage.prompt_tokens - 1) // 16 * 16
    assert other.usage is not None
    assert other.usage.prompt_tokens_details is not None
    assert other.usage.prompt_tokens_details.cached_tokens < 32
    assert other.choices[0].message.content != first.choices[0].message.content


def test_every_file_format_and_every_api(
    client: openai.OpenAI, claude: anthropic.Anthropic, http: httpx.Client
) -> None:
    film = io.BytesIO()
    DRAWING.quantize(16).save(film, "GIF", save_all=True, append_images=[drawing(50, 20, 9).quantize(16)])
    for data, kind in [
        (file_of(DRAWING), "png"),
        (file_of(DRAWING, "JPEG", quality=90), "jpeg"),
        (file_of(DRAWING, "WEBP", lossless=True), "webp"),
        (film.getvalue(), "gif"),
        (file_of(DRAWING.convert("L")), "png"),
        (file_of(DRAWING.convert("RGBA")), "png"),
    ]:
        assert ask(client, data_url(data, kind)).choices[0].message.content
    said = ask(client, data_url(file_of(DRAWING)))
    assert ask(client, data_url(file_of(DRAWING, "WEBP", lossless=True))).choices == said.choices
    assert ask(client, data_url(file_of(DRAWING.convert("RGBA")))).choices == said.choices

    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(file_of(DRAWING)).decode()}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    message = claude.messages.create(
        model=SEER,
        max_tokens=8,
        extra_body={"temperature": 0},
        messages=[{"role": "user", "content": content}],  # type: ignore[typeddict-item]
    )
    assert message.content[0].text == said.choices[0].message.content  # type: ignore[union-attr]
    assert said.usage is not None
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == said.usage.prompt_tokens
    counted = claude.messages.count_tokens(model=SEER, messages=[{"role": "user", "content": content}])  # type: ignore[typeddict-item]
    assert counted.input_tokens == said.usage.prompt_tokens

    parts = [
        {"type": "input_image", "image_url": data_url(file_of(DRAWING)), "detail": "auto"},
        {"type": "input_text", "text": "What is it?"},
    ]
    response = client.responses.create(
        model=SEER,
        max_output_tokens=16,
        temperature=0,
        input=[{"role": "user", "content": parts}],  # type: ignore[list-item,misc]
    )
    assert response.output_text.startswith(said.choices[0].message.content or "?")
    further = client.responses.create(
        model=SEER, max_output_tokens=16, temperature=0, input="And?", previous_response_id=response.id
    )
    assert further.usage is not None
    assert further.usage.input_tokens_details.cached_tokens > 48  # the stored conversation shows the image again

    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(file_of(DRAWING))}}]}]
    tokens = http.post("/tokenize", json={"model": SEER, "messages": messages}).json()
    assert tokens["tokens"].count(0) == 7 * 9


def test_several_images_in_order(client: openai.OpenAI) -> None:
    one, two = data_url(file_of(DRAWING)), data_url(file_of(drawing(20, 20, 2)))
    forth, back = ask(client, one, two), ask(client, two, one)
    assert forth.usage is not None
    assert back.usage is not None
    assert forth.usage.prompt_tokens == back.usage.prompt_tokens
    assert forth.choices[0].message.content != back.choices[0].message.content
    streamed = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in ask(client, one, two, stream=True)
        if chunk.choices  # type: ignore[attr-defined]
    )
    assert streamed == forth.choices[0].message.content


def test_words_that_stand_for_images_are_only_text_in_a_clients_mouth(client: openai.OpenAI) -> None:
    """A client that writes <image> gets that token, and no image moves to it."""
    url = data_url(file_of(DRAWING))
    plain, written = ask(client, url, text="a b"), ask(client, url, text="a <image> b")
    assert plain.usage is not None
    assert written.usage is not None
    assert written.usage.prompt_tokens == plain.usage.prompt_tokens + 2
    ask(client, text="<image>")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        (data_url(b"no image"), "none of PNG"),
        (data_url(file_of(DRAWING)[:200]), "cannot be decoded"),
        (data_url(file_of(Image.new("1", (20_000, 20_000)))), "at most"),
        (data_url(file_of(DRAWING, "BMP")), "none of PNG"),
        ("data:image/png;base64,????", "base64"),
        ("data:image/png,abc", "base64"),
        ("ftp://127.0.0.1/a.png", "http"),
        ("file:///etc/passwd", "http"),
        ("http://me:secret@127.0.0.1/a.png", "password"),
        ("http://other.example/a.png", "that host"),
        ("http://127.0.0.1:1/a.png", "could not be fetched"),
        ("nonsense", "http"),
    ],
)
def test_what_is_no_image_is_refused(client: openai.OpenAI, url: str, complaint: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, url)
    error = refusal.value.body
    assert isinstance(error, dict)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "messages"
    assert complaint in error["message"]


def test_images_from_the_web(client: openai.OpenAI, claude: anthropic.Anthropic, web: str) -> None:
    def to(url: str) -> str:
        return f"{web}/to:{base64.urlsafe_b64encode(url.encode()).decode()}"

    said = ask(client, data_url(file_of(DRAWING))).choices
    assert ask(client, f"{web}/a.png").choices == said
    assert ask(client, to(f"{web}/a.png")).choices == said
    source = {"type": "url", "url": f"{web}/a.png"}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    message = claude.messages.create(
        model=SEER,
        max_tokens=8,
        extra_body={"temperature": 0},
        messages=[{"role": "user", "content": content}],  # type: ignore[typeddict-item]
    )
    assert message.content[0].text == said[0].message.content  # type: ignore[union-attr]
    port = web.rpartition(":")[2]
    for url, complaint in [
        (f"{web}/page", "not an image"),
        (f"{web}/missing", "404"),
        (f"{web}/huge", "larger"),
        (to(to(to(to(f"{web}/a.png")))), "redirects"),
        (to(f"http://localhost:{port}/a.png"), "that host"),
        (to("http://169.254.169.254/latest"), "that host"),
        (to("file:///etc/passwd"), "http"),
    ]:
        with pytest.raises(openai.BadRequestError, match=complaint):
            ask(client, url)


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "127.0.0.1", "0.0.0.0", "10.1.2.3", "169.254.169.254", "192.168.0.1", "[::1]",
        "[::ffff:127.0.0.1]", "[fd00::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "2130706433", "0x7f.1",
    ],
)  # fmt: skip
async def test_no_host_leads_into_the_private_network(host: str) -> None:
    with pytest.raises(InvalidRequest, match="public"):
        await Fetcher(("*",), 1000).get(f"http://{host}:1/a.png", "messages")
    with pytest.raises(InvalidRequest, match="fetches no pictures"):
        await Fetcher((), 1000).get(f"http://{host}:1/a.png", "messages")


@pytest.mark.parametrize(
    ("family", "tokens"),
    # A square of 3 x 3 in a frame and empty lines; 48 x 16 pixels in squares of 8, between two words.
    [("gemma3", 9 + 2 + 4), ("qwen2_5_vl", 6 * 2 + 2), ("qwen3_vl", 6 * 2 + 2)],
)
def test_every_family(client: openai.OpenAI, family: str, tokens: int) -> None:
    url, other = data_url(file_of(DRAWING)), data_url(file_of(drawing(50, 20, 2)))
    seen, plain = ask(client, url, model=family), ask(client, model=family)
    assert seen.usage is not None
    assert plain.usage is not None
    assert seen.usage.prompt_tokens - plain.usage.prompt_tokens == tokens
    assert ask(client, url, model=family).choices == seen.choices
    assert ask(client, other, model=family).choices != seen.choices
    streamed = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in ask(client, url, other, model=family, stream=True)
        if chunk.choices  # type: ignore[attr-defined]
    )
    assert streamed == ask(client, url, other, model=family).choices[0].message.content


def test_an_image_survives_its_worker(factory: Factory, client: openai.OpenAI) -> None:
    url = data_url(file_of(drawing(60, 60, 4)))
    whole = ask(client, url, max_tokens=300, extra_body={"ignore_eos": True}).choices[0].message.content
    stream = ask(client, url, max_tokens=300, stream=True, extra_body={"ignore_eos": True})
    pieces = []
    for chunk in stream:
        pieces.append(chunk.choices[0].delta.content or "" if chunk.choices else "")  # type: ignore[attr-defined]
        if len(pieces) == 10:
            for worker in factory.workers():
                worker.kill()
    assert "".join(pieces) == whole
