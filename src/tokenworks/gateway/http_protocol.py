"""uvicorn's HTTP protocol, answering what is no HTTP in the API's error shape."""

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokenworks.gateway.http import openai_error
from tokenworks.protocol.errors import InvalidRequest


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def send_400_response(self, msg: str) -> None:
        """Before there is a request, so also before it is known whose shape the client expects: OpenAI's."""
        body = msgspec.json.encode(openai_error(InvalidRequest(f"this is not HTTP/1.1 as it should be: {msg}")))
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
