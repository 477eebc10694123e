"""Where the elements of a 16x16x16 matrix instruction lie in registers, as AMD's documents print it.

A line is a group of 16 lanes; its i-th lane holds row i of A, or column i of B, C and D. The numbers are the columns of
A and rows of B (both called k), or the rows of C and D, in each register. Of a register `vN` that holds two 16-bit
elements, `lo` is bits 15:0 and `hi` bits 31:16.

Any order of k that A and B share would give the same product; the documents' one is what is held fast here.
"""

from __future__ import annotations

# v_mfma_f32_16x16x16_f16 and v_mfma_f32_16x16x16_bf16 (bf16_1k on gfx90a), waves of 64.
# AMD Instinct MI300 (CDNA3) ISA, chapter 7, "Matrix Arithmetic Instructions", section 7.1; AMD Matrix Instruction
# Calculator, `--architecture cdna3 --instruction v_mfma_f32_16x16x16_f16 --register-layout` with -A, -B, -D.
GFX9 = """
A B      v0.lo  v0.hi  v1.lo  v1.hi
 0-15        0      1      2      3
16-31        4      5      6      7
32-47        8      9     10     11
48-63       12     13     14     15

C D      v0     v1     v2     v3
 0-15     0      1      2      3
16-31     4      5      6      7
32-47     8      9     10     11
48-63    12     13     14     15
"""

# v_wmma_f32_16x16x16_f16 and _bf16, waves of 32. AMD RDNA3 ISA, section 7.9, "Wave Matrix Multiply Accumulate": A and B
# are held twice, lanes 16-31 as lanes 0-15; a register of C and D holds two rows. AMD GPUOpen, "How to accelerate AI
# applications on RDNA 3 using WMMA"; AMD Matrix Instruction Calculator, `--architecture rdna3`.
GFX11 = """
A B      v0.lo v0.hi v1.lo v1.hi v2.lo v2.hi v3.lo v3.hi v4.lo v4.hi v5.lo v5.hi v6.lo v6.hi v7.lo v7.hi
 0-15        0     1     2     3     4     5     6     7     8     9    10    11    12    13    14    15
16-31        0     1     2     3     4     5     6     7     8     9    10    11    12    13    14    15

C D      v0     v1     v2     v3     v4     v5     v6     v7
 0-15     0      2      4      6      8     10     12     14
16-31     1      3      5      7      9     11     13     15
"""

# The same instructions on gfx12, waves of 32. AMD RDNA4 ISA, section 7.12, "Wave Matrix Multiply Accumulate": nothing
# is held twice. AMD GPUOpen, "Using the Matrix Cores of AMD RDNA 4 architecture GPUs": eight elements a lane, those of
# a group of lanes side by side; AMD Matrix Instruction Calculator, `--architecture rdna4`.
GFX12 = """
A B      v0.lo v0.hi v1.lo v1.hi v2.lo v2.hi v3.lo v3.hi
 0-15        0     1     2     3     4     5     6     7
16-31        8     9    10    11    12    13    14    15

C D      v0     v1     v2     v3     v4     v5     v6     v7
 0-15     0      1      2      3      4      5      6      7
16-31     8      9     10     11     12     13     14     15
"""

Element = tuple[int, int]  # (lane, number of the element in the lane's registers)
Place = tuple[int, int]  # (row, column) in the matrix


def parse(table: str) -> dict[str, dict[Element, Place]]:
    """{(lane, element): (row, column)} of each of A, B, C and D."""
    found: dict[str, dict[Element, Place]] = {}
    for part in table.strip().split("\n\n"):
        heading, *lines = part.splitlines()
        for matrix in (word for word in heading.split() if word in "ABCD"):
            found[matrix] = {}
            for line in lines:
                lanes, *numbers = line.split()
                first = int(lanes.split("-")[0])
                for element, number in enumerate(map(int, numbers)):
                    for i in range(16):
                        found[matrix][first + i, element] = (i, number) if matrix == "A" else (number, i)
    return found


MAPS = {"gfx9": parse(GFX9), "gfx11": parse(GFX11), "gfx12": parse(GFX12)}
