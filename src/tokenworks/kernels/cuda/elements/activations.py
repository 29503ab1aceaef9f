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


@triton.jit
def cos_sin(angle):
    """Of float32 radians up to a few million: less than 2e-7 from true, without the slow path for larger ones that
    tl.cos brings along. The angle is brought to a quarter of pi by multiples of pi / 2, in three parts (Cody and Waite
    1980), then polynomials of Cephes."""
    quarters = tl.floor(angle * 0.6366197723675814 + 0.5)
    x = tl.fma(quarters, -1.5707962512969971, angle)
    x = tl.fma(quarters, -7.5497894158615964e-8, x)
    x = tl.fma(quarters, -5.390302529957765e-15, x)
    square = x * x
    sin = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * x + x
    cos = ((2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2) * square * square
    cos = cos - 0.5 * square + 1.0
    which = quarters.to(tl.int32) & 3
    turned_cos = tl.where((which & 1) == 1, sin, cos)
    turned_sin = tl.where((which & 1) == 1, cos, sin)
    turned_cos = tl.where((which == 1) | (which == 2), -turned_cos, turned_cos)
    turned_sin = tl.where((which == 2) | (which == 3), -turned_sin, turned_sin)
    return turned_cos, turned_sin
