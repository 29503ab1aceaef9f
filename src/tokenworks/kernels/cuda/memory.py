"""What fits the device's memory."""

import math
from collections.abc import Iterable, Mapping

import torch

from tokenworks.kernels.backend import Limits
from tokenworks.kernels.check import needs
from tokenworks.kernels.cuda.plan import make_plan
from tokenworks.kernels.cuda.weights import packed_bytes
from tokenworks.kernels.program import Program
from tokenworks.kernels.tensor import Tensor, describe

CACHE_SHARE = 0.9
"""Of what is free beside weights and activations: the rest is for graphs, libraries' workspaces, and other workers."""
RESERVED_BYTES = 1 << 30
"""Kernels, libraries and their workspaces."""


def free_bytes(limits: Limits, models: Iterable[tuple[Program, Mapping[str, Tensor]]]) -> int:
    """For caches, of what the current device has free now, beside these models; may be negative."""
    free, _ = torch.cuda.mem_get_info()
    for program, weights in models:
        found = (describe(weights, name) for name in needs(program))
        free -= sum(packed_bytes(what) for what in found if what is not None)
        widest = max(width for step in program.steps for width in step.buffer_widths)
        # Activations; a product in float32 on its way to them, its input in bfloat16; logits on their way to the host.
        free -= max(make_plan(step, limits).arena_bytes for step in program.steps) + limits.step_tokens * widest * 6
        free -= 2 * 4 * limits.logit_rows * program.result.width
        if program.hidden is not None:  # of the last steps, until the sequel has read them, and put together for it
            free -= 3 * 4 * limits.step_tokens * program.hidden.width
    return math.floor((free - RESERVED_BYTES) * CACHE_SHARE)
