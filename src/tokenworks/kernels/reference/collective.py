"""What several ranks' backends do together."""

import numpy as np

from tokenworks.kernels.backend import Float32
from tokenworks.kernels.group import Group
from tokenworks.kernels.program import AllGather, AllReduce, Broadcast
from tokenworks.kernels.reference.step import Float64, Step


def collective(step: Step, op: AllReduce | AllGather | Broadcast, group: Group[Float32]) -> Float64:
    if isinstance(op, Broadcast) and group.rank:  # nothing here has written x, which has a row for each token
        x = np.empty((len(step.batch.tokens), op.x.width), np.float32)
    else:
        x = np.ascontiguousarray(step.load(op.x), np.float32)
    match op:
        case AllReduce():
            group.all_reduce(x)
        case Broadcast():
            group.broadcast(x)
        case AllGather(output=output, widths=widths):
            out = np.empty((len(x), output.width), np.float32)
            group.all_gather(x, out, widths)
            x = out
    return x.astype(np.float64)
