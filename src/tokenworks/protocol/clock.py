"""The one place where time is read. Pure cores never import this: they are given `now_s`."""

import time


def now_s() -> float:
    """Seconds on a clock that never goes back (for durations and order)."""
    return time.monotonic()


def wall_time_s() -> float:
    """Seconds since 1970 (for what people and clients are shown)."""
    return time.time()
