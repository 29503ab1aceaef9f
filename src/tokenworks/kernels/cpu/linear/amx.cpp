// AMX: one tdpbssd multiplies 16 rows of 32 input codes (a tile [16, 32]) by a block of a panel (a tile of 8 rows of 64
// bytes) and adds to 16 x 16 sums. Those go through memory to the float part, which is the AVX-512 kernels' own: the sums
// are whole numbers, so both give the same bits, and tiles of less than 8 rows stay with AVX-512.
//
// What bounds it is the float part, 2 to 4 instructions for 16 sums (docs/kernels.md). So a panel's codes are unpacked
// once for many tiles of rows, and the products run two blocks ahead of the float part, which hides their latency.
//
// Weights of bfloat16 are multiplied with inputs rounded to it: one tdpbf16ps adds the products of 16 rows of 32 inputs (a
// tile [16, 32]) with 16 rows of a panel to 16 x 16 sums, in an order of its own, so tiles of every height take it.
//
// A thread's tiles have shapes and contents of their own, and must be configured in each thread that uses them. They are
// released after each product: a thread that holds none costs the system nothing to switch or to put to sleep.
#include "avx512.h"

namespace tokenworks::cpu {
namespace {

// The compiler's intrinsics do not say that they read memory: nothing written before may be moved behind this.
INLINE void written() { __asm__ volatile("" ::: "memory"); }

struct alignas(64) Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(Configuration) == 64);

// For codes, by the tiles' numbers: 0, 1 the sums of 16 rows; 2, 3 their codes; 4, 5 weights; 6 the sums of 8 rows, 7 their
// codes. Two of each, so that two blocks are under way at once.
constexpr Configuration for_codes{1, 0, {}, {64, 64, 32, 32, 64, 64, 64, 32}, {16, 16, 16, 16, 8, 8, 8, 8}};

// For bfloat16: 0 to 3 the sums of `height` rows each, 4, 5 their inputs, 6 weights.
template <int height>
constexpr Configuration for_bfloats{1, 0, {}, {64, 64, 64, 64, 64, 64, 64}, {height, height, height, height, height, height, 16}};

thread_local const Configuration* configured = nullptr;

INLINE void configure(const Configuration& wanted) {
    if (configured == &wanted) return;
    configured = &wanted;
    const Configuration* read = &wanted;
    __asm__ volatile("" : "+r"(read)::"memory");
    _tile_loadconfig(read);
}

void release() {
    if (configured) _tile_release();
    configured = nullptr;
}

// Some blocks of a panel, ready for tiles.
constexpr int chunk_blocks = 32;

template <Layout layout>
struct alignas(64) Chunk {
    static constexpr int parts = 32 / row_of(layout).block;
    int8_t codes[chunk_blocks][parts][8][64];  // a part's rows beside its inputs are zeros
    float scales[chunk_blocks][parts + 1][panel_width];  // the last: minimums
};

template <Layout layout>
void unpack(const uint8_t* panel, int blocks, Chunk<layout>& chunk) {
    constexpr int parts = Chunk<layout>::parts;
    constexpr Codes kind = row_of(layout).codes;
    constexpr int zero = kind == Codes::i8 ? -128 : kind == Codes::e2m1 ? 12 : row_of(layout).minimums ? 0 : 8;
    for (int b = 0; b < blocks; b++, panel += group_bytes(layout)) {
        __m512i rows[8];
        load_codes<layout>(panel, rows);
        UNROLL for (int p = 0; p < parts; p++)
            UNROLL for (int i = 0; i < 8; i++)
                _mm512_store_si512(chunk.codes[b][p][i], i / (8 / parts) == p
                                                             ? _mm512_sub_epi8(rows[i], _mm512_set1_epi8(zero))
                                                             : _mm512_setzero_si512());
        const BlockScales<layout> scales = load_block_scales<layout>(panel);
        if constexpr (row_of(layout).scales != Scales::none)
            UNROLL for (int p = 0; p < parts; p++) _mm512_store_ps(chunk.scales[b][p], scales.scales[p]);
        if constexpr (row_of(layout).minimums) _mm512_store_ps(chunk.scales[b][parts], scales.minimum);
    }
    written();
}

// Products of a block's codes [height, 32] with each part of its weights; `side` 0 or 1 chooses the tiles.
template <int height, int side, int parts>
INLINE void multiply(const int8_t* codes, const int8_t (&weights)[parts][8][64], int32_t (&sums)[parts][height][16]) {
#define MULTIPLY(SUMS, CODES, WEIGHTS)                        \
    _tile_loadd(CODES, codes, 32);                            \
    for (int p = 0; p < parts; p++) {                         \
        _tile_loadd(WEIGHTS, weights[p], 64);                 \
        _tile_zero(SUMS);                                     \
        _tile_dpbssd(SUMS, CODES, WEIGHTS);                   \
        _tile_stored(SUMS, sums[p], 64);                      \
    }
    if constexpr (height == 8) {
        MULTIPLY(6, 7, 4)
    } else if constexpr (side == 0) {
        MULTIPLY(0, 2, 4)
    } else {
        MULTIPLY(1, 3, 5)
    }
#undef MULTIPLY
}

// Adds the products of a chunk with a tile to out [height, 16], or begins it, or completes it.
template <int height, Layout layout>
void add_chunk(const Chunk<layout>& chunk, int blocks, const int8_t* codes, const BlockFacts* facts, float* out,
               bool begin, bool last) {
    constexpr int parts = Chunk<layout>::parts;
    alignas(64) int32_t sums[4][parts][height][16];
    __m512 totals[height];
    UNROLL for (int r = 0; r < height; r++)
        totals[r] = begin ? _mm512_setzero_ps() : _mm512_load_ps(out + r * panel_width);
    const auto pair = [&](int b) __attribute__((always_inline)) {
        if (b < blocks) multiply<height, 0, parts>(codes + b * height * 32, chunk.codes[b], sums[b % 4]);
        if (b + 1 < blocks)
            multiply<height, 1, parts>(codes + (b + 1) * height * 32, chunk.codes[b + 1], sums[(b + 1) % 4]);
    };
    pair(0);
    for (int b = 0; b < blocks; b += 2) {
        pair(b + 2);
        for (int now = b; now < b + 2 && now < blocks; now++) {
            BlockScales<layout> scales;
            if constexpr (row_of(layout).scales != Scales::none)
                UNROLL for (int p = 0; p < parts; p++) scales.scales[p] = _mm512_load_ps(chunk.scales[now][p]);
            if constexpr (row_of(layout).minimums) scales.minimum = _mm512_load_ps(chunk.scales[now][parts]);
            UNROLL for (int r = 0; r < height; r++) {
                __m512i row[parts];
                UNROLL for (int p = 0; p < parts; p++) row[p] = _mm512_load_si512(sums[now % 4][p][r]);
                totals[r] = add_block<layout>(totals[r], row, scales, facts[now * height + r]);
            }
        }
    }
    UNROLL for (int r = 0; r < height; r++)
        _mm512_store_ps(out + r * panel_width, last ? completed<layout>(totals[r]) : totals[r]);
}

// Products of a panel with consecutive tiles.
template <int height, Layout layout>
void tiles(const PackedMatrix& shape, const uint8_t* panel, const Prepared& x, int count, float* out) {
    const int64_t blocks = shape.in_features / 32;
    Chunk<layout> chunk;
    configure(for_codes);
    for (int64_t first = 0; first < blocks; first += chunk_blocks) {
        const int now = static_cast<int>(blocks - first < chunk_blocks ? blocks - first : chunk_blocks);
        unpack<layout>(panel + first * group_bytes(layout), now, chunk);
        for (int t = 0; t < count; t++) {
            const int64_t at = (t * blocks + first) * height;
            add_chunk<height, layout>(chunk, now, x.codes + at * 32, x.facts + at, out + t * height * panel_width,
                                      first == 0, first + now == blocks);
        }
    }
}

template <int height, Layout layout>
void one_tile(const PackedMatrix& shape, const uint8_t* panel, const Prepared& x, const Fetch&, float* out) {
    tiles<height, layout>(shape, panel, x, 1, out);
}

// Products of a panel of bfloat16s with `count` consecutive tiles, at most 4.
template <int height, int count>
void bfloats(const PackedMatrix& shape, const uint8_t* panel, const uint16_t* x, float* out) {
    const int64_t pairs = (shape.in_features + 1) / 2, whole = pairs / 16, blocks = (pairs + 15) / 16;
    alignas(64) uint8_t last[16][64] = {};
    __builtin_memcpy(last, panel + whole * 16 * 64, static_cast<size_t>(pairs % 16 * 64));
    written();
    configure(for_bfloats<height>);
#define EACH_TILE(DO)                   \
    DO(0, 4)                            \
    if constexpr (count > 1) { DO(1, 5) } \
    if constexpr (count > 2) { DO(2, 4) } \
    if constexpr (count > 3) { DO(3, 5) }
#define ZERO(SUMS, INPUTS) _tile_zero(SUMS);
#define MULTIPLY(SUMS, INPUTS)                                          \
    _tile_loadd(INPUTS, x + (SUMS * blocks + b) * height * 32, 64); \
    _tile_dpbf16ps(SUMS, INPUTS, 6);
#define STORE(SUMS, INPUTS) _tile_stored(SUMS, out + SUMS * height * panel_width, 64);
    EACH_TILE(ZERO)
    for (int64_t b = 0; b < blocks; b++) {
        _tile_loadd(6, b < whole ? panel + b * 16 * 64 : last[0], 64);
        EACH_TILE(MULTIPLY)
    }
    EACH_TILE(STORE)
#undef STORE
#undef MULTIPLY
#undef ZERO
#undef EACH_TILE
    written();
}

template <int height>
void bfloat_tile(const PackedMatrix& shape, const uint8_t* panel, const Prepared& x, const Fetch&, float* out) {
    bfloats<height, 1>(shape, panel, x.bfloats, out);
}

void bfloat_tiles(const PackedMatrix& shape, const uint8_t* panel, const Prepared& x, int count, float* out) {
    for (int t = 0; t < count; t += 4) {
        const uint16_t* from = from_row(x, t * 16, shape.in_features).bfloats;
        float* to = out + t * 16 * panel_width;
        switch (count - t) {
            case 1: bfloats<16, 1>(shape, panel, from, to); break;
            case 2: bfloats<16, 2>(shape, panel, from, to); break;
            case 3: bfloats<16, 3>(shape, panel, from, to); break;
            default: bfloats<16, 4>(shape, panel, from, to);
        }
    }
}

template <int l>
void put_codes(LinearKernels& kernels) {
    constexpr Layout layout{l};
    if constexpr (row_of(layout).block) {
        kernels.tiles[l][3] = one_tile<8, layout>;
        kernels.tiles[l][4] = one_tile<16, layout>;
        kernels.many[l] = tiles<16, layout>;
    }
    if constexpr (l + 1 < layout_count) put_codes<l + 1>(kernels);
}

LinearKernels table;

void run(const LinearArgs& args, Share& share) {
    run_linear(args, share, table);
    release();
}

void run_groups(const LinearGroupsArgs& args, Share& share) {
    run_linear_groups(args, share, table);
    release();
}

// Bytes that look random and are the same everywhere; their 16-bit pieces are small float16s or bfloat16s.
void fill(void* memory, size_t bytes) {
    uint32_t state = 1;
    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525 + 1013904223;
        static_cast<uint8_t*>(memory)[i] = static_cast<uint8_t>(state >> 24 & (i % 2 ? 0xbf : 0xff));
    }
}

