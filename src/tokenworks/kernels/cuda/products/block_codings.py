"""How weights of 4 and 8 bits lie on the device, and how they become bfloat16 in registers.

A 16-bit word holds `codes` weights of one row, and the kernels handle two words at a time, in the halves of a 32-bit
register, so that each instruction serves two weights. A code becomes a bfloat16 number by a shift and an AND: its bits
land at the lower end of the number, where they are, without any conversion, a tiny multiple of what they mean:

    E2M1    sign at 15, the other three at 8..6: value * 2^-126 (the half, a subnormal, too)
    E4M3    sign at 15, the other seven at 10..4: value * 2^-120
    U4, U8  at 3..0, 7..0: the whole number * 2^-133 (linear through the subnormals into the first normals)

One multiplication, or one multiply-add, by a bfloat16 scale that carries 2^118 or so brings it into the range of
ordinary numbers; what is left over of the powers of two goes into a float32 scale of each row, which the sums are
multiplied by at last. The numbers of E2M1 and E4M3 are exact; the others are rounded once, as are their scales before.

Along a row, a run of `run` words holds codes * run weights and has one 32-bit word of scales: code j of word w of run r
is weight (r * codes + j) * run + w, so that each code of the run's words meets neighbouring activations.
"""

from dataclasses import dataclass

E2M1_MASK = 0x81C0
E4M3_MASK = 0x87F0

SCALE_OFFSET = 0x6F80
"""Added to an E5M3 scale's bits, shifted to where bfloat16 has them: exponent 223 for code 0, the highest at which the
largest code is finite."""


@dataclass(frozen=True, slots=True)
class Coding:
    """`assembly` (PTX) makes `codes` registers of two bfloat16 each ($0 ...) of a register of two words and, if
    `scaled`, of two words of scales, which are the same. `zero` is a code of weight 0 where its scales are 0 too."""

    name: str
    codes: int
    run: int
    scaled: bool
    assembly: str
    zero: int = 0

    @property
    def weights(self) -> int:
        """That share a word of scales."""
        return self.codes * self.run

    @property
    def constraints(self) -> str:
        """Of the assembly's operands."""
        return ",".join(["=r"] * self.codes + ["r"] * (3 if self.scaled else 1))


def _twice(half: int) -> str:
    return f"0x{half << 16 | half:08x}"


def _times(number: int) -> str:
    """Register `number` becomes t * s. Chips before Hopper have the multiply-add alone: z is -0, which adds nothing."""
    return f"fma.rn.bf16x2 ${number}, t, s, z;"


def _e2m1() -> str:
    """The word of scales holds four E5M3 numbers (unsigned, bias as it comes), byte j for code j."""
    mask = _twice(E2M1_MASK)
    at = [
        f"and.b32 t, $4, {mask};",
        f"shl.b32 u, $4, 3; and.b32 t, u, {mask};",
        f"shl.b32 u, $4, 6; and.b32 t, u, {mask};",
        # The bits that the others leave: sign at 14, the rest at 13, 11, 10.
        f"shl.b32 u, $4, 1; and.b32 t, u, {_twice(0x8000)}; shr.b32 u, $4, 4; and.b32 u, u, {_twice(0x00C0)};"
        f" or.b32 t, t, u; shr.b32 u, $4, 5; and.b32 u, u, {_twice(0x0100)}; or.b32 t, t, u;",
    ]
    # Bytes 0 and 2 of the scales, then 1 and 3, in the halves of a register.
    lines = []
    for shift, (low, high) in ((0, (0, 2)), (8, (1, 3))):
        lines.append(f"shr.b32 s, $5, {shift}; and.b32 s, s, {_twice(0xFF)};")
        lines.append(f"mad.lo.u32 s, s, 16, {_twice(SCALE_OFFSET)}; mov.b32 {{l, h}}, s;")
        lines.append(f"mov.b32 s, {{l, l}}; {at[low]} {_times(low)}")
        lines.append(f"mov.b32 s, {{h, h}}; {at[high]} {_times(high)}")
    return f"{{ .reg .b32 s, t, u, z; .reg .b16 l, h; mov.b32 z, {_twice(0x8000)}; " + " ".join(lines) + " }"


