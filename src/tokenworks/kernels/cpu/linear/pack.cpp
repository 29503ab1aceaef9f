#include <algorithm>
#include <cmath>
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
};

// In the order of FileFormat. Block layouts: ggml's (ggml-common.h of the ggml repository).
constexpr FormatRow formats[] = {
    {"F32", 1, 4, Layout::f32},         {"F16", 1, 2, Layout::f16},        {"BF16", 1, 2, Layout::bf16},
    {"Q8_0", 32, 34, Layout::q8},       {"Q4_0", 32, 18, Layout::q4},      {"Q4_1", 32, 20, Layout::q4_min},
    {"Q5_0", 32, 22, Layout::q8},       {"Q5_1", 32, 24, Layout::q8_min},  {"Q4_K", 256, 144, Layout::q4_min},
    {"Q5_K", 256, 176, Layout::q8_min}, {"Q6_K", 256, 210, Layout::q8_16}, {"MXFP4", 32, 17, Layout::mxfp4},
    {"NVFP4", 64, 36, Layout::nvfp4},   {"I8", 1, 1, Layout::i8},          {"F8_E4M3", 1, 1, Layout::f8},
};

const FormatRow& row_of(FileFormat format) { return formats[static_cast<int>(format)]; }

// One block of any quantised format, spelled out: value i is scale[i / 32 or 16] * number of code[i] + minimum[i / 32].
struct Block {
    int8_t code[256];
    float scale[16];
    float minimum[8];
    uint8_t scale_byte[4];  // of mxfp4 and nvfp4: the scale as it is packed
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

void mxfp4(const uint8_t* p, Block& out) {
    out.scale_byte[0] = p[0];
    out.scale[0] = std::ldexp(1.0f, p[0] - 127);
    nibbles(p + 1, out.code);
}

// E4M3's bits in a float16: 2^-8 of the number.
float e4m3(uint8_t bits) { return half_to_float(static_cast<uint16_t>((bits & 0x80) << 8 | (bits & 0x7f) << 7)); }

// Scales have no sign, and the code of NaN is 0 (ggml).
void nvfp4(const uint8_t* p, Block& out) {
    for (int part = 0; part < 4; part++) {
        const uint8_t bits = p[part] == 0x7f ? 0 : p[part] & 0x7f;
        out.scale_byte[part] = bits;
        out.scale[part] = e4m3(bits);
        for (int i = 0; i < 8; i++) {
            const uint8_t both = p[4 + part * 8 + i];
            out.code[part * 16 + i] = static_cast<int8_t>(both & 15);
            out.code[part * 16 + 8 + i] = static_cast<int8_t>(both >> 4);
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
        case FileFormat::mxfp4: return mxfp4(p, out);
        case FileFormat::nvfp4: return nvfp4(p, out);
        default: throw std::logic_error("not a quantised format");
    }
}

float read_element(FileFormat format, const uint8_t* p) {
    switch (format) {
        case FileFormat::f16: return half_to_float(u16(p));
        case FileFormat::bf16: return bfloat_to_float(u16(p));
        case FileFormat::i8: return static_cast<float>(static_cast<int8_t>(*p));
        case FileFormat::f8_e4m3: return (*p & 0x7f) == 0x7f ? NAN : 256.0f * e4m3(*p);
        default: {
            float value;
            std::memcpy(&value, p, sizeof value);
            return value;
        }
    }
}

// The number of a quantised code.
int number_of(Layout layout, int code) {
    constexpr int8_t e2m1[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    if (row_of(layout).codes == Codes::e2m1) return e2m1[code];
    return layout == Layout::q4 ? code - 8 : code;
}

template <typename Element>
void pack_floats(const uint8_t* source, const PackedMatrix& matrix, int panel, int columns) {
    Element* out = reinterpret_cast<Element*>(matrix.data + panel * matrix.panel_bytes);
    const int64_t k = matrix.in_features;
    for (int c = 0; c < columns; c++) {
        const uint8_t* in = source + (int64_t{panel} * panel_width + c) * k * sizeof(Element);
        for (int64_t i = 0; i < k; i++) std::memcpy(out + i * panel_width + c, in + i * sizeof(Element), sizeof(Element));
    }
}

// Two inputs at a time.
void pack_pairs(const uint8_t* source, const PackedMatrix& matrix, int panel, int columns) {
    uint16_t* out = reinterpret_cast<uint16_t*>(matrix.data + panel * matrix.panel_bytes);
    const int64_t k = matrix.in_features;
    for (int c = 0; c < columns; c++) {
        const uint8_t* in = source + (int64_t{panel} * panel_width + c) * k * 2;
        for (int64_t i = 0; i < k; i++) std::memcpy(out + i / 2 * 32 + c * 2 + i % 2, in + i * 2, 2);
        if (k % 2) out[k / 2 * 32 + c * 2 + 1] = 0;
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

// Formats whose blocks hold the same bytes as a panel, only in another order: scales (and minimums), then codes four at
// a time.
template <typename Scale, int scales, int code_rows>
void pack_copies(const uint8_t* source, const PackedMatrix& matrix, int panel, int columns) {
    constexpr int block_bytes = scales * sizeof(Scale) + code_rows * 4;
    const int64_t blocks = matrix.in_features / 32;
    uint8_t* rows = matrix.data + panel * matrix.panel_bytes;
    source += int64_t{panel} * panel_width * blocks * block_bytes;
    for (int64_t b = 0; b < blocks; b++, rows += group_bytes(matrix.layout))
        for (int c = 0; c < columns; c++) {
            const uint8_t* block = source + (c * blocks + b) * block_bytes;
            for (int i = 0; i < scales; i++, block += sizeof(Scale))
                std::memcpy(rows + code_rows * 64 + (i * panel_width + c) * static_cast<int>(sizeof(Scale)), block,
                            sizeof(Scale));
            for (int i = 0; i < code_rows; i++) std::memcpy(rows + i * 64 + c * 4, block + i * 4, 4);
        }
}

// Any block format, through its blocks' numbers.
void pack_blocks(FileFormat format, const uint8_t* source, const PackedMatrix& matrix, int panel, int columns) {
    const FormatRow& row = row_of(format);
    const LayoutRow& layout = row_of(row.layout);
    const size_t row_bytes = file_bytes(format, matrix.in_features);
    uint8_t* out = matrix.data + panel * matrix.panel_bytes;
    Block block{};
    for (int64_t start = 0; start < matrix.in_features; start += row.block)
        for (int c = 0; c < columns; c++) {
            const size_t feature = static_cast<size_t>(panel) * panel_width + static_cast<size_t>(c);
            read_block(format, source + feature * row_bytes + start / row.block * row.bytes, block);
            for (int i = 0; i < row.block; i += 32) {
                uint8_t* rows = out + (start + i) / 32 * group_bytes(row.layout);
                code_bytes(row.layout) == 256 ? place_u4(block.code + i, rows, c) : place_i8(block.code + i, rows, c);
            }
            for (int i = 0; i < row.block / layout.block; i++) {
                const int64_t first = start + i * layout.block;
                uint8_t* scales = out + first / 32 * group_bytes(row.layout) + code_bytes(row.layout);
                const int64_t part = first % 32 / layout.block;
                if (layout.scales != Scales::f16) {
                    scales[part * panel_width + c] = block.scale_byte[i];
                    continue;
                }
                uint16_t* at = reinterpret_cast<uint16_t*>(scales) + part * panel_width + c;
                at[0] = float_to_half(block.scale[i]);
                if (layout.minimums) at[panel_width] = float_to_half(block.minimum[i]);
            }
        }
}

float read_scale(Scales kind, const uint8_t* scales, int64_t i) {
    switch (kind) {
        case Scales::f16: return half_to_float(u16(scales + i * 2));
        case Scales::e4m3: return e4m3(scales[i]);
        case Scales::e8m0: return std::ldexp(1.0f, scales[i] - 127);
        case Scales::none: break;
    }
    return 1.0f;
}

PackedMatrix shaped(Layout layout, int64_t out_features, int64_t in_features, float scale, bool row_scaled) {
    const LayoutRow& row = row_of(layout);
    const int element_bytes = row.codes == Codes::f8 ? 1 : row.codes == Codes::f32 ? 4 : 2;
    const int64_t rows = row.codes == Codes::bf16 ? in_features + in_features % 2 : in_features;
    const int64_t bytes = row.block ? in_features / 32 * group_bytes(layout) : rows * panel_width * element_bytes;
    const int64_t panel_bytes = (bytes + 63) / 64 * 64 + (row_scaled ? 64 : 0);
    return {layout, out_features, in_features, scale, row_scaled, panel_bytes, nullptr};
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
        for (int64_t i = 0; i < elements; i++) out[i] = read_element(format, source + i * row.bytes);
        return;
    }
    const LayoutRow& layout = row_of(row.layout);
    Block block{};
    for (int64_t start = 0; start < elements; start += row.block, source += row.bytes) {
        read_block(format, source, block);
        for (int i = 0; i < row.block; i++)
            out[start + i] = (block.scale[i / layout.block] * static_cast<float>(number_of(row.layout, block.code[i])) +
                              (layout.minimums ? block.minimum[i / layout.block] : 0.0f)) *
                             layout.factor;
    }
}

PackedMatrix packed_shape(FileFormat format, int64_t out_features, int64_t in_features, const float* row_scales) {
    const FormatRow& row = row_of(format);
    const LayoutRow& layout = row_of(row.layout);
    file_bytes(format, in_features);
    if (layout.block && in_features % 32)
        throw std::invalid_argument("rows of " + std::to_string(in_features) + " are not whole groups of 32 inputs");
    float scale = layout.factor;
    bool row_scaled = false;
    if (row_scales) {
        row_scaled = std::any_of(row_scales, row_scales + out_features, [&](float s) { return s != *row_scales; });
        if (!row_scaled && out_features) scale *= *row_scales;
    }
    return shaped(row.layout, out_features, in_features, scale, row_scaled);
}

PackedMatrix matrix_of(const std::string& layout, int64_t out_features, int64_t in_features, float scale,
                       bool row_scaled) {
    constexpr int64_t most = int64_t{1} << 31;  // so that no product of sizes overflows
    for (int i = 0; i < layout_count; i++) {
        if (layout != layout_rows[i].name) continue;
        if (out_features < 0 || in_features < 0 || out_features > most || in_features > most)
            throw std::invalid_argument("a matrix of " + std::to_string(out_features) + " x " +
                                        std::to_string(in_features));
        if (layout_rows[i].block && in_features % 32)
            throw std::invalid_argument("rows of " + std::to_string(in_features) + " in layout " + layout);
        return shaped(static_cast<Layout>(i), out_features, in_features, scale, row_scaled);
    }
    throw std::invalid_argument("layout " + layout + " is unknown");
}

void pack_panel(FileFormat format, const uint8_t* source, const float* row_scales, const PackedMatrix& matrix,
                int panel) {
    const int64_t first = int64_t{panel} * panel_width;
    const int columns = static_cast<int>(std::min<int64_t>(panel_width, matrix.out_features - first));
    uint8_t* out = matrix.data + panel * matrix.panel_bytes;
    if (columns < panel_width) std::memset(out, 0, static_cast<size_t>(matrix.panel_bytes));
    if (matrix.row_scaled)
        std::memcpy(out + matrix.panel_bytes - 64, row_scales + first, static_cast<size_t>(columns) * sizeof(float));
    switch (format) {
        case FileFormat::f32: return pack_floats<uint32_t>(source, matrix, panel, columns);
        case FileFormat::f16: return pack_floats<uint16_t>(source, matrix, panel, columns);
        case FileFormat::bf16: return pack_pairs(source, matrix, panel, columns);
        case FileFormat::f8_e4m3: return pack_floats<uint8_t>(source, matrix, panel, columns);
        case FileFormat::i8: return pack_copies<uint8_t, 0, 8>(source, matrix, panel, columns);
        case FileFormat::q8_0: return pack_copies<uint16_t, 1, 8>(source, matrix, panel, columns);
        case FileFormat::q4_0: return pack_copies<uint16_t, 1, 4>(source, matrix, panel, columns);
        case FileFormat::q4_1: return pack_copies<uint16_t, 2, 4>(source, matrix, panel, columns);
        case FileFormat::mxfp4: return pack_copies<uint8_t, 1, 4>(source, matrix, panel, columns);
        default: return pack_blocks(format, source, matrix, panel, columns);
    }
}

void dequantise_row(const PackedMatrix& matrix, int64_t row, float* out) {
    const uint8_t* panel = matrix.panel(row / panel_width);
    const int c = static_cast<int>(row % panel_width);
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(panel);
    const float* row_scales = matrix.row_scales(row / panel_width);
    const LayoutRow& layout = row_of(matrix.layout);
    const float factor = matrix.scale * (row_scales ? row_scales[c] : 1.0f);
    for (int64_t k = 0; k < matrix.in_features; k++) {
        const uint8_t* group = panel + k / 32 * group_bytes(matrix.layout);
        int code = 0;
        switch (layout.codes) {
            case Codes::f32: out[k] = factor * reinterpret_cast<const float*>(panel)[k * panel_width + c]; continue;
            case Codes::f16: out[k] = factor * half_to_float(halves[k * panel_width + c]); continue;
            case Codes::bf16: out[k] = factor * bfloat_to_float(halves[k / 2 * 32 + c * 2 + k % 2]); continue;
            case Codes::f8: out[k] = factor * e4m3(panel[k * panel_width + c]); continue;
            case Codes::i8: code = static_cast<int8_t>(group[k % 32 / 4 * 64 + c * 4 + k % 4]); break;
            case Codes::u4:
            case Codes::e2m1: {
                const uint8_t both = group[k % 16 / 4 * 64 + c * 4 + k % 4];
                code = k % 32 < 16 ? both & 15 : both >> 4;
            }
        }
        const uint8_t* scales = group + code_bytes(matrix.layout);
        const int64_t at = k % 32 / layout.block * panel_width + c;
        const float minimum = layout.minimums ? half_to_float(u16(scales + (at + panel_width) * 2)) : 0.0f;
        const float number = static_cast<float>(number_of(matrix.layout, code));
        out[k] = factor * (read_scale(layout.scales, scales, at) * number + minimum);
    }
}

}  // namespace tokenworks::cpu
