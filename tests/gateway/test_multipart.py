"""Forms with files, as clients send them."""

import httpx
import pytest

from tokenworks.gateway.multipart import read_form
from tokenworks.protocol.errors import InvalidRequest


def form(**how: object) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x", **how)  # type: ignore[arg-type]
    return request.read(), request.headers["content-type"]


def test_fields_and_files_come_as_they_were_sent() -> None:
    data = b"\r\n--x\r\n\0\xff\r\n"
    body, kind = form(data={"a": "ä b", "c[]": ["1", "2"]}, files={"file": ("ünd.wav", data, "audio/wav")})
    parts = read_form(body, kind)
    assert [(part.name, part.data) for part in parts] == [
        ("a", "ä b".encode()),
        ("c[]", b"1"),
        ("c[]", b"2"),
        ("file", data),
    ]
    assert parts[0].text == "ä b"
    assert parts[0].file_name is None
    assert parts[3].file_name == "ünd.wav"


def test_empty_fields_are_fields() -> None:
    body, kind = form(files={"file": ("x", b""), "b": (None, "")})
    assert [part.data for part in read_form(body, kind)] == [b"", b""]


@pytest.mark.parametrize(
    ("body", "kind", "complaint"),
    [
        (b"{}", "application/json", "content-type is application/json; a multipart/form-data form"),
        (b"", "", "content-type is nothing"),
        (b"--x\r\n\r\n\r\n--x--", "multipart/form-data", "a multipart/form-data form was expected"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1', "multipart/form-data; boundary=x", "is cut off"),
        (b"--x\r\n\r\n1\r\n--x--\r\n", "multipart/form-data; boundary=x", "has no name"),
        (b"--x\r\n" * 200 + b"--x--", "multipart/form-data; boundary=x", "at most 100"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, kind: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        read_form(body, kind)
