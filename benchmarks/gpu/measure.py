"""Times on the device, ceilings, and the figures as they come. Without a GPU times are the CPU's, to try the rest."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

REPEATS = 21


class Report:
    """Figures as they come, each with what it is a share of."""

    def __init__(self, part: str, seconds: float) -> None:
        self.part, self.figures, self.end_s = part, [], time.monotonic() + seconds

    def add(
        self, point: str, value: float, unit: str, *, share: float | None = None, of: str = "", note: str = ""
    ) -> None:
        self.figures.append({"point": point, "value": value, "unit": unit, "share": share, "of": of, "note": note})
        shown = "" if share is None else f"  {share:6.1%} of {of}"
        print(f"{point:44} {value:12.4g} {unit:9}{shown}  {note}".rstrip(), flush=True)

    def attempt(self, point: str, what: Callable[[], object]) -> None:
        """Failures are figures too; none ends the part."""
        if time.monotonic() > self.end_s:
            self.add(point, float("nan"), "", note="no time left")
            return
        try:
            what()
        except Exception as error:
            self.add(point, float("nan"), "", note=f"failed: {type(error).__name__}: {str(error)[:160]}")
        free()  # the point's model, before the next one's


def free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_ms(call: Callable[[], object], *, graph: bool = True, repeats: int = REPEATS) -> float:
    """Of `call` on the device, between events: as a graph if it can be one."""
    import torch

    call()
    wait()
    if not torch.cuda.is_available():
        return statistics.median(_wall_ms(call) for _ in range(repeats))
    replay = call
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            call()
        replay = captured.replay
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def _wall_ms(call: Callable[[], object]) -> float:
    begin_s = time.perf_counter()
    call()
    return (time.perf_counter() - begin_s) * 1e3


def ceilings(report: Report) -> dict[str, float]:
    """Bytes a second of a copy (read and written), and of a sum; operations a second of products."""
    import torch

    found: dict[str, float] = {}
    big = torch.randint(0, 256, (1 << 30,), dtype=torch.uint8, device="cuda")
    other, floats = torch.empty_like(big), torch.randn(1 << 28, device="cuda")
    found["copy"] = 2 * big.nbytes / median_ms(lambda: other.copy_(big)) * 1e3
    found["read"] = floats.nbytes / median_ms(lambda: torch.sum(floats)) * 1e3
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found["bf16"] = 2 * 8192**3 / median_ms(lambda: torch.mm(x, y)) * 1e3
    for name in ("copy", "read"):
        report.add(f"ceiling: {name}", found[name] / 1e12, "TB/s")
    report.add("ceiling: bf16 8192^3", found["bf16"] / 1e12, "TFLOP/s")

    def fp8() -> None:
        a, b = (each.to(torch.float8_e4m3fn) for each in (x, y))
        one = torch.ones((), device="cuda")
        rate = 2 * 8192**3 / median_ms(lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)) * 1e3
        report.add("ceiling: fp8 8192^3", rate / 1e12, "TFLOP/s")

    report.attempt("ceiling: fp8 8192^3", fp8)
    return found


def error_of(made: Any, wanted: Any) -> float:
    """The largest difference as a share of the largest number; NaN where something was left unwritten."""
    return float((made.double() - wanted.double()).abs().max() / wanted.double().abs().max())
