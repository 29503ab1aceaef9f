"""Forms with files (multipart/form-data, RFC 7578), read whole: what is sent here is bounded."""

from dataclasses import dataclass
from email.message import Message

from tokenworks.protocol.errors import InvalidRequest

_MOST_PARTS = 100


@dataclass(frozen=True, slots=True)
class Part:
    """A field of a form."""

    name: str
    file_name: str | None
    """None: no file."""
    data: bytes

    @property
    def text(self) -> str:
        """Raises InvalidRequest naming the field."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"the field {self.name!r} is not valid UTF-8", param=self.name) from None


def read_form(body: bytes, content_type: str) -> list[Part]:
    """The fields in order. Raises InvalidRequest."""
    head = _header("content-type", content_type)
    boundary = head.get_param("boundary")
    if head.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        kind = content_type.partition(";")[0][:50] or "nothing"
        raise InvalidRequest(f"the body's content-type is {kind}; a multipart/form-data form was expected")
    # The first boundary has no line before it, the others begin on a new one.
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise InvalidRequest("the form is cut off: its last boundary is missing")
    if len(pieces) > _MOST_PARTS:
        raise InvalidRequest(f"the form has {len(pieces) - 2} fields; at most {_MOST_PARTS} are taken")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> Part:
    head, found, data = piece.partition(b"\r\n\r\n")
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            disposition = _header("content-disposition", value.strip())
            name = disposition.get_param("name", header="content-disposition")
            if found and isinstance(name, str):
                return Part(name, disposition.get_filename(), data)
    raise InvalidRequest("a field of the form has no name")


def _header(name: str, value: str) -> Message:
    message = Message()
    message[name] = value.replace("\r", "").replace("\n", "")
    return message
