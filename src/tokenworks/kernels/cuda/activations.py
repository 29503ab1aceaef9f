"""The functions of an element, for kernels: kernels/program/value.py's Activation by name."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Without overflow: exp of large numbers is infinity, and 1 / infinity is 0."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """float32 to float32."""
    if KIND == "silu":
        x = x * tl.sigmoid(x)
    elif KIND == "gelu_tanh":  # 1 + tanh(u) is 2 sigmoid(2 u)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_quick":
        x = x * tl.sigmoid(1.702 * x)
    elif KIND == "relu2":
        x = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    elif KIND == "sigmoid":
        x = tl.sigmoid(x)
    return x


@triton.jit
def gated(gate, up, KIND: tl.constexpr, limit, offset):
    """kernels/program/elementwise.py's Gate, of float32."""
    if limit != 0.0:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
    return activate(gate, KIND) * (up + offset)
