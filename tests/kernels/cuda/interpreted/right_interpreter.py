"""Triton's interpreter, computing rightly and without doing the same again and again, in the rest of this process."""

from contextlib import ExitStack
from functools import cache

import interpreter_shim
import interpreter_speed


@cache
def install() -> ExitStack:
    """Once; closing what it gives takes it back."""
    stack = ExitStack()
    stack.enter_context(interpreter_shim.installed())
    stack.enter_context(interpreter_speed.installed())
    return stack
