// adapt_down and adapt_up: products of a few rows with panels of 16 output features.
#pragma once

#include "../vector.h"
#include "adapters.h"
#include "int8.h"

namespace tokenworks::cpu {
namespace {

constexpr int registers = adapter_panel / lanes;  // of a panel's sums
// Sums of one row in turn, so that the next addition need not wait for the last; rows at once: as registers last.
constexpr int chains = lanes == 16 ? 4 : lanes == 8 ? 2 : 1;
constexpr int tile_rows = lanes == 16 ? 4 : lanes == 8 ? 3 : 2;

template <Element element>
INLINE Floats load_elements(const uint8_t* data, int64_t at) {
    if constexpr (element == Element::float32) {
        return load(reinterpret_cast<const float*>(data) + at);
    } else if constexpr (element == Element::float16) {
        return load(reinterpret_cast<const uint16_t*>(data) + at);
    } else {
        const uint16_t* p = reinterpret_cast<const uint16_t*>(data) + at;
#if defined(__AVX512F__)
        const __m512i wide =
            _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        return reinterpret_cast<Floats>(_mm512_maskz_slli_epi32(0xffff, wide, 16));
#elif defined(__AVX2__)
        return reinterpret_cast<Floats>(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
#else
        Floats v;
        for (int i = 0; i < lanes; i++) v[i] = bfloat_to_float(p[i]);
        return v;
#endif
    }
}

// sums[row] = panel times x[row], of n rows.
template <Element element, int n>
INLINE void multiply_panel(const uint8_t* panel, int inputs, const float* const* x, float (*sums)[adapter_panel]) {
    Floats partial[n][chains][registers]{};
    const auto step = [&](int k, int chain) __attribute__((always_inline)) {
        for (int v = 0; v < registers; v++) {
            const Floats weights = load_elements<element>(panel, int64_t{k} * adapter_panel + v * lanes);
            for (int i = 0; i < n; i++)
                partial[i][chain][v] = multiply_add(all(x[i][k]), weights, partial[i][chain][v]);
        }
    };
    int k = 0;
    for (; k + chains <= inputs; k += chains)
        for (int chain = 0; chain < chains; chain++) step(k + chain, chain);
    for (; k < inputs; k++) step(k, 0);
    for (int i = 0; i < n; i++)
        for (int v = 0; v < registers; v++) {
            for (int distance = 1; distance < chains; distance *= 2)
                for (int chain = 0; chain < chains; chain += 2 * distance)
                    partial[i][chain][v] = partial[i][chain][v] + partial[i][chain + distance][v];
            store(sums[i] + v * lanes, partial[i][0][v]);
        }
}

template <Element element>
void multiply_panel(const uint8_t* panel, int inputs, const float* const* x, int rows, float (*sums)[adapter_panel]) {
    static_assert(tile_rows <= 4);
    switch (rows) {
        case 1: return multiply_panel<element, 1>(panel, inputs, x, sums);
        case 2: return multiply_panel<element, 2>(panel, inputs, x, sums);
        case 3: return multiply_panel<element, tile_rows < 3 ? 1 : 3>(panel, inputs, x, sums);
        case 4: return multiply_panel<element, tile_rows < 4 ? 1 : 4>(panel, inputs, x, sums);
    }
}

void multiply_panel(const Panels& matrix, int panel, const float* const* x, int rows, float (*sums)[adapter_panel]) {
    const uint8_t* data = matrix.data + panel * matrix.panel_bytes();
    switch (matrix.element) {
        case Element::float32: return multiply_panel<Element::float32>(data, matrix.inputs, x, rows, sums);
        case Element::float16: return multiply_panel<Element::float16>(data, matrix.inputs, x, rows, sums);
        case Element::bfloat16: return multiply_panel<Element::bfloat16>(data, matrix.inputs, x, rows, sums);
        case Element::int8: return;  // see int8.h
    }
}

INLINE float* inner_row(const AdaptArgs& args, int place, int segment) {
    return args.inner + (int64_t{place} * args.segments + segment) * args.inner_width;
}

// Calls body(first, rows, begin, end) for the pieces from .. to of a stretch: panels begin .. end with places first ..
// first + rows of args.rows.
template <typename Body>
INLINE void each_tile(const AdaptArgs& args, int group, int panels, int from, int to, const Body& body) {
    while (from < to) {
        const int tile = from / panels, begin = from - tile * panels;
        const int end = to - tile * panels < panels ? to - tile * panels : panels;
        const int first = args.starts[group] + tile * tile_rows, left = args.starts[group + 1] - first;
        body(first, left < tile_rows ? left : tile_rows, begin, end);
        from += end - begin;
    }
}

void adapt_down(const AdaptArgs& args, Share& share) {
    each_stretch(args, share, &LowRank::down, tile_rows, [&](const LowRank& map, int g, int segment, int from, int to) {
        each_tile(args, g, map.down.count(), from, to, [&](int first, int rows, int begin, int end) {
            const auto inner = [&](int i, int panel) __attribute__((always_inline)) {
                return inner_row(args, first + i, segment) + panel * adapter_panel;
            };
            if (map.down.element == Element::int8) {
                Codes x[tile_rows];
                for (int i = 0; i < rows; i++) x[i] = codes_of(args.prepared, args.places[first + i], map.down.inputs);
                return multiply_int8_panels(map.down, begin, end, x, rows, [&](int panel, const auto& sums) {
                    int i = 0;
                    for (const auto& of_row : sums) {
                        int at = 0;
                        float* out = inner(i++, panel);
                        for (Floats v : of_row) store(out + at++ * lanes, v * map.scale);
                    }
                });
            }
            const float* x[tile_rows];
            for (int i = 0; i < rows; i++) x[i] = args.x.row(args.rows[first + i]);
            for (int panel = begin; panel < end; panel++) {
                alignas(64) float sums[tile_rows][adapter_panel];
                multiply_panel(map.down, panel, x, rows, sums);
                for (int i = 0; i < rows; i++)
                    for (int v = 0; v < adapter_panel; v += lanes)
                        store(inner(i, panel) + v, load(sums[i] + v) * map.scale);
            }
        });
    });
}

void adapt_up(const AdaptArgs& args, Share& share) {
    each_stretch(args, share, &LowRank::up, tile_rows, [&](const LowRank& map, int g, int segment, int from, int to) {
        each_tile(args, g, map.up.count(), from, to, [&](int first, int rows, int begin, int end) {
            const auto add = [&](int i, int panel, const float* sums) __attribute__((always_inline)) {
                const int at = panel * adapter_panel, left = map.up.outputs - at;
                float* out = args.output.row(args.rows[first + i]) + args.columns[segment] + at;
                if (left >= adapter_panel)
                    for (int v = 0; v < adapter_panel; v += lanes) store(out + v, load(out + v) + load(sums + v));
                else
                    each(left, [&](int c, auto get, auto put) { put(out + c, get(out + c) + get(sums + c)); });
            };
            if (map.up.element == Element::int8) {
                QuantisedRow quantised[tile_rows];
                Codes x[tile_rows];
                for (int i = 0; i < rows; i++) x[i] = quantised[i].fill(inner_row(args, first + i, segment), map.up.inputs);
                return multiply_int8_panels(map.up, begin, end, x, rows, [&](int panel, const auto& sums) {
                    int i = 0;
                    for (const auto& of_row : sums) add(i++, panel, reinterpret_cast<const float*>(&of_row));
                });
            }
            const float* x[tile_rows];
            for (int i = 0; i < rows; i++) x[i] = inner_row(args, first + i, segment);
            for (int panel = begin; panel < end; panel++) {
                alignas(64) float sums[tile_rows][adapter_panel];
                multiply_panel(map.up, panel, x, rows, sums);
                for (int i = 0; i < rows; i++) add(i, panel, sums[i]);
            }
        });
    });
}

void fill(Kernels& table) {
    table.adapt_down = adapt_down;
    table.adapt_up = adapt_up;
    table.adapt_rows = tile_rows;
}

}  // namespace
}  // namespace tokenworks::cpu
