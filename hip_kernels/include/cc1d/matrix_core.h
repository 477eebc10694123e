// A 16x16x16 matrix-core fragment of one wave: C += A x B, A and B in 16 bits, C in fp32.
//
//   nvidia  nvcuda::wmma (the layout in registers is the compiler's)
//   amd     MFMA on gfx9 (wave 64); WMMA on gfx11 and gfx12 (wave 32)
//   cpu     the same lane maps as amd, executed by the emulation
//
// Kernels use load, multiply_accumulate and store alone and never look inside. A tile begins on 32 bytes (nvcuda::wmma);
// its rows lie `ld` elements apart, a multiple of 16 bytes.
//
// Segments is the same instruction for a matrix that is a row of memory, 16 segments of 16 steps, times a band: what a lane brings and what it
// receives are the same steps, kPieces times kPiece neighbouring ones. Where the instruction has them apart, the band's columns and
// the order of the steps that are summed over are permuted, which changes no sum.
//
//   segment(lane), first(lane)        the segment of a lane's first piece, and the step in it; the next piece lies kApart segments on
//   lane_before(lane)                 the lane with the same steps of the segment before; for segment 0, of the last one before the next piece's
//   Band                              what a lane holds of the band: of kOutputs outputs the taps of kInputs neighbouring inputs
//   output(lane, i), input(lane, k)   which steps of a segment these are
//   add_products<T>(sums, x, band)    sums += x times band; `x`: a lane's pieces, Packed
#pragma once

// CC1D_MATRIX: which lane map, 0 for an arch without matrix cores. Passed by the build, so that host and device passes agree.
#define CC1D_MATRIX_NVIDIA 1
#define CC1D_MATRIX_MFMA 2
#define CC1D_MATRIX_GFX11 3
#define CC1D_MATRIX_GFX12 4

#if CC1D_MATRIX == CC1D_MATRIX_NVIDIA

// nvcc 13 finds out that a tile lies in shared memory for float16, not for bfloat16, where it takes eight generic loads (and
// for B a transposition) for one ldmatrix. So `load_shared` says it, with the instruction that `load` is made of.
#define CC1D_LOAD_SHARED(WHICH)                                                                                        \
    __device__ void load_shared(const T* tile, int64_t ld) {                                                           \
        if constexpr (is_bfloat16<T>) {                                                                                \
            auto* r = reinterpret_cast<unsigned*>(&f.x[0]);                                                            \
            asm volatile("wmma.load." WHICH ".sync.aligned.row.m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"      \
                         : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                              \
                         : "r"(static_cast<unsigned>(__cvta_generic_to_shared(tile))), "r"(static_cast<unsigned>(ld))  \
                         : "memory");                                                                                  \
        } else {                                                                                                       \
            load(tile, ld);                                                                                            \
        }                                                                                                              \
    }

template <typename T>
struct FragmentA {
    nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, T, nvcuda::wmma::row_major> f;
    __device__ void load(const T* tile, int64_t ld) { nvcuda::wmma::load_matrix_sync(f, tile, static_cast<unsigned>(ld)); }
    CC1D_LOAD_SHARED("a")
};

template <typename T>
struct FragmentB {
    nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, T, nvcuda::wmma::row_major> f;
    __device__ void load(const T* tile, int64_t ld) { nvcuda::wmma::load_matrix_sync(f, tile, static_cast<unsigned>(ld)); }
    CC1D_LOAD_SHARED("b")
};
#undef CC1D_LOAD_SHARED

struct FragmentC {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> f;
    __device__ void fill(float v) { nvcuda::wmma::fill_fragment(f, v); }
    __device__ void store(float* tile, int64_t ld) const {
        nvcuda::wmma::store_matrix_sync(tile, f, static_cast<unsigned>(ld), nvcuda::wmma::mem_row_major);
    }
};

template <typename T>
__device__ inline void multiply_accumulate(FragmentC& c, const FragmentA<T>& a, const FragmentB<T>& b) {
    nvcuda::wmma::mma_sync(c.f, a.f, b.f, c.f);
}

// Segments are the rows of A, eight columns of the band are B: two instructions of 16x8x16, whose layout, unlike that of nvcuda::wmma, is
// documented. A lane has columns 2 q, 2 q + 1 and these + 8 of A, and the first two of the sums: here 4 q to 4 q + 3.
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
struct Segments {
    static constexpr int kPieces = 2, kApart = 8, kPiece = 4, kOutputs = 2, kInputs = 4;
    using Band = uint32_t[kOutputs][kInputs / 2];
    __device__ static int segment(int lane) { return lane / 4; }
    __device__ static int first(int lane) { return lane % 4 * 4; }
    __device__ static int lane_before(int lane) { return (lane + 28) % 32; }
    __device__ static int output(int lane, int i) { return lane / 8 * 4 + lane / 4 % 2 + 2 * i; }
    __device__ static int input(int lane, int k) { return lane % 4 * 4 + k; }

    template <typename T, typename Piece>
    __device__ static void add_products(float (&sums)[kPieces][kPiece], const Piece (&x)[kPieces], const Band& band) {
        for (int i = 0; i < kOutputs; ++i) {
            float *upper = sums[0] + 2 * i, *lower = sums[1] + 2 * i;
#define CC1D_MMA(TYPE)                                                                                                                       \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"      \
        : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])                                                                    \
        : "r"(x[0].words[0]), "r"(x[1].words[0]), "r"(x[0].words[1]), "r"(x[1].words[1]), "r"(band[i][0]), "r"(band[i][1]))
            if constexpr (is_bfloat16<T>) CC1D_MMA("bf16");
            else CC1D_MMA("f16");