template <Layout layout>
bool agrees() {
    constexpr int blocks = chunk_blocks + 3, l = static_cast<int>(layout);
    constexpr int rows = 32, tile_sums = 16 * panel_width, tile_blocks = 16 * blocks;
    const PackedMatrix shape{layout, panel_width, blocks * 32, 1.0f, false, blocks * group_bytes(layout), nullptr};
    alignas(64) uint8_t panel[blocks * group_bytes(layout)];
    alignas(64) int8_t codes[rows * blocks * 32];
    BlockFacts facts[rows * blocks];
    alignas(64) float got[2 * tile_sums], want[2 * tile_sums];
    fill(panel, sizeof panel);
    fill(codes, sizeof codes);
    for (int i = 0; i < rows * blocks; i++) {
        int32_t halves[2] = {0, 0};
        for (int k = 0; k < 32; k++) halves[k / 16] += codes[i * 32 + k];
        facts[i] = facts_of(static_cast<float>(codes[i * 32]), halves[0], halves[1]);
    }
    const Prepared x{codes, facts, nullptr, nullptr};
    for (int t = 0; t < 2; t++)
        avx512_linear.tiles[l][4](shape, panel, {codes + t * tile_blocks * 32, facts + t * tile_blocks, nullptr, nullptr},
                                  {}, want + t * tile_sums);
    tiles<16, layout>(shape, panel, x, 2, got);
    if (__builtin_memcmp(got, want, sizeof want) != 0) return false;
    avx512_linear.tiles[l][3](shape, panel, x, {}, want);
    tiles<8, layout>(shape, panel, x, 1, got);
    return __builtin_memcmp(got, want, sizeof want / 4) == 0;
}

