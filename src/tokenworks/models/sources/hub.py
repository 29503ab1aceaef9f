"""Models from a Hugging Face hub, through its own client: its cache, its login, its offline mode."""

import re
from dataclasses import dataclass
from pathlib import Path

from tokenworks.protocol.errors import ModelError

REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(/(?P<file>[\w./-]+\.gguf))?")
CHECKPOINT_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a repository in the hub's cache."""

    repository: str
    revision: str
    folder: Path
    weights: Path
    """The GGUF file asked for, or the folder itself."""


def pull(reference: str) -> Snapshot:
    """`ORG/NAME` (a safetensors checkpoint) or `ORG/NAME/FILE.gguf`. Raises ModelError."""
    match = REPOSITORY.fullmatch(reference)
    if match is None:
        raise ModelError(f"hf:{reference} does not name a model: expected hf:ORG/NAME or hf:ORG/NAME/FILE.gguf.")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ModelError("hf: sources need the extra `hub`: `pip install 'tokenworks[hub]'`.") from error
    repository, file = match["repository"], match["file"]
    wanted = [file, "LICENSE*", "NOTICE*"] if file else CHECKPOINT_FILES
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"hf:{reference} is not in the hub's cache on this machine and the hub cannot be reached "
            "(HF_HUB_OFFLINE is set, or there is no network). Pull it where there is one, or name a local path."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"The hub does not give hf:{reference}: {error}") from error
    weights = folder / file if file else folder
    if file and not weights.exists():
        raise ModelError(f"hf:{repository} has no file {file}.")
    if not file and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"hf:{repository} has no safetensors weights. If it has GGUF files, name one: hf:{repository}/FILE.gguf."
        )
    return Snapshot(repository, folder.name, folder, weights)


def remove(revision: str) -> None:
    """Deletes a revision from the hub's cache; files that other revisions share stay."""
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir()
    if any(known.commit_hash == revision for repository in cache.repos for known in repository.revisions):
        cache.delete_revisions(revision).execute()
