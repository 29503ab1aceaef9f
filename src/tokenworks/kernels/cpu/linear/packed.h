// How a linear weight lies in memory while the model runs, and how file formats become that.
//
// A weight [out_features, in_features] is cut into panels of 16 output features; the last one is filled up with zeros.
// Within a panel the 16 features are interleaved, so that a kernel adds up 16 outputs side by side, in the order of the
// input features, and never sums across a register.
//
// u4    codes 0..15. Block of 32 input features: 4 rows of 64 bytes; byte 4c + j of row i holds feature c's codes of
//       inputs 4i + j (low half) and 16 + 4i + j (high half).
// i8    codes -128..127. Every 4 input features: a row of 64 bytes; byte 4c + j is feature c's code of input j.
// f16, bf16, f32: every input feature: a row of 16 values.
// Every 32 input features' codes are followed by their scales, so that a panel is one stream of bytes: for each block 16
// float16 and, with minimums, 16 more.
// A weight's value is scale * (code - zero) + minimum; zero is 8 for u4 without minimums, else 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../kernels.h"

namespace tokenworks::cpu {

enum class FileFormat { f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k };

// By the ggml name. Throws std::invalid_argument for any other.
FileFormat file_format(const std::string& name);

// Bytes of `elements` consecutive elements. Throws std::invalid_argument if that is not a whole number of blocks.
size_t file_bytes(FileFormat format, int64_t elements);

// Decodes `elements` consecutive elements; a whole number of blocks.
void decode(FileFormat format, const uint8_t* source, int64_t elements, float* out);

enum class Layout { u4, i8, f16, bf16, f32 };

constexpr int panel_width = 16;

struct PackedMatrix {
    Layout layout;
    int64_t out_features, in_features;
    int block;      // input features that share a scale: 32 or 16; 0 for floats
    bool minimums;  // blocks have a minimum beside their scale
    int64_t group_bytes;  // of 32 input features in a panel: codes, then scales; 0 for floats
    int64_t panel_bytes;  // codes and scales, a multiple of 64
    uint8_t* data;        // [panels, panel_bytes], 64-byte aligned

    int panels() const { return static_cast<int>((out_features + panel_width - 1) / panel_width); }
    int64_t bytes() const { return panels() * panel_bytes; }
    const uint8_t* panel(int64_t p) const { return data + p * panel_bytes; }
};

// Everything but the data. Throws std::invalid_argument if rows are not a whole number of blocks.
PackedMatrix packed_shape(FileFormat format, int64_t out_features, int64_t in_features);

// Fills one panel of `matrix` from the whole weight's bytes.
void pack_panel(FileFormat format, const uint8_t* source, const PackedMatrix& matrix, int panel);

}  // namespace tokenworks::cpu
