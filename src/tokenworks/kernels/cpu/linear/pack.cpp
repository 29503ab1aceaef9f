#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "../half.h"
#include "packed.h"

namespace tokenworks::cpu {
namespace {

uint16_t u16(const uint8_t* p) {
    uint16_t value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

struct FormatRow {
    const char* name;
    int block;  // elements
    int bytes;  // of a block
    Layout layout;
    int scale_block;
    bool minimums;
};

// In the order of FileFormat. Block layouts: ggml's (ggml-common.h of the ggml repository).
constexpr FormatRow formats[] = {
    {"F32", 1, 4, Layout::f32, 0, false},      {"F16", 1, 2, Layout::f16, 0, false},
    {"BF16", 1, 2, Layout::bf16, 0, false},    {"Q8_0", 32, 34, Layout::i8, 32, false},
    {"Q4_0", 32, 18, Layout::u4, 32, false},   {"Q4_1", 32, 20, Layout::u4, 32, true},
    {"Q5_0", 32, 22, Layout::i8, 32, false},   {"Q5_1", 32, 24, Layout::i8, 32, true},
    {"Q4_K", 256, 144, Layout::u4, 32, true},  {"Q5_K", 256, 176, Layout::i8, 32, true},
    {"Q6_K", 256, 210, Layout::i8, 16, false},
};

const FormatRow& row_of(FileFormat format) { return formats[static_cast<int>(format)]; }

// One block of any quantised format, spelled out: value i is scale[i / 32 or 16] * code[i] + minimum[i / 32].
struct Block {
    int8_t code[256];
    float scale[16];
    float minimum[8];
};

// The eight 6-bit scales and minimums of Q4_K and Q5_K: 12 bytes; the last four have their upper bits in the first.
void k_scales(const uint8_t* packed, float d, float dmin, Block& out) {
    for (int j = 0; j < 8; j++) {
        int scale, minimum;
        if (j < 4) {
            scale = packed[j] & 63;
            minimum = packed[j + 4] & 63;
        } else {
            scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4);
            minimum = (packed[j + 4] >> 4) | (packed[j] >> 6 << 4);
        }
        out.scale[j] = d * static_cast<float>(scale);
        out.minimum[j] = -dmin * static_cast<float>(minimum);
    }
}

void q8_0(const uint8_t* p, Block& out) {
    out.scale[0] = half_to_float(u16(p));
    std::memcpy(out.code, p + 2, 32);
}

// Codes as they are in the file: 0..15.
void nibbles(const uint8_t* p, int8_t* code) {
    for (int i = 0; i < 16; i++) {
        code[i] = static_cast<int8_t>(p[i] & 15);
        code[i + 16] = static_cast<int8_t>(p[i] >> 4);
    }
}

void q4_0(const uint8_t* p, Block& out) {
    out.scale[0] = half_to_float(u16(p));
    nibbles(p + 2, out.code);
}

void q4_1(const uint8_t* p, Block& out) {
    out.scale[0] = half_to_float(u16(p));
    out.minimum[0] = half_to_float(u16(p + 2));
    nibbles(p + 4, out.code);
}

// Four bytes hold the codes' fifth bits.
void fifth_bits(const uint8_t* p, int8_t* code) {
    uint32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    for (int i = 0; i < 32; i++) code[i] = static_cast<int8_t>(code[i] | (bits >> i & 1) << 4);
}

void q5_0(const uint8_t* p, Block& out) {
    out.scale[0] = half_to_float(u16(p));
    nibbles(p + 6, out.code);
    fifth_bits(p + 2, out.code);
    for (int i = 0; i < 32; i++) out.code[i] = static_cast<int8_t>(out.code[i] - 16);
}

void q5_1(const uint8_t* p, Block& out) {
    out.scale[0] = half_to_float(u16(p));
    out.minimum[0] = half_to_float(u16(p + 2));
    nibbles(p + 8, out.code);
    fifth_bits(p + 4, out.code);
}

void q4_k(const uint8_t* p, Block& out) {
    k_scales(p + 4, half_to_float(u16(p)), half_to_float(u16(p + 2)), out);
    const uint8_t* low = p + 16;
    for (int chunk = 0; chunk < 4; chunk++)
        for (int i = 0; i < 32; i++) {
            out.code[chunk * 64 + i] = static_cast<int8_t>(low[chunk * 32 + i] & 15);
            out.code[chunk * 64 + 32 + i] = static_cast<int8_t>(low[chunk * 32 + i] >> 4);
        }
}

void q5_k(const uint8_t* p, Block& out) {
    k_scales(p + 4, half_to_float(u16(p)), half_to_float(u16(p + 2)), out);
    const uint8_t *high = p + 16, *low = p + 48;
    for (int chunk = 0; chunk < 4; chunk++)
        for (int i = 0; i < 32; i++) {
            const int bits = high[i] >> (2 * chunk);
            out.code[chunk * 64 + i] = static_cast<int8_t>((low[chunk * 32 + i] & 15) | (bits & 1) << 4);
            out.code[chunk * 64 + 32 + i] = static_cast<int8_t>((low[chunk * 32 + i] >> 4) | (bits >> 1 & 1) << 4);
        }
}

void q6_k(const uint8_t* p, Block& out) {
    const float d = half_to_float(u16(p + 208));
    for (int j = 0; j < 16; j++) out.scale[j] = d * static_cast<float>(static_cast<int8_t>(p[192 + j]));
    for (int part = 0; part < 2; part++) {
        const uint8_t *low = p + part * 64, *high = p + 128 + part * 32;
        int8_t* code = out.code + part * 128;
        for (int i = 0; i < 32; i++) {
            code[i] = static_cast<int8_t>(((low[i] & 15) | (high[i] & 3) << 4) - 32);
            code[i + 32] = static_cast<int8_t>(((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4) - 32);
            code[i + 64] = static_cast<int8_t>(((low[i] >> 4) | (high[i] >> 4 & 3) << 4) - 32);
            code[i + 96] = static_cast<int8_t>(((low[i + 32] >> 4) | (high[i] >> 6) << 4) - 32);
        }
    }
}

void read_block(FileFormat format, const uint8_t* p, Block& out) {
    switch (format) {
        case FileFormat::q8_0: return q8_0(p, out);
        case FileFormat::q4_0: return q4_0(p, out);
        case FileFormat::q4_1: return q4_1(p, out);
        case FileFormat::q5_0: return q5_0(p, out);
        case FileFormat::q5_1: return q5_1(p, out);
        case FileFormat::q4_k: return q4_k(p, out);
        case FileFormat::q5_k: return q5_k(p, out);
        case FileFormat::q6_k: return q6_k(p, out);
        default: throw std::logic_error("not a quantised format");
    }
}

float read_float(FileFormat format, const uint8_t* p) {
    if (format == FileFormat::f16) return half_to_float(u16(p));
    if (format == FileFormat::bf16) return bfloat_to_float(u16(p));
    float value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

// Of 32 input features in a panel.
int64_t code_bytes(Layout layout) { return layout == Layout::u4 ? 256 : 512; }

int zero_of(const FormatRow& row) { return row.layout == Layout::u4 && !row.minimums ? 8 : 0; }

template <typename Element>
void pack_floats(const uint8_t* source, const PackedMatrix& matrix, int panel, int columns) {
    Element* out = reinterpret_cast<Element*>(matrix.data + panel * matrix.panel_bytes);
    const int64_t k = matrix.in_features;
    for (int c = 0; c < columns; c++) {
        const uint8_t* in = source + (int64_t{panel} * panel_width + c) * k * sizeof(Element);
        for (int64_t i = 0; i < k; i++) std::memcpy(out + i * panel_width + c, in + i * sizeof(Element), sizeof(Element));
    }
}

// Codes of 32 inputs of one feature, four at a time, into the panel's rows.
void place_u4(const int8_t* code, uint8_t* rows, int column) {
    for (int i = 0; i < 16; i++)
        rows[i / 4 * 64 + column * 4 + i % 4] = static_cast<uint8_t>(code[i] | code[i + 16] << 4);
}

void place_i8(const int8_t* code, uint8_t* rows, int column) {
    for (int i = 0; i < 8; i++) std::memcpy(rows + i * 64 + column * 4, code + i * 4, 4);
}

// Formats whose blocks hold the same bytes as a panel, only in another order: float16s, then codes four at a time.
template <int block_bytes, int halves, int code_rows>
void pack_copies(const uint8_t* source, const PackedMatrix& matrix, int panel, int columns) {
    const int64_t blocks = matrix.in_features / 32;
    uint8_t* rows = matrix.data + panel * matrix.panel_bytes;
    source += int64_t{panel} * panel_width * blocks * block_bytes;
    for (int64_t b = 0; b < blocks; b++, rows += matrix.group_bytes) {
        uint16_t* scales = reinterpret_cast<uint16_t*>(rows + code_rows * 64);
        for (int c = 0; c < columns; c++) {
            const uint8_t* block = source + (c * blocks + b) * block_bytes;
            for (int i = 0; i < halves; i++) scales[i * panel_width + c] = u16(block + i * 2);
            for (int i = 0; i < code_rows; i++) std::memcpy(rows + i * 64 + c * 4, block + halves * 2 + i * 4, 4);
        }
    }
}

}  // namespace

FileFormat file_format(const std::string& name) {
    for (size_t i = 0; i < std::size(formats); i++)
        if (name == formats[i].name) return static_cast<FileFormat>(i);
    std::string known;
    for (const FormatRow& row : formats) known += known.empty() ? row.name : std::string(", ") + row.name;
    throw std::invalid_argument("format " + name + " is not one this backend runs (" + known + ")");
}

size_t file_bytes(FileFormat format, int64_t elements) {
    const FormatRow& row = row_of(format);
    if (elements % row.block)
        throw std::invalid_argument(std::to_string(elements) + " elements are not whole blocks of " +
                                    std::to_string(row.block) + " (" + row.name + ")");
    return static_cast<size_t>(elements / row.block * row.bytes);
}

void decode(FileFormat format, const uint8_t* source, int64_t elements, float* out) {
    const FormatRow& row = row_of(format);
    if (row.block == 1) {
        for (int64_t i = 0; i < elements; i++) out[i] = read_float(format, source + i * row.bytes);
        return;
    }
    Block block{};
    for (int64_t start = 0; start < elements; start += row.block, source += row.bytes) {
        read_block(format, source, block);
        for (int i = 0; i < row.block; i++)
            out[start + i] = block.scale[i / row.scale_block] * static_cast<float>(block.code[i] - zero_of(row)) +
                             (row.minimums ? block.minimum[i / row.scale_block] : 0.0f);
    }
}

PackedMatrix packed_shape(FileFormat format, int64_t out_features, int64_t in_features) {
    const FormatRow& row = row_of(format);
    file_bytes(format, in_features);
    PackedMatrix matrix{row.layout, out_features, in_features, row.scale_block, row.minimums, 0, 0, nullptr};
    int64_t bytes = in_features * panel_width * row.bytes;
    if (row.scale_block) {
        matrix.group_bytes = code_bytes(row.layout) + 32 / row.scale_block * (row.minimums ? 64 : 32);
        bytes = in_features / 32 * matrix.group_bytes;
    }
    matrix.panel_bytes = (bytes + 63) / 64 * 64;
    return matrix;
}

void pack_panel(FileFormat format, const uint8_t* source, const PackedMatrix& matrix, int panel) {
    const FormatRow& row = row_of(format);
    const int columns =
        static_cast<int>(std::min<int64_t>(panel_width, matrix.out_features - int64_t{panel} * panel_width));
    uint8_t* out = matrix.data + panel * matrix.panel_bytes;
    if (columns < panel_width) std::memset(out, 0, static_cast<size_t>(matrix.panel_bytes));
    if (row.layout == Layout::f32) return pack_floats<uint32_t>(source, matrix, panel, columns);
    if (row.block == 1) return pack_floats<uint16_t>(source, matrix, panel, columns);
    if (format == FileFormat::q8_0) return pack_copies<34, 1, 8>(source, matrix, panel, columns);
    if (format == FileFormat::q4_0) return pack_copies<18, 1, 4>(source, matrix, panel, columns);
    if (format == FileFormat::q4_1) return pack_copies<20, 2, 4>(source, matrix, panel, columns);

    const size_t row_bytes = file_bytes(format, matrix.in_features);
    const int per_scale = row.minimums ? 32 : 16;  // float16s a block adds to the scales
    Block block{};
    for (int64_t start = 0; start < matrix.in_features; start += row.block)
        for (int c = 0; c < columns; c++) {
            const size_t feature = static_cast<size_t>(panel) * panel_width + static_cast<size_t>(c);
            read_block(format, source + feature * row_bytes + start / row.block * row.bytes, block);
            for (int i = 0; i < row.block; i += 32) {
                uint8_t* rows = out + (start + i) / 32 * matrix.group_bytes;
                row.layout == Layout::u4 ? place_u4(block.code + i, rows, c) : place_i8(block.code + i, rows, c);
            }
            for (int i = 0; i < row.block / row.scale_block; i++) {
                const int64_t first = start + i * row.scale_block;
                uint8_t* scales = out + first / 32 * matrix.group_bytes + code_bytes(row.layout);
                uint16_t* at = reinterpret_cast<uint16_t*>(scales) + first % 32 / row.scale_block * per_scale + c;
                at[0] = float_to_half(block.scale[i]);
                if (row.minimums) at[16] = float_to_half(block.minimum[i]);
            }
        }
}

void dequantise_row(const PackedMatrix& matrix, int64_t row, float* out) {
    const uint8_t* panel = matrix.panel(row / panel_width);
    const int c = static_cast<int>(row % panel_width);
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(panel);
    const int zero = matrix.layout == Layout::u4 && !matrix.minimums ? 8 : 0;
    for (int64_t k = 0; k < matrix.in_features; k++) {
        int code = 0;
        const uint8_t* group = panel + k / 32 * matrix.group_bytes;
        switch (matrix.layout) {
            case Layout::f32: out[k] = reinterpret_cast<const float*>(panel)[k * panel_width + c]; continue;
            case Layout::f16: out[k] = half_to_float(halves[k * panel_width + c]); continue;
            case Layout::bf16: out[k] = bfloat_to_float(halves[k * panel_width + c]); continue;
            case Layout::u4: {
                const uint8_t both = group[k % 16 / 4 * 64 + c * 4 + k % 4];
                code = k % 32 < 16 ? both & 15 : both >> 4;
                break;
            }
            case Layout::i8: code = static_cast<int8_t>(group[k % 32 / 4 * 64 + c * 4 + k % 4]); break;
        }
        const uint16_t* at = reinterpret_cast<const uint16_t*>(group + code_bytes(matrix.layout)) +
                             k % 32 / matrix.block * (matrix.minimums ? 32 : 16) + c;
        out[k] = half_to_float(at[0]) * static_cast<float>(code - zero) +
                 (matrix.minimums ? half_to_float(at[16]) : 0.0f);
    }
}

}  // namespace tokenworks::cpu
