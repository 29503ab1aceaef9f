// Rotary position embedding.
#pragma once

#include "../kernels.h"
#include "../vector.h"

namespace tokenworks::cpu {
namespace {

typedef double Doubles __attribute__((vector_size(lanes * 8)));

struct Turn {
    Floats cos, sin;
};

// Of positions * frequencies. The angle, many turns large, is reduced to within an eighth turn in float64: a float32
// product alone would be off by 5e-4 rad at position 8000.
template <typename Positions>
INLINE Turn turn(Positions positions, Floats frequencies) {
    const Doubles angle = positions * __builtin_convertvector(frequencies, Doubles);
    const Doubles shift = 0x1.8p52 - Doubles{};  // adding it rounds to a whole number
    const Doubles quarters = (angle * 0.63661977236758134 + shift) - shift;
    const Floats r = __builtin_convertvector(angle - quarters * 1.5707963267948966, Floats);
    const Ints quarter = __builtin_convertvector(quarters, Ints);
    const Floats square = r * r;
    Floats s = all(-1.958744630e-4f);
    s = multiply_add(s, square, all(8.332746303e-3f));
    s = multiply_add(s, square, all(-1.666666465e-1f));
    s = multiply_add(s * square, r, r);
    Floats c = all(2.454748664e-5f);
    c = multiply_add(c, square, all(-1.388830100e-3f));
    c = multiply_add(c, square, all(4.166666465e-2f));
    c = multiply_add(c * square, square, multiply_add(square, all(-0.5f), all(1.0f)));
    const Floats cos = (quarter & 1) == 1 ? s : c;
    const Floats sin = (quarter & 1) == 1 ? c : s;
    return {((quarter + 1) & 2) == 2 ? -cos : cos, (quarter & 2) == 2 ? -sin : sin};
}

void rope(const RopeArgs& args, Share& share) {
    const Range range = share.rows(args.rows);
    const int half = args.turned / 2;
    const bool along_axes = args.axis_of && args.axes;
    float places[most_frequencies];
    for (int r = range.begin; r < range.end; r++) {
        for (int i = 0; along_axes && i < half; i++)
            places[i] = static_cast<float>(args.axes[int64_t{args.axis_of[i]} * args.rows + r]);
        float* x = args.x.row(r);
        each(half, [&](int at, auto get, auto put) {
            const Floats frequencies = get(args.inverse_frequencies + at);
            Turn by = along_axes ? turn(__builtin_convertvector(get(places + at), Doubles), frequencies)
                                 : turn(static_cast<double>(args.positions[r]), frequencies);
            by = {args.scale * by.cos, args.scale * by.sin};
            for (int head = at; head < args.width; head += args.head_size) {
                const Floats first = get(x + head), second = get(x + head + half);
                put(x + head, first * by.cos - second * by.sin);
                put(x + head + half, second * by.cos + first * by.sin);
            }
        });
    }
}

void fill(Kernels& table) { table.rope = rope; }

}  // namespace
}  // namespace tokenworks::cpu
