// 16-bit floats to and from float32 without special instructions. Everything is static: see kernels.h on flags.
#pragma once

#include <cstdint>
#include <cstring>

namespace tokenworks::cpu {

static inline float float_from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// IEEE binary16: moving the exponent and mantissa into place leaves a value 2^112 too small, also for subnormals.
static inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t rest = static_cast<uint32_t>(half & 0x7fff) << 13;
    if ((half & 0x7c00) == 0x7c00) return float_from_bits(sign | rest | 0x7f800000);
    return float_from_bits(sign | bits_of_float(float_from_bits(rest) * 0x1p112f));
}

// Rounds to nearest, ties to even; too large becomes infinity.
static inline uint16_t float_to_half(float value) {
    const uint32_t bits = bits_of_float(value);
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        // Subnormal: adding 0.5 lets the addition do the rounding at the right bit.
        const float shifted = float_from_bits(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (bits_of_float(shifted) - 0x3f000000));
    }
    const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

// bfloat16: a float32's upper half.
struct Bfloat {
    uint16_t bits;
};

static inline float bfloat_to_float(uint16_t value) { return float_from_bits(static_cast<uint32_t>(value) << 16); }

}  // namespace tokenworks::cpu
