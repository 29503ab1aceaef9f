// Runs linear products of every layout, at many heights, by two instruction sets' kernels and compares them: the sets
// that this machine cannot run are here compiled against an emulation, or run by an emulator.
//
//   -DAMX   AMX's (emulate_amx.h included first) against AVX-512's with BF16, bit for bit; bfloat16s to 1e-5 of the
//           largest output, as their tiles add up in an order of their own.
//   -DNEON  NEON's against the scalar ones: bit for bit where every step of the sum is exact in float32 (scales are 1 or
//           2), to 1e-5 of the largest output where it is not; and each row alone has the bits it has among others.
//
// Prints a line per layout. Exit status 1 with the first difference on stderr.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "linear/linear.h"

using namespace tokenworks::cpu;

namespace {

const char* const names[] = {"q4", "q4_min", "mxfp4", "nvfp4", "q8", "q8_min", "q8_16", "i8", "f8", "f16", "bf16", "f32"};
static_assert(std::size(names) == layout_count);

constexpr int out_features = 40;  // two panels and a half
const int heights[] = {1, 2, 5, 8, 15, 16, 17, 24, 31, 40, 144, 300};

struct Weight {
    PackedMatrix matrix;
    std::vector<uint8_t> memory;
    std::vector<float> row_scales;
};

// Any codes; scales as small numbers, or such that sums stay whole numbers below 2^24.
Weight weight(Layout layout, int64_t in_features, bool exact, std::mt19937& random) {
    const LayoutRow& row = row_of(layout);
    Weight made{{layout, out_features, in_features, 1.0f, false, 0, nullptr}, {}, {}};
    PackedMatrix& matrix = made.matrix;
    const int element = row.codes == Codes::f32 ? 4 : row.codes == Codes::f8 ? 1 : 2;
    const int64_t in_rows = row.codes == Codes::bf16 ? (in_features + 1) / 2 * 2 : in_features;
    const int64_t bytes = row.block ? in_features / 32 * group_bytes(layout) : in_rows * panel_width * element;
    matrix.panel_bytes = (bytes + 63) / 64 * 64;
    made.memory.resize(static_cast<size_t>(matrix.bytes() + 64));
    matrix.data = made.memory.data() + (64 - reinterpret_cast<uintptr_t>(made.memory.data()) % 64) % 64;
    for (int64_t i = 0; i < matrix.bytes(); i++) matrix.data[i] = static_cast<uint8_t>(random());
    for (int p = 0; p < matrix.panels(); p++) {
        uint8_t* panel = matrix.data + p * matrix.panel_bytes;
        if (!row.block) {
            for (int64_t i = 0; i < in_rows * panel_width; i++) {
                const float value = static_cast<float>(static_cast<int>(random() % 15) - 7);
                uint32_t bits;
                std::memcpy(&bits, &value, 4);
                const auto brain = static_cast<uint16_t>(bits >> 16);
                const auto half = static_cast<uint16_t>(random() % 2 << 15 | (13 + random() % 4) << 10);
                if (row.codes == Codes::f32) std::memcpy(panel + i * 4, &value, 4);
                if (row.codes == Codes::bf16) std::memcpy(panel + i * 2, &brain, 2);
                if (row.codes == Codes::f16) std::memcpy(panel + i * 2, &half, 2);
                if (row.codes == Codes::bf16 && in_features % 2 && i >= in_rows * panel_width - 32 && i % 2)
                    std::memset(panel + i * 2, 0, 2);
                if (row.codes == Codes::f8) panel[i] = static_cast<uint8_t>(random() % 2 << 7 | (random() % 6 + 4) << 3);
            }
            continue;
        }
        for (int64_t b = 0; b < in_features / 32; b++) {
            uint8_t* scales = panel + b * group_bytes(layout) + code_bytes(layout);
            for (int i = 0; i < scale_bytes(layout); i++) {
                if (row.scales == Scales::e4m3) scales[i] = static_cast<uint8_t>(exact ? 0x38 : random() % 0x78);
                if (row.scales == Scales::e8m0) scales[i] = static_cast<uint8_t>(exact ? 127 : 120 + random() % 10);
                if (row.scales == Scales::f16 && i % 2)
                    scales[i] = static_cast<uint8_t>(exact ? (random() % 2 ? 0x3c : 0x40) : (random() & 0xbf));
                if (row.scales == Scales::f16 && exact && i % 2 == 0) scales[i] = 0;
            }
        }
    }
    return made;
}

struct Run {
    std::vector<int8_t> codes;
    std::vector<float> output;
};

Run run(const Kernels& kernels, const Weight& weight, std::vector<float>& x, int rows, int threads) {
    const int64_t k = weight.matrix.in_features, blocks = (k + 31) / 32;
    Run made{std::vector<int8_t>(static_cast<size_t>(rows * blocks * 32)),
             std::vector<float>(static_cast<size_t>(rows * out_features))};
    std::vector<BlockFacts> facts(static_cast<size_t>(rows * blocks));
    std::vector<float> floats(static_cast<size_t>(rows * k));
    std::vector<uint16_t> bfloats(static_cast<size_t>(rows * blocks * 32));
    const Prepared prepared{made.codes.data(), facts.data(), bfloats.data(), floats.data()};
    const unsigned form = kernels.input_form(weight.matrix);
    const PrepareArgs prepare{rows, {x.data(), k}, static_cast<int>(k), form, prepared};
    const Segment segment{&weight.matrix, nullptr, 0};
    const LinearArgs linear{rows, {made.output.data(), out_features}, nullptr, 0, prepared, &segment, 1};
    Team team(threads);
    team.run(threads, [&](Share& share) {
        kernels.prepare(prepare, share);
        share.barrier();
        kernels.linear(linear, share);
    });
    return made;
}

[[noreturn]] void differ(Layout layout, int rows, const char* what) {
    std::fprintf(stderr, "%s, %d rows: %s\n", names[static_cast<int>(layout)], rows, what);
    std::exit(1);
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void compare(Layout layout, const Kernels& reference, const Kernels& tested, bool exact, double tolerance) {
    std::mt19937 random(static_cast<unsigned>(layout) + 1);
#if defined(AMX)
    constexpr int64_t in_features[] = {32, 96, 1120, 1, 47, 90};  // the third: more blocks than are unpacked at once, and odd
#else
    constexpr int64_t in_features[] = {32, 96, 1, 47, 90};
#endif
    for (const int64_t k : in_features) {
        if (row_of(layout).block && k % 32) continue;
        const Weight w = weight(layout, k, exact, random);
        std::vector<float> x(static_cast<size_t>(300 * k));
        std::normal_distribution<float> normal;
        // Exact: every 32 inputs have a 127 among whole numbers, so that their scale is 1.
        for (size_t i = 0; i < x.size(); i++)
            x[i] = !exact ? normal(random) : i % 32 == 7 ? 127.0f : static_cast<float>(static_cast<int>(random() % 5) - 2);
        std::vector<float> whole;
        for (const int rows : heights) {
            const Run want = run(reference, w, x, rows, 1), got = run(tested, w, x, rows, rows % 2 + 1);
            if (got.codes != want.codes) differ(layout, rows, "the inputs' codes differ");
            float largest = 0.0f, error = 0.0f;
            for (size_t i = 0; i < want.output.size(); i++) {
                largest = std::fmax(largest, std::fabs(want.output[i]));
                error = std::fmax(error, std::fabs(want.output[i] - got.output[i]));
            }
            if (!(largest > 0.0f) || !std::isfinite(largest)) differ(layout, rows, "the products say nothing");
            if (tolerance == 0.0 ? !same(got.output, want.output) : error > tolerance * largest)
                differ(layout, rows, "the products differ");
            if (rows < 300) continue;
            for (const int fewer : heights) {
                std::vector<float> part = run(tested, w, x, fewer, 1).output, top = got.output;
                top.resize(part.size());
                if (!same(part, top)) differ(layout, fewer, "a row has other bits among other rows");
            }
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    Kernels reference{}, tested{};
#if defined(AMX)
    linear_avx512_bf16(reference);
    linear_avx512_bf16(tested);
    linear_amx(tested);
    emulated_tiles::wrong = argc > 1 && std::string(argv[1]) == "wrong";
    if (argc > 1) {
        std::printf("%s\n", linear_amx_agrees() ? "agrees" : "disagrees");
        return 0;
    }
#elif defined(NEON)
    linear_scalar(reference);
    linear_scalar(tested);
    linear_neon(tested);
#endif
    for (int l = 0; l < layout_count; l++) {
        const Layout layout{l};
#if defined(AMX)
        const int64_t before = emulated_tiles::products;
        compare(layout, reference, tested, false, layout == Layout::bf16 ? 1e-5 : 0.0);
        if (emulated_tiles::state.configured) differ(layout, 0, "a thread keeps its tiles");
        std::printf("%s %lld\n", names[l], static_cast<long long>(emulated_tiles::products - before));
#else
        (void)argc, (void)argv;
        compare(layout, reference, tested, true, 0.0);
        compare(layout, reference, tested, false, 1e-5);
        std::printf("%s\n", names[l]);
#endif
    }
    return 0;
}
