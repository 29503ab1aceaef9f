"""tokenworks doctor: what this machine has, what will be used, what is missing and how to get it."""

import argparse
import importlib.metadata
import json
import re
import shutil
from dataclasses import asdict, dataclass

from tokenworks.cli import version
from tokenworks.cli.terminal import size
from tokenworks.config import data_directory
from tokenworks.fleet.device import gpu_trouble
from tokenworks.models.sources import store
from tokenworks.telemetry.machine import Machine, machine, memory_bandwidth

DESCRIPTION = """\
Looks this machine over: processor, memory and its speed, GPUs, the kernels that will run, the compiler, pulled models,
optional extras. Everything missing comes with the way to get it. Exit status 1 when something needed is missing.

examples:
  tokenworks doctor
  tokenworks doctor --json
"""


MODEL_BYTES = {"8B bf16": 15.0e9, "8B NVFP4": 5.6e9, "1.7B bf16": 3.4e9}
"""What a decoding step reads of typical models' weights."""


@dataclass(frozen=True, slots=True)
class Finding:
    topic: str
    text: str
    cure: str = ""
    """How to get what is missing; empty when all is well."""
    needed: bool = False
    """The factory cannot run without it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    here = machine()
    bandwidth = memory_bandwidth(here.cores_allowed)
    findings = [*_hardware(here, bandwidth), *_gpu(here), _kernels(), _compiler(), _store(), *_packed(), *_extras()]
    broken = any(finding.needed and finding.cure for finding in findings)
    if arguments.json:
        facts = {
            "machine": asdict(here) | {"memory_bandwidth_bytes_per_s": round(bandwidth)},
            "findings": [asdict(finding) for finding in findings],
            "can_serve": not broken,
        }
        print(json.dumps(facts, indent=1))
    else:
        for finding in findings:
            print(f"{'!' if finding.cure else ' '} {finding.topic:10} {finding.text}")
            if finding.cure:
                print(f"  {'':10} -> {finding.cure}")
        print("\nSomething needed is missing: see above." if broken else "\nReady: `tokenworks serve`.")
    return int(broken)


def _hardware(here: Machine, bandwidth: float) -> list[Finding]:
    cores = f"{here.cores_allowed} of {here.cores} cores" if here.cores_allowed < here.cores else f"{here.cores} cores"
    limit = f", this container may use {size(here.memory_limit_bytes)}" if here.memory_limit_bytes else ""
    return [
        Finding("processor", f"{here.cpu}, {cores}"),
        Finding("", f"instruction sets: {', '.join(here.instruction_sets) or 'none that speed up the kernels'}"),
        Finding("memory", f"{size(here.memory_bytes)}, {size(here.memory_available_bytes)} free{limit}"),
        Finding("", f"read at {bandwidth / 1e9:.0f} GB/s: bounds decoding, which reads all weights at each step"),
    ]


def _gpu(here: Machine) -> list[Finding]:
    """What it is, whether it will be used, and what bounds it."""
    if not here.gpus:
        return [Finding("gpu", "none")]
    found = Finding("gpu", "; ".join(here.gpus))
    trouble = gpu_trouble()
    if trouble is not None:
        cure = "see docs/gpu.md" if "pip install" not in trouble else "`pip install 'tokenworks[cuda]'`"
        return [found, Finding("", f"not used, models run on the CPU: {trouble}", cure)]
    from tokenworks.kernels.cuda.device import facts

    gpu = facts()
    rate = f"copies at {gpu.copy_bytes_per_s / 1e12:.2f} TB/s: bounds decoding, which reads all weights at each step"
    expected = ", ".join(f"{name} {gpu.copy_bytes_per_s / size_bytes:.0f}" for name, size_bytes in MODEL_BYTES.items())
    several = f"the first of {len(here.gpus)}; `tensor_parallel` under `engine` has a model use more"
    return [
        found,
        *([Finding("", several)] if len(here.gpus) > 1 else []),
        Finding("", f"will be used: {gpu.name}, compute capability {gpu.capability}, PyTorch for CUDA {gpu.cuda}"),
        Finding("", f"{size(gpu.memory_bytes)}, {size(gpu.free_bytes)} free"),
        Finding("", rate),
        Finding("", f"so at most so many tokens/s of one request at a short context: {expected}"),
    ]


def _kernels() -> Finding:
    found = version.kernels()
    if found.startswith("not built"):
        return Finding("kernels", found, "`make setup`, or `pip install .` with gcc or g++ at hand", needed=True)
    return Finding("kernels", f"compiled, will use {found}", needed=True)


def _compiler() -> Finding:
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        return Finding("compiler", "none", "only needed to build: on Debian or Ubuntu `apt-get install g++`")
    return Finding("compiler", f"{found} (only needed to build)")


def _store() -> Finding:
    here = store.everything()
    folder = data_directory()
    probe = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = f"in {folder}, {size(shutil.disk_usage(probe).free)} free there"
    if not here:
        return Finding(
            "models", f"none {free}", "`tokenworks serve` pulls the default; `tokenworks models list` shows all"
        )
    total_bytes = sum(record.size_bytes for _, record in here)
    return Finding("models", f"{', '.join(record.source for _, record in here)}: {size(total_bytes)} {free}")


def _packed() -> list[Finding]:
    try:
        from tokenworks.models.files import packed_store
    except ImportError:  # there are no kernels to pack for
        return []
    kept = packed_store.everything()
    total_bytes = sum(each.size_bytes for each in kept)
    files = f"{len(kept)} file{'' if len(kept) == 1 else 's'}"
    text = f"packed weights: {files}, {size(total_bytes)}: mapped at the next start; deleting them is safe"
    return [Finding("", text)] if kept else []


def _extras() -> list[Finding]:
    """One finding for each extra of the package that people use: is every distribution it asks for here?"""
    try:
        metadata = importlib.metadata.metadata("tokenworks")
    except importlib.metadata.PackageNotFoundError:
        return [Finding("extras", "unknown: the package is not installed", "`make setup`")]
    requirements = importlib.metadata.requires("tokenworks") or []
    findings = []
    for extra in metadata.get_all("Provides-Extra") or []:
        wanted = [
            re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
            for line in requirements
            if re.search(rf"extra == ['\"]{extra}['\"]", line)
        ]
        missing = [name for name in wanted if not _installed(name)]
        if missing:
            cure = f"if you want it: `pip install 'tokenworks[{extra}]'`"
            findings.append(Finding("extra", f"{extra}: not here ({', '.join(missing)})", cure))
        else:
            findings.append(Finding("extra", f"{extra}: here"))
    return findings


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
