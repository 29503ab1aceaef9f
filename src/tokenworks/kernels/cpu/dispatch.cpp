// Chooses the instruction set, once. Built with the baseline's flags: it must run on any machine to say what it lacks.
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tokenworks::cpu {
namespace {

#if defined(__x86_64__)
struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf) {
    Registers r;
    __get_cpuid_count(leaf, 0, &r.a, &r.b, &r.c, &r.d);
    return r;
}

bool all(unsigned word, unsigned bits) { return (word & bits) == bits; }

// The processor having an instruction is not enough: the system must save its registers too (XCR0).
bool system_saves(unsigned state) {
    if (!(cpuid(1).c & bit_OSXSAVE)) return false;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & state) == state;
}

bool has_avx2() {
    return system_saves(0x6) && all(cpuid(1).c, bit_FMA | bit_F16C | bit_AVX) && all(cpuid(7).b, bit_AVX2);
}

bool has_avx512() {
    return has_avx2() && system_saves(0xe6) &&
           all(cpuid(7).b, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ) &&
           all(cpuid(7).c, bit_AVX512VNNI);
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

bool has_scalar() { return true; }

// CMake writes these lists: a call for each file that is there.
void fill_scalar(Kernels& table) {
#include "fill_scalar.inc"
}
void fill_avx2([[maybe_unused]] Kernels& table) {
#include "fill_avx2.inc"
}
void fill_avx512([[maybe_unused]] Kernels& table) {
#include "fill_avx512.inc"
}

struct Set {
    const char* name;
    bool (*present)();
    void (*fill)(Kernels&);
};

// Each set builds on those before it.
constexpr Set sets[] = {
    {"scalar", has_scalar, fill_scalar}, {"avx2", has_avx2, fill_avx2}, {"avx512", has_avx512, fill_avx512}};

int best_set() {
    int best = 0;
    for (int i = 0; i < static_cast<int>(std::size(sets)); i++)
        if (sets[i].present()) best = i;
    return best;
}

int chosen_set() {
    const char* forced = std::getenv("TOKENWORKS_FORCE_ISA");
    if (!forced || !*forced) return best_set();
    for (int i = 0; i < static_cast<int>(std::size(sets)); i++) {
        if (std::string(forced) != sets[i].name) continue;
        if (!sets[i].present())
            throw std::runtime_error("TOKENWORKS_FORCE_ISA=" + std::string(forced) +
                                     ": this machine lacks it; its best set is " + sets[best_set()].name + ".");
        return i;
    }
    throw std::runtime_error("TOKENWORKS_FORCE_ISA=" + std::string(forced) +
                             ": no such set; there are scalar, avx2 and avx512.");
}

}  // namespace

const Kernels& kernels() {
    static const Kernels table = [] {
        Kernels filled{};
        const int chosen = chosen_set();
        for (int i = 0; i <= chosen; i++) sets[i].fill(filled);
        filled.name = sets[chosen].name;
        return filled;
    }();
    return table;
}

}  // namespace tokenworks::cpu
