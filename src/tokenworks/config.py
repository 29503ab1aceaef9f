"""The one configuration file, factory.yaml: its schema, its defaults, and where the factory keeps its data."""

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(gt=0)]


class ServedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model the factory serves."""

    source: str
    """A catalogue name, a path, `pypi:PACKAGE` or `hf:ORG/NAME`."""
    name: str | None = None
    """The name clients ask for; by default the catalogue's, the folder's or the file's own."""
    start: Literal["now", "on_demand"] = "now"
    """Start its worker with the factory, or with the first request for it."""
    adapters: dict[str, str] = {}
    """LoRA adapters of this model: the names clients ask for them by, and PEFT folders."""


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one worker may use."""

    threads: Positive | None = None
    """Default: the cores this process may use, by affinity and control group. Steps use fewer where that is faster."""
    context_tokens: Positive | None = None
    """Default: the model's own, as far as the cache reaches."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: an NVIDIA GPU where there is one, the extra `cuda` is installed and can run the model; else the CPU."""
    tensor_parallel: Positive = 1
    """So many GPUs share each model: every one has a part of its heads, inner columns, experts and vocabulary."""
    dtype: Literal["auto", "bfloat16"] = "auto"
    """Of weights that are not quantised. auto: as the checkpoint has them; bfloat16: rounded to it, which makes float32
    half as large, and prompts and embeddings up to twice as fast on processors that multiply bfloat16."""
    cache_mb: Positive | None = None
    """KV cache of a worker, MiB, on each of its GPUs. Default: 1024 on the CPU, where memory is touched only as it
    fills; on a GPU most of what is free beside the weights."""
    cache_dtype: Literal["int8", "float16", "float32", "bfloat16", "fp8"] | None = None
    """Default: int8 on the CPU, which costs less than 0.5 % perplexity (docs/kernels.md) and holds 1.9 times the tokens
    of float16; bfloat16 on a GPU, which takes fp8 too."""
    block_tokens: Positive = 16
    """Of a block, the piece in which the KV cache is taken, shared and given back."""
    step_tokens: Positive | None = None
    """The most tokens one step computes: a long prompt delays running requests by no more than this. Default: 512 on
    the CPU, 4096 on a GPU."""
    sequences: Positive | None = None
    """The most sequences that run at once; more wait. Default: 64 on the CPU, 256 on a GPU."""
    packed_mb: Annotated[int, msgspec.Meta(ge=0)] = 32768
    """Disk for packed weights of all models, MiB, which the next start maps; those unused for longest go. 0: none."""
    speculation: bool = True
    """Run guesses of the next tokens, from the text, the model's own layer or `draft_model`, where that is faster."""
    adapter_slots: Positive = 16
    """The most LoRA adapters in memory at once; the next one takes the place of one that no request uses, or waits."""
    draft_model: str | None = None
    """A smaller model with the same vocabulary, named as in `source`, that guesses too. It shares `cache_mb`."""


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The HTTP side."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000
    max_body_mb: Positive = 16
    """The largest request, MiB."""
    max_audio_mb: Positive = 25
    """The same of requests with sound files."""
    max_waiting: Positive = 1024
    """Requests beyond this many in flight are answered 503 at once."""
    adapters_folder: str | None = None
    """Where set, clients may load LoRA adapters from folders below it, and unload them (POST /v1/load_lora_adapter,
    /v1/unload_lora_adapter)."""
    picture_hosts: tuple[str, ...] = ()
    """Hosts from which pictures are fetched that a request names by URL; `"*"`: every public one. By default none are:
    clients send pictures as data."""


class Factory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. Every key has a default, so the file itself is optional."""

    models: tuple[ServedModel, ...] = (
        ServedModel(source="smollm2-135m"),
        ServedModel(source="minilm-l6", start="on_demand"),
    )
    engine: EngineSettings = EngineSettings()
    server: ServerSettings = ServerSettings()


def data_directory() -> Path:
    """Where the factory keeps what it makes and fetches: $TOKENWORKS_HOME, else the XDG data folder's `tokenworks`."""
    if home := os.environ.get("TOKENWORKS_HOME"):
        return Path(home).expanduser().resolve()
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "tokenworks"
