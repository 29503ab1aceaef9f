// Chooses the instruction set, once. Built with the baseline's flags: it must run on any machine to say what it lacks.
#include <csetjmp>
#include <csignal>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tokenworks::cpu {
namespace {

#if defined(__x86_64__)
struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned part = 0) {
    Registers r;
    __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
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

// Linux gives a process AMX's eight kilobytes of registers when it asks, once, for all its threads, those that run already
// too. A system that refuses (seccomp; a thread whose signal stack is too small for them) leaves them out of use.
bool system_allows_tiles() {
#if defined(__linux__)
    constexpr long ask_for_state = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0;
#else
    return false;
#endif
}

bool has_avx2() {
    return system_saves(0x6) && all(cpuid(1).c, bit_FMA | bit_F16C | bit_AVX) && all(cpuid(7).b, bit_AVX2);
}

bool has_avx512() {
    return has_avx2() && system_saves(0xe6) &&
           all(cpuid(7).b, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ) &&
           all(cpuid(7).c, bit_AVX512VNNI);
}

bool has_avx512_bf16() { return has_avx512() && all(cpuid(7, 1).a, 1u << 5); }

bool processor_has_amx() {
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25;
    return has_avx512_bf16() && all(cpuid(7).d, bf16 | tile | int8);
}

sigjmp_buf before_check;

// Whether the self-check holds, also where its instructions are refused: some virtual machines name AMX among what they
// have and then do not run it.
bool tiles_work() {
    struct sigaction jump {}, illegal, denied;
    jump.sa_handler = [](int) { siglongjmp(before_check, 1); };
    sigaction(SIGILL, &jump, &illegal);
    sigaction(SIGSEGV, &jump, &denied);
    const bool agree = sigsetjmp(before_check, 1) == 0 && linear_amx_agrees();
    sigaction(SIGILL, &illegal, nullptr);
    sigaction(SIGSEGV, &denied, nullptr);
    return agree;
}

// Why AMX, which the processor has, is left unused; null if there is no trouble, or no AMX.
const char* amx_trouble() {
    if (!processor_has_amx()) return nullptr;
    if (!system_saves(0x600e6) || !system_allows_tiles()) return "amx: present, but the system keeps its registers";
    return tiles_work() ? nullptr : "amx: present, but its self-check failed";
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool processor_has_amx() { return false; }
const char* amx_trouble() { return nullptr; }
#endif

#if defined(__aarch64__) && defined(__linux__)
bool has_neon() { return getauxval(AT_HWCAP) & 1ul << 20; }  // HWCAP_ASIMDDP: dot products
#elif defined(__aarch64__) && defined(__APPLE__)
bool has_neon() { return true; }
#else
bool has_neon() { return false; }
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
void fill_avx512_bf16([[maybe_unused]] Kernels& table) {
#include "fill_avx512_bf16.inc"
}
void fill_amx([[maybe_unused]] Kernels& table) {
#include "fill_amx.inc"
}
void fill_neon([[maybe_unused]] Kernels& table) {
#include "fill_neon.inc"
}

bool has_amx() { return processor_has_amx() && !amx_trouble(); }

struct Set {
    const char* name;
    bool (*present)();
    void (*fill)(Kernels&);
};

// Each set builds on those before it; another processor's leave nothing.
constexpr Set sets[] = {{"scalar", has_scalar, fill_scalar},
                        {"avx2", has_avx2, fill_avx2},
                        {"avx512", has_avx512, fill_avx512},
                        {"avx512_bf16", has_avx512_bf16, fill_avx512_bf16},
                        {"amx", has_amx, fill_amx},
                        {"neon", has_neon, fill_neon}};

int best_set() {
    int best = 0;
    for (int i = 0; i < static_cast<int>(std::size(sets)); i++)
        if (sets[i].present()) best = i;
    return best;
}

const char* forced_set() {
    const char* forced = std::getenv("TOKENWORKS_FORCE_ISA");
    return forced && *forced ? forced : nullptr;
}

int chosen_set() {
    const char* forced = forced_set();
    if (!forced) return best_set();
    std::string known;
    for (int i = 0; i < static_cast<int>(std::size(sets)); i++) {
        known += (known.empty() ? "" : ", ") + std::string(sets[i].name);
        if (std::string(forced) != sets[i].name) continue;
        if (sets[i].present()) return i;
        const char* trouble = std::string(forced) == "amx" ? amx_trouble() : nullptr;
        throw std::runtime_error("TOKENWORKS_FORCE_ISA=" + std::string(forced) + ": " +
                                 (trouble ? trouble : "this machine lacks it") + "; its best set is " +
                                 sets[best_set()].name + ".");
    }
    throw std::runtime_error("TOKENWORKS_FORCE_ISA=" + std::string(forced) + ": no such set; there are " + known + ".");
}

}  // namespace

const Kernels& kernels() {
    static const Kernels table = [] {
        Kernels filled{};
        const int chosen = chosen_set();
        for (int i = 0; i <= chosen; i++) sets[i].fill(filled);
        filled.name = sets[chosen].name;
        // Not asked when a set is forced: whoever keeps AMX off wants none of its instructions.
        if (!forced_set()) filled.trouble = amx_trouble();
        return filled;
    }();
    return table;
}

}  // namespace tokenworks::cpu
