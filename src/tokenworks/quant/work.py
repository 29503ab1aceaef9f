"""The folder in which a quantisation, or a distillation, keeps what it has finished until the whole is there.

Every file is written beside its place and moved there, so that a run that was killed at any point leaves whole files
only; a second run with the same models, choices and texts takes them up and ends with the same bytes.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenworks.quant.forward import Forward
from tokenworks.quant.schemes import Quantised

_VERSION = 1


class Work:
    """`identity` is everything that the result depends on; a folder that was begun for another is emptied."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        said = json.dumps({"version": _VERSION, **identity}, indent=1, sort_keys=True)
        begun = folder / "work.json"
        self.resumed = begun.exists() and begun.read_text("utf-8") == said
        if not self.resumed:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            begun.write_text(said, "utf-8")

    def weight(self, name: str) -> Quantised | None:
        path = self._path(name)
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as kept:
            blocks = kept.get("block_scales")
            return Quantised(str(kept["scheme"]), kept["codes"], blocks, kept["row_scales"])  # type: ignore[arg-type]

    def keep_weight(self, name: str, weight: Quantised) -> None:
        arrays: dict[str, npt.NDArray[Any]] = {"codes": weight.codes, "row_scales": weight.row_scales}
        if weight.block_scales is not None:
            arrays["block_scales"] = weight.block_scales
        self._write(self._path(name), {"scheme": np.array(weight.scheme), **arrays})

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """What was kept under this name, nothing if nothing was."""
        path = self._path(name)
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as kept:
            return dict(kept)

    def keep_arrays(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._write(self._path(name), arrays)

    def restore(self, passes: Mapping[str, Forward]) -> None:
        path = self._path("passes")
        if not path.exists():
            return
        with np.load(path, allow_pickle=False) as kept:
            for name, forward in passes.items():
                forward.at = int(kept["at"])
                forward.buffers = {
                    int(key.split()[1]): kept[key] for key in kept.files if key.split()[0] == name and " " in key
                }

    def keep_passes(self, passes: Mapping[str, Forward]) -> None:
        at = next(iter(passes.values())).at
        buffers = {f"{name} {number}": rows for name, each in passes.items() for number, rows in each.buffers.items()}
        self._write(self._path("passes"), {"at": np.array(at), **buffers})

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def _write(self, path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        part = path.with_name("part")
        with part.open("wb") as file:
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]  # its stub takes them for its options
        part.replace(path)