def _whole_numbers(bits: int, minima: bool) -> str:
    """With `minima`, the word of scales holds one bfloat16 scale and one minimum for all codes. Without, it holds two
    scales, for the lower and the upper half of the codes, and the codes count from half their range."""
    codes = 16 // bits
    word, scales = f"${codes}", f"${codes + 1}"
    lines = []
    if minima:
        lines.append(f"mov.b32 {{l, h}}, {scales}; mov.b32 d, {{l, l}}; mov.b32 m, {{h, h}};")
    else:
        # -2^(bits-1) times what the code's lowest bit is worth: the scale times a power of two, its exponent lowered.
        lines.append(f"sub.u32 t, {scales}, {_twice((133 - (bits - 1)) << 7)}; neg.bf16x2 t, t;")
        lines.append(f"mov.b32 {{l, h}}, {scales}; mov.b32 {{k, n}}, t;")
    for j in range(codes):
        if not minima and j % (codes // 2) == 0:
            scale, minimum = ("l", "k") if j == 0 else ("h", "n")
            lines.append(f"mov.b32 d, {{{scale}, {scale}}}; mov.b32 m, {{{minimum}, {minimum}}};")
        lines.append(f"shr.b32 t, {word}, {bits * j}; and.b32 t, t, {_twice((1 << bits) - 1)};")
        lines.append(f"fma.rn.bf16x2 ${j}, t, d, m;")
    return "{ .reg .b32 t, d, m; .reg .b16 l, h, k, n; " + " ".join(lines) + " }"


def _bytes() -> str:
    """No scales: 2^118 and -128 * 2^-15."""
    lines = [f"shr.b32 t, $2, {8 * j}; and.b32 t, t, {_twice(0xFF)}; fma.rn.bf16x2 ${j}, t, d, m;" for j in range(2)]
    constants = f"mov.b32 d, {_twice((127 + 118) << 7)}; mov.b32 m, {_twice(0x8000 | (127 - 8) << 7)};"
    return "{ .reg .b32 t, d, m; " + constants + " " + " ".join(lines) + " }"


def _e4m3(scaled: bool) -> str:
    """The scale is 2^120, or the lower half of the word of scales."""
    scale = "mov.b32 {l, h}, $3; mov.b32 s, {l, l};" if scaled else f"mov.b32 s, {_twice((127 + 120) << 7)};"
    rest = _twice(E4M3_MASK & 0x7FFF)
    return (
        f"{{ .reg .b32 t, u, s, z; .reg .b16 l, h; mov.b32 z, {_twice(0x8000)}; {scale}"
        f" shl.b32 t, $2, 8; and.b32 t, t, {_twice(0x8000)}; shl.b32 u, $2, 4; and.b32 u, u, {rest}; or.b32 t, t, u;"
        f" {_times(0)}"
        f" and.b32 t, $2, {_twice(0x8000)}; shr.b32 u, $2, 4; and.b32 u, u, {rest}; or.b32 t, t, u; {_times(1)} }}"
    )


E2M1_16 = Coding("E2M1 by 16", codes=4, run=16, scaled=True, assembly=_e2m1())
E2M1_32 = Coding("E2M1 by 32", codes=4, run=32, scaled=True, assembly=_e2m1())
U4_32 = Coding("U4 by 32", codes=4, run=16, scaled=True, assembly=_whole_numbers(4, minima=False), zero=8)
U4_MIN_32 = Coding("U4 by 32 with minima", codes=4, run=8, scaled=True, assembly=_whole_numbers(4, minima=True))
U8_16 = Coding("U8 by 16", codes=2, run=16, scaled=True, assembly=_whole_numbers(8, minima=False), zero=128)
U8_32 = Coding("U8 by 32", codes=2, run=32, scaled=True, assembly=_whole_numbers(8, minima=False), zero=128)
U8_MIN_32 = Coding("U8 by 32 with minima", codes=2, run=16, scaled=True, assembly=_whole_numbers(8, minima=True))
U8_ROW = Coding("U8 by row", codes=2, run=16, scaled=False, assembly=_bytes(), zero=128)
E4M3_ROW = Coding("E4M3 by row", codes=2, run=16, scaled=False, assembly=_e4m3(scaled=False))
E4M3_64 = Coding("E4M3 by 64", codes=2, run=32, scaled=True, assembly=_e4m3(scaled=True))
