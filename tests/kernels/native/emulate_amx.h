// Intel's tile registers in software, for machines without them: included before a kernel (g++ -include), it puts
// itself in the place of the compiler's tile intrinsics. What the processor would answer with a fault (#GP, #UD: a bad
// configuration, tiles whose shapes do not fit, a tile used before a configuration was loaded in this thread) ends the
// program with a message.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, LDTILECFG, TILELOADD, TILESTORED, TDPBSSD,
// TDPBF16PS.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated_tiles {

struct Tile {
    int rows, bytes;  // bytes of a row
    int8_t data[16][64];
};

struct State {
    bool configured;
    Tile tiles[8];
};

inline thread_local State state{};           // each thread has registers of its own
inline std::atomic<int64_t> products{0};     // dot products executed, by all threads
inline std::atomic<bool> wrong{false};       // makes them compute something else: is it noticed?

[[noreturn]] inline void fault(const char* what) {
    std::fprintf(stderr, "emulated tiles: %s\n", what);
    std::abort();
}

inline Tile& configured(int number) {
    if (number < 0 || number > 7) fault("#UD: there are tiles 0 to 7");
    if (!state.configured) fault("#UD: no configuration is loaded in this thread");
    Tile& tile = state.tiles[number];
    if (tile.rows == 0) fault("#UD: a tile that is not configured");
    return tile;
}

inline void release() { state = State{}; }

inline void load_configuration(const void* memory) {
    uint8_t bytes[64];
    std::memcpy(bytes, memory, sizeof bytes);
    release();
    if (bytes[0] == 0) return;
    if (bytes[0] != 1) fault("#GP: no such palette");
    for (int i = 2; i < 16; i++)
        if (bytes[i]) fault("#GP: reserved bytes of the configuration are not 0");
    for (int i = 0; i < 16; i++) {
        const int row_bytes = bytes[16 + 2 * i] | bytes[17 + 2 * i] << 8, rows = bytes[48 + i];
        if (i >= 8 && (row_bytes || rows)) fault("#GP: the palette has 8 tiles");
        if (row_bytes > 64 || rows > 16) fault("#GP: a tile has 16 rows of 64 bytes at most");
        if ((row_bytes == 0) != (rows == 0)) fault("#GP: a tile with rows or bytes alone");
        if (i < 8) {
            state.tiles[i].rows = rows;
            state.tiles[i].bytes = row_bytes;
        }
    }
    if (bytes[1]) fault("#GP: a start row, which only an interrupted load leaves");
    state.configured = true;
}

inline void load(int number, const void* base, int64_t stride) {
    Tile& tile = configured(number);
    std::memset(tile.data, 0, sizeof tile.data);
    for (int r = 0; r < tile.rows; r++)
        std::memcpy(tile.data[r], static_cast<const char*>(base) + r * stride, static_cast<size_t>(tile.bytes));
}

inline void store(int number, void* base, int64_t stride) {
    const Tile& tile = configured(number);
    for (int r = 0; r < tile.rows; r++)
        std::memcpy(static_cast<char*>(base) + r * stride, tile.data[r], static_cast<size_t>(tile.bytes));
}

inline void zero(int number) {
    Tile& tile = configured(number);
    std::memset(tile.data, 0, sizeof tile.data);
}

// Sums of signed by signed bytes: sum[m][n] += a[m][4k + j] * b[k][4n + j].
inline void multiply_signed(int to, int first, int second) {
    Tile& sum = configured(to);
    const Tile &a = configured(first), &b = configured(second);
    if (to == first || to == second || first == second) fault("#UD: a tile is used twice");
    if (sum.rows != a.rows || a.bytes != b.rows * 4 || sum.bytes != b.bytes || sum.bytes % 4)
        fault("#UD: the tiles' shapes do not fit");
    for (int m = 0; m < sum.rows; m++)
        for (int n = 0; n < sum.bytes / 4; n++) {
            uint32_t total;  // wraps around
            std::memcpy(&total, &sum.data[m][4 * n], sizeof total);
            for (int k = 0; k < a.bytes; k++)
                total += static_cast<uint32_t>(a.data[m][k] * b.data[k / 4][4 * n + k % 4]);
            if (wrong) total ^= 1;
            std::memcpy(&sum.data[m][4 * n], &total, sizeof total);
        }
    products++;
}

// Sums of bfloat16s' products: those of even and of odd inputs apart, then both together, then to what was there. Rounded
// to nearest, even; subnormal numbers are zeros.
inline float whole(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? 0.0f : value; }

inline float bfloat_at(const int8_t* data) {
    uint16_t half;
    std::memcpy(&half, data, sizeof half);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return whole(value);
}

inline void multiply_bfloats(int to, int first, int second) {
    Tile& sum = configured(to);
    const Tile &a = configured(first), &b = configured(second);
    if (to == first || to == second || first == second) fault("#UD: a tile is used twice");
    if (sum.rows != a.rows || a.bytes != b.rows * 4 || sum.bytes != b.bytes || sum.bytes % 4)
        fault("#UD: the tiles' shapes do not fit");
    for (int m = 0; m < sum.rows; m++)
        for (int n = 0; n < sum.bytes / 4; n++) {
            float halves[2] = {0.0f, 0.0f}, total;
            for (int k = 0; k < a.bytes / 4; k++)
                for (int i = 0; i < 2; i++)
                    halves[i] = whole(std::fmaf(bfloat_at(a.data[m] + 4 * k + 2 * i),
                                                bfloat_at(b.data[k] + 4 * n + 2 * i), halves[i]));
            std::memcpy(&total, &sum.data[m][4 * n], sizeof total);
            total = whole(total + whole(halves[0] + halves[1]));
            if (wrong) total = -total;
            std::memcpy(&sum.data[m][4 * n], &total, sizeof total);
        }
    products++;
}

}  // namespace emulated_tiles

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig(memory) emulated_tiles::load_configuration(memory)
#define _tile_release() emulated_tiles::release()
#define _tile_loadd(tile, base, stride) emulated_tiles::load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated_tiles::store(tile, base, stride)
#define _tile_zero(tile) emulated_tiles::zero(tile)
#define _tile_dpbssd(sum, a, b) emulated_tiles::multiply_signed(sum, a, b)
#define _tile_dpbf16ps(sum, a, b) emulated_tiles::multiply_bfloats(sum, a, b)
