// A 16x16x16 matrix-core fragment of one wave: C += A x B, A and B in 16 bits, C in fp32.
//
//   nvidia  nvcuda::wmma (the layout in registers is the compiler's)
//   amd     MFMA on gfx9 (wave 64); WMMA on gfx11 and gfx12 (wave 32)
//   cpu     the same lane maps as amd, executed by the emulation
//
// Kernels use load, multiply_accumulate and store alone and never look inside. A tile begins on 32 bytes (nvcuda::wmma);
// its rows lie `ld` elements apart, a multiple of 16 bytes.
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

#endif
