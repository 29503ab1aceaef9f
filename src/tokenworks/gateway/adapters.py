"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them, where the configuration allows it.

Loading opens files of this machine: it is off until `server: adapters_folder` names the folder they must be in.
"""

from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenworks.gateway.http import read_body
from tokenworks.gateway.serving import Serving
from tokenworks.protocol.errors import InvalidRequest


class LoadBody(msgspec.Struct):
    """Which adapter to serve, and as what."""

    lora_name: str
    lora_path: str
    """A PEFT folder within the configured one, absolute or relative to it."""
    base_model_name: str | None = None
    """The model that it adapts; by default the first one served."""


class UnloadBody(msgspec.Struct):
    """Which adapter to serve no longer."""

    lora_name: str


async def load_adapter(request: Request) -> Response:
    """POST /v1/load_lora_adapter: 200 when requests can name it."""
    serving: Serving = request.app.state.gateway
    body = await read_body(request, LoadBody)
    folder = _allowed(serving)
    path = (folder / body.lora_path).resolve()
    if not path.is_relative_to(folder):
        raise InvalidRequest("lora_path: adapters are loaded from the configured folder only", param="lora_path")
    if not body.lora_name:
        raise InvalidRequest("lora_name: an adapter needs a name", param="lora_name")
    base = serving.find(body.base_model_name or serving.default_model).name
    await serving.pool.load_adapter(base, body.lora_name, str(path))
    return Response(f"Success: LoRA adapter '{body.lora_name}' added successfully.", media_type="text/plain")


async def unload_adapter(request: Request) -> Response:
    """POST /v1/unload_lora_adapter: requests in flight finish."""
    serving: Serving = request.app.state.gateway
    body = await read_body(request, UnloadBody)
    _allowed(serving)
    serving.pool.unload_adapter(body.lora_name)
    serving.forget(body.lora_name)
    return Response(f"Success: LoRA adapter '{body.lora_name}' removed successfully.", media_type="text/plain")


def _allowed(serving: Serving) -> Path:
    if serving.adapters_folder is None:
        raise InvalidRequest("adapters cannot be loaded here: the configuration names no server.adapters_folder")
    return Path(serving.adapters_folder).resolve()
