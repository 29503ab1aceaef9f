// exp, tanh and friends of a register. Coefficients: our own fits in Chebyshev nodes; relative errors are about 1e-7.
#pragma once

#include "vector.h"

namespace tokenworks::cpu {
namespace {

// 2^n for whole n in [-126, 127].
INLINE Floats power_of_two(Ints n) { return reinterpret_cast<Floats>((n + 127) << 23); }

struct Reduced {
    Floats expm1;  // e^r - 1, |r| <= ln(2)/2, precise near 0
    Ints n;        // x = n ln(2) + r
};

INLINE Reduced reduce_exp(Floats x) {
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
    const Floats shift = all(0x1.8p23f);
    const Floats shifted = multiply_add(x, all(1.44269504f), shift);
    const Floats n = shifted - shift;
    Floats r = multiply_add(n, all(-0x1.62ep-1f), x);  // ln(2) in two parts; the first one's products are exact
    r = multiply_add(n, all(-0x1.0bfbe8p-15f), r);
    Floats p = all(1.393373322e-3f);
    p = multiply_add(p, r, all(8.363235385e-3f));
    p = multiply_add(p, r, all(4.166646417e-2f));
    p = multiply_add(p, r, all(1.666657664e-1f));
    p = multiply_add(p, r, all(5.000000014e-1f));
    return {multiply_add(p, r * r, r), reinterpret_cast<Ints>(shifted) - reinterpret_cast<Ints>(shift)};
}

// e^x; 0 below -87, the value at 88 above 88.
INLINE Floats exponential(Floats x) {
    const Reduced reduced = reduce_exp(larger(smaller(x, all(88.0f)), all(-87.0f)));
    const Floats value = (reduced.expm1 + 1.0f) * power_of_two(reduced.n);
    return x < all(-87.0f) ? Floats{} : value;
}

// 2^x for x <= 126, 0 below -100.
INLINE Floats power_of_two(Floats x) {
    const Floats shift = all(0x1.8p23f);  // see reduce_exp
    const Floats shifted = x + shift;
    const Floats r = x - (shifted - shift);
    Floats p = all(1.326472668e-3f);
    p = multiply_add(p, r, all(9.671512677e-3f));
    p = multiply_add(p, r, all(5.550733745e-2f));
    p = multiply_add(p, r, all(2.402224208e-1f));
    p = multiply_add(p, r, all(6.931469776e-1f));
    p = multiply_add(p, r, all(1.0f));
    const Floats value = reinterpret_cast<Floats>(reinterpret_cast<Ints>(p) + (reinterpret_cast<Ints>(shifted) << 23));
    return x < all(-100.0f) ? Floats{} : value;
}

// (e^2x - 1) / (e^2x + 1), through expm1 so that small x keep their digits.
INLINE Floats hyperbolic_tangent(Floats x) {
    const Reduced reduced = reduce_exp(larger(smaller(x + x, all(20.0f)), all(-20.0f)));
    const Floats power = power_of_two(reduced.n);
    const Floats expm1 = multiply_add(power, reduced.expm1, power - 1.0f);
    return expm1 / (expm1 + 2.0f);
}

// 1 / (1 + e^-x), with an exponential that never overflows and vanishes on the left.
INLINE Floats sigmoid(Floats x) {
    const Floats e = exponential(-magnitude(x));
    return (x < Floats{} ? e : all(1.0f)) / (1.0f + e);
}

// log(1 + e^x); for x > 0 it is x + log(1 + e^-x). log(1 + u) = 2 artanh(u / (2 + u)).
INLINE Floats softplus(Floats x) {
    const Floats u = exponential(-magnitude(x));
    const Floats s = u / (2.0f + u), z = s * s;
    Floats p = multiply_add(z, all(2.817465726e-1f), all(2.796141883e-1f));
    p = multiply_add(p, z, all(4.002485372e-1f));
    p = multiply_add(p, z, all(6.666631594e-1f));
    p = multiply_add(p, z, all(2.0f));
    return multiply_add(p, s, larger(x, Floats{}));
}

// max(x, 0)² (arXiv 2109.08668).
INLINE Floats relu2(Floats x) {
    const Floats positive = larger(x, Floats{});
    return positive * positive;
}

INLINE Floats silu(Floats x) { return x * sigmoid(x); }

// Another one, by a sigmoid.
INLINE Floats unchanged(Floats x) { return x; }

INLINE Floats gelu_quick(Floats x) { return x * sigmoid(1.702f * x); }

// The approximation of gelu (arXiv 1606.08415): x/2 (1 + tanh u) is x sigmoid(2u), which keeps its digits for x << 0.
INLINE Floats gelu_tanh(Floats x) {
    const Floats twice_u = 1.59576912f * multiply_add(x * x, 0.044715f * x, x);
    return x * sigmoid(twice_u);
}

// x times the normal distribution's integral up to x. For z >= 0 erfc(z) = e^(-z²) t Q(t), t = 1 / (1 + 0.4 z).
INLINE Floats gelu(Floats x) {
    const Floats z = magnitude(x) * 0.707106781f;
    const Floats t = 1.0f / multiply_add(z, all(0.4f), all(1.0f));
    Floats q = all(4.194180344e-2f);
    q = multiply_add(q, t, all(-1.435891298e-1f));
    q = multiply_add(q, t, all(9.055944268e-2f));
    q = multiply_add(q, t, all(8.068357193e-2f));
    q = multiply_add(q, t, all(8.460270114e-2f));
    q = multiply_add(q, t, all(1.914151356e-1f));
    q = multiply_add(q, t, all(2.023696411e-1f));
    q = multiply_add(q, t, all(2.263791328e-1f));
    q = multiply_add(q, t, all(2.256377676e-1f));
    const Floats tail = 0.5f * q * t * exponential(-0.5f * x * x);
    return x * (x > Floats{} ? 1.0f - tail : tail);
}

}  // namespace
}  // namespace tokenworks::cpu
