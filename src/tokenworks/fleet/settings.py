"""What a worker process is told on its command line."""

from typing import Literal

import msgspec

from tokenworks.config import EngineSettings
from tokenworks.protocol.messages import Adapter


class WorkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model, and what its worker may use."""

    path: str
    """The checkpoint: a folder or a file."""
    draft_path: str | None = None
    """The checkpoint of its draft model, if it has one."""
    adapters: tuple[Adapter, ...] = ()
    """LoRA adapters that are tried, and loaded as far as there are slots, before the worker is ready."""
    engine: EngineSettings = EngineSettings()
    backend: Literal["device", "reference"] = "device"
    """What runs it: that of engine.device, or the reference, which is slow and needs no compiled code."""


UNUSABLE_STATUS = 2
"""A worker's exit status when its model cannot be used and another try would end the same way; the reason is what it
wrote to its standard error."""