// To rounding: tiles add up in another order.
bool bfloats_agree() {
    constexpr int in_features = 90, blocks = 3, rows = 5 * 16;
    const PackedMatrix shape{Layout::bf16, panel_width, in_features, 1.0f, false, in_features / 2 * 64, nullptr};
    alignas(64) uint8_t panel[in_features / 2 * 64];
    uint16_t inputs[rows * blocks * 32];
    alignas(64) float got[rows * panel_width], want[16 * panel_width];
    fill(panel, sizeof panel);
    fill(inputs, sizeof inputs);
    const Prepared x{nullptr, nullptr, inputs, nullptr};
    const TileKernel one = avx512_bf16_linear().tiles[static_cast<int>(Layout::bf16)][4];
    bfloat_tiles(shape, panel, x, rows / 16, got);
    for (int t = 0; t < rows / 16; t++) {
        one(shape, panel, from_row(x, t * 16, in_features), {}, want);
        for (int i = 0; i < 16 * panel_width; i++) {
            const float difference = got[t * 16 * panel_width + i] - want[i];
            if (!(difference < 1e-3f && difference > -1e-3f)) return false;
        }
    }
    return true;
}

}  // namespace

bool linear_amx_agrees() {
    const bool all = agrees<Layout::q4_min>() && agrees<Layout::q8>() && agrees<Layout::nvfp4>() && bfloats_agree();
    release();
    return all;
}

void linear_amx(Kernels& kernels) {
    table = avx512_bf16_linear();
    put_codes<0>(table);
    constexpr int l = static_cast<int>(Layout::bf16);
    TileKernel* tiles = table.tiles[l];
    tiles[0] = bfloat_tile<1>, tiles[1] = bfloat_tile<2>, tiles[2] = bfloat_tile<4>, tiles[3] = bfloat_tile<8>;
    tiles[4] = bfloat_tile<16>;
    table.many[l] = bfloat_tiles;
    put<table>(kernels);
    kernels.linear = run;
    kernels.linear_groups = run_groups;
}

}  // namespace tokenworks::cpu
