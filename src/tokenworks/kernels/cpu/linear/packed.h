// How a linear weight lies in memory while the model runs, and how file formats become that.
//
// A weight [out_features, in_features] is cut into panels of 16 output features; the last one is filled up with zeros.
// Within a panel the 16 features are interleaved, so that a kernel adds up 16 outputs side by side, in the order of the
// input features, and never sums across a register.
//
// 4 bits: codes 0..15. Block of 32 input features: 4 rows of 64 bytes; byte 4c + j of row i holds feature c's codes of
//         inputs 4i + j (low half) and 16 + 4i + j (high half).
// i8:     codes -128..127. Every 4 input features: a row of 64 bytes; byte 4c + j is feature c's code of input j.
// f8, f16, f32: every input feature: a row of 16 values.
// bf16:   every 2 input features: a row of 64 bytes; value 2c + j is feature c's of input j. An odd last one has a zero.
// Every 32 input features' 4-bit or i8 codes are followed by their scales, so that a panel is one stream of bytes: for
// each block 16 scales and, with minimums, 16 float16 more.
// A weight's value is (scale * number of its code + minimum) * scale of its row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../kernels.h"

namespace tokenworks::cpu {

enum class FileFormat { f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k, mxfp4, nvfp4, i8, f8_e4m3 };

// By the ggml name. Throws std::invalid_argument for any other.
FileFormat file_format(const std::string& name);

// Bytes of `elements` consecutive elements. Throws std::invalid_argument if that is not a whole number of blocks.
size_t file_bytes(FileFormat format, int64_t elements);

// Decodes `elements` consecutive elements; a whole number of blocks.
void decode(FileFormat format, const uint8_t* source, int64_t elements, float* out);

// What the bits of a weight's codes are. u4: 0..15, from which 8 is taken where there are no minimums; e2m1: the
// 4-bit float, whose number here is its double, a whole number; f8: E4M3.
enum class Codes { u4, e2m1, i8, f8, f16, bf16, f32 };

// What the bits of a block's scale are. Read as the bits of wider floats, e4m3 and e8m0 and the codes of f8 are their
// number times a power of two, which PackedMatrix::scale makes up for.
//   e4m3: 7 bits (no sign). << 7 they are a float16, 2^-8 of the number.
//   e8m0: << 23 they are a float32, but for the number 2^-127, which becomes 0.
enum class Scales { none, f16, e4m3, e8m0 };

enum class Layout { q4, q4_min, mxfp4, nvfp4, q8, q8_min, q8_16, i8, f8, f16, bf16, f32 };

struct LayoutRow {
    const char* name;  // in the file of packed weights (kernels/cpu/packed_file.py)
    Codes codes;
    int block;  // input features that share a scale; 0: weights are multiplied with floats, not with quantised inputs
    Scales scales;
    bool minimums;  // blocks have a minimum beside their scale
    float factor;   // of everything (see Scales, and e2m1's doubled numbers)
};

// In the order of Layout.
constexpr LayoutRow layout_rows[] = {
    {"q4", Codes::u4, 32, Scales::f16, false, 1.0f},       {"q4_min", Codes::u4, 32, Scales::f16, true, 1.0f},
    {"mxfp4", Codes::e2m1, 32, Scales::e8m0, false, 0.5f}, {"nvfp4", Codes::e2m1, 16, Scales::e4m3, false, 128.0f},
    {"q8", Codes::i8, 32, Scales::f16, false, 1.0f},       {"q8_min", Codes::i8, 32, Scales::f16, true, 1.0f},
    {"q8_16", Codes::i8, 16, Scales::f16, false, 1.0f},    {"i8", Codes::i8, 32, Scales::none, false, 1.0f},
    {"f8", Codes::f8, 0, Scales::none, false, 256.0f},     {"f16", Codes::f16, 0, Scales::none, false, 1.0f},
    {"bf16", Codes::bf16, 0, Scales::none, false, 1.0f},   {"f32", Codes::f32, 0, Scales::none, false, 1.0f},
};
constexpr int layout_count = sizeof(layout_rows) / sizeof(layout_rows[0]);

constexpr const LayoutRow& row_of(Layout layout) { return layout_rows[static_cast<int>(layout)]; }

constexpr int panel_width = 16;

// Of 32 input features in a panel.
constexpr int code_bytes(Layout layout) { return row_of(layout).codes <= Codes::e2m1 ? 256 : 512; }
constexpr int scale_bytes(Layout layout) {
    const LayoutRow& row = row_of(layout);
    const int one = row.scales == Scales::none ? 0 : row.scales == Scales::f16 ? 2 : 1;
    return row.block ? 32 / row.block * panel_width * one * (row.minimums ? 2 : 1) : 0;
}
constexpr int group_bytes(Layout layout) { return code_bytes(layout) + scale_bytes(layout); }

struct PackedMatrix {
    Layout layout;
    int64_t out_features, in_features;
    float scale;          // multiplies every product
    bool row_scaled;      // a panel ends with 16 float32s, which multiply its features' products too
    int64_t panel_bytes;  // a multiple of 64
    uint8_t* data;        // [panels, panel_bytes], 64-byte aligned

    bool quantised() const { return row_of(layout).block != 0; }  // so are then its inputs
    int panels() const { return static_cast<int>((out_features + panel_width - 1) / panel_width); }
    int64_t bytes() const { return panels() * panel_bytes; }
    const uint8_t* panel(int64_t p) const { return data + p * panel_bytes; }
    const float* row_scales(int64_t p) const {
        return row_scaled ? reinterpret_cast<const float*>(panel(p + 1) - panel_width * sizeof(float)) : nullptr;
    }
};

// Everything but the data, by the layout's name. Throws std::invalid_argument for an unknown layout or sizes that it cannot
// have.
PackedMatrix matrix_of(const std::string& layout, int64_t out_features, int64_t in_features, float scale,
                       bool row_scaled);

// The same of a weight in a file format. row_scales: [out_features] or null; equal ones become PackedMatrix::scale. Throws
// std::invalid_argument if rows are not a whole number of blocks.
PackedMatrix packed_shape(FileFormat format, int64_t out_features, int64_t in_features, const float* row_scales);

// Fills one panel of `matrix` from the whole weight's bytes.
void pack_panel(FileFormat format, const uint8_t* source, const float* row_scales, const PackedMatrix& matrix,
                int panel);

}  // namespace tokenworks::cpu