#undef CC1D_MMA
        }
    }
};

#elif CC1D_MATRIX

// Where the elements of a fragment lie: lane l holds row (of A) or column (of B and C) l % 16.
// Source: AMD Instinct MI300 ISA, section 7.1 (MFMA); RDNA3 ISA 7.9 and RDNA4 ISA 7.12 (WMMA). tests/lane_maps.py has their tables.
#if CC1D_MATRIX == CC1D_MATRIX_MFMA
struct LaneMap {
    static constexpr int kInputs = 4, kOutputs = 4;
    __host__ __device__ static constexpr int k(int lane, int i) { return 4 * (lane / 16) + i; }
    __host__ __device__ static constexpr int row(int lane, int i) { return 4 * (lane / 16) + i; }
};
#elif CC1D_MATRIX == CC1D_MATRIX_GFX11
struct LaneMap {  // lanes 16-31 hold the same A and B as lanes 0-15
    static constexpr int kInputs = 16, kOutputs = 8;
    __host__ __device__ static constexpr int k(int, int i) { return i; }
    __host__ __device__ static constexpr int row(int lane, int i) { return 2 * i + lane / 16; }
};
#elif CC1D_MATRIX == CC1D_MATRIX_GFX12
struct LaneMap {
    static constexpr int kInputs = 8, kOutputs = 8;
    __host__ __device__ static constexpr int k(int lane, int i) { return 8 * (lane / 16) + i; }
    __host__ __device__ static constexpr int row(int lane, int i) { return 8 * (lane / 16) + i; }
};
#else
#error "CC1D_MATRIX must be one of the four above"
#endif

template <typename T>
struct FragmentA {
    T v[LaneMap::kInputs];
    __device__ void load(const T* tile, int64_t ld) {
        const int lane = lane_id();
        for (int i = 0; i < LaneMap::kInputs; ++i) v[i] = tile[(lane % 16) * ld + LaneMap::k(lane, i)];
    }
    __device__ void load_shared(const T* tile, int64_t ld) { load(tile, ld); }
};

template <typename T>
struct FragmentB {
    T v[LaneMap::kInputs];
    __device__ void load(const T* tile, int64_t ld) {
        const int lane = lane_id();
        for (int i = 0; i < LaneMap::kInputs; ++i) v[i] = tile[LaneMap::k(lane, i) * ld + lane % 16];
    }
    __device__ void load_shared(const T* tile, int64_t ld) { load(tile, ld); }
};

struct FragmentC {
    float v[LaneMap::kOutputs];
    __device__ void fill(float value) {
        for (int i = 0; i < LaneMap::kOutputs; ++i) v[i] = value;
    }
    __device__ void store(float* tile, int64_t ld) const {
        const int lane = lane_id();
        for (int i = 0; i < LaneMap::kOutputs; ++i) tile[LaneMap::row(lane, i) * ld + lane % 16] = v[i];
    }
};

template <typename T>
__device__ inline void multiply_accumulate(FragmentC& c, const FragmentA<T>& a, const FragmentB<T>& b) {
    matrix_instruction<LaneMap>(c.v, a.v, b.v);
}

// The band is A, segments are the columns of B. gfx11 has every other row of the sums in a lane, so there the band's rows are permuted; and
// a lane holds all of a segment, half of which comes from another one.
struct Segments {
    static constexpr int kPieces = 1, kApart = 0, kPiece = LaneMap::kOutputs, kOutputs = 1, kInputs = LaneMap::kInputs;
    static constexpr bool kEveryOther = LaneMap::row(0, 1) == 2, kHalves = kInputs > kPiece;
    using Band = uint32_t[kOutputs][kInputs / 2];
    __device__ static int segment(int lane) { return lane % 16; }
    __device__ static int first(int lane) { return lane / 16 * kPiece; }
    __device__ static int lane_before(int lane) { return lane % 16 ? lane - 1 : lane + 15; }
    __device__ static int output(int lane, int) { return kEveryOther ? lane % 2 * kPiece + lane % 16 / 2 : lane % 16; }
    __device__ static int input(int lane, int k) { return LaneMap::k(lane, k); }

    template <typename T, typename Piece>
    __device__ static void add_products(float (&sums)[kPieces][kPiece], const Piece (&x)[kPieces], const Band& band) {
        constexpr int kWords = kPiece / 2;
        uint32_t words[kInputs / 2];
        for (int w = 0; w < kWords; ++w) {
            words[w] = x[0].words[w];
            if constexpr (kHalves) {
                const uint32_t own = words[w], other = shuffle(own, (lane_id() + 16) % 32);
                words[w] = lane_id() < 16 ? own : other;
                words[kWords + w] = lane_id() < 16 ? other : own;
            }
        }
        T a[kInputs], b[kInputs];
        __builtin_memcpy(a, band[0], sizeof(a));
        __builtin_memcpy(b, words, sizeof(b));
        matrix_instruction<LaneMap>(sums[0], a, b);
    }
};

#endif
