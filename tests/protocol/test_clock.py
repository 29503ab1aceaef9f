"""Time, as people are told it."""

import subprocess
import sys
import time

from tokenworks.protocol.clock import now_s, process_age_s

TICK_S = 0.01


def test_the_age_of_a_process() -> None:
    program = """
import time
from tokenworks.protocol.clock import process_age_s
time.sleep(0.1)
print(process_age_s())
"""
    began_s = now_s()
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert 0.1 <= float(said) <= now_s() - began_s + TICK_S


def test_a_process_ages() -> None:
    before_s = process_age_s()
    time.sleep(0.05)
    assert process_age_s() >= before_s + 0.05
