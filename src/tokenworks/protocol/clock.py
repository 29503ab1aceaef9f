"""The one place where time is read. Pure cores never import this: they are given `now_s`."""

import os
import sys
import time
from pathlib import Path


def now_s() -> float:
    """Seconds on a clock that never goes back (for durations and order)."""
    return time.monotonic()


def wall_time_s() -> float:
    """Seconds since 1970 (for what people and clients are shown)."""
    return time.time()


def process_age_s() -> float:
    """Seconds since this process was made, to a hundredth."""
    if sys.platform == "linux":
        # proc(5): field 22, in clock ticks since the boot. psutil adds the time of the boot, in whole seconds.
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(after_name[22 - 3]) / os.sysconf("SC_CLK_TCK")
    import psutil

    return time.time() - psutil.Process().create_time()
