// The only header a kernel includes. A cell is compiled for itself: what is fixed for a cell arrives as
// -D macros and becomes a constant here. The platform supplies the few names in which the vendors differ.
#pragma once
#include "params.h"

template <typename Elem>
struct AccumulatorOf {
    using T = float;
};
template <>
struct AccumulatorOf<double> {
    using T = double;
};

#if defined(CC1D_BACKEND_CPU)
#include "platform_cpu.h"
#elif defined(__HIP__) || defined(__HIPCC__)
#include "platform_amd.h"
#elif defined(__CUDACC__)
#include "platform_nvidia.h"
#else
#error "compile with hipcc, nvcc -x cu, or g++ -x c++ -DCC1D_BACKEND_CPU"
#endif

using elem_t = CC1D_ELEM;                // x and out: float, float16 or bfloat16; double in emulation, for gradcheck
using weight_t = CC1D_WEIGHT;            // weight and bias
using acc_t = AccumulatorOf<elem_t>::T;  // sums: fp32, but for double
using index_t = CC1D_INDEX;              // element offsets: 64 bits, so that no tensor is too large

#include "math.h"
#include "matrix_core.h"

constexpr int kWidth = CC1D_WIDTH;
constexpr bool kSilu = CC1D_SILU;
constexpr bool kChannelLast = CC1D_CHANNEL_LAST;  // whether dim or seqlen is the contiguous dimension
constexpr bool kStates = CC1D_STATES;             // whether there may be initial_states, final_states and their gradients
constexpr bool kSeqIdx = CC1D_SEQ_IDX;            // whether there is a seq_idx

// Before a loop over the steps of a thread: with packed sequences a step is long, and unrolled ones spill scalar registers.
#if CC1D_SEQ_IDX
#define CC1D_STEP_BY_STEP _Pragma("unroll 1")
#else
#define CC1D_STEP_BY_STEP
#endif

// What a thread moves at once: 16 bytes.
constexpr int kVec = 16 / sizeof(elem_t);
using vec_t = Vec<elem_t, kVec>;

__device__ inline acc_t activate(acc_t y) { return kSilu ? silu(y) : y; }

// The derivative of the activation at `y`, its input.
__device__ inline acc_t activate_slope(acc_t y) { return kSilu ? silu_slope(y) : acc_t(1); }

// A vector of which `n` elements exist (any n): the rest is 0 when loaded, and left alone when stored. `vectors` says
// whether it may be moved at once, which is_vector_aligned tells.
__device__ inline vec_t load_part(const elem_t* p, index_t stride, index_t n, bool vectors) {
    if (vectors && n >= kVec) return load_vec<kVec>(p);
    vec_t v;
    for (int i = 0; i < kVec; ++i, p += stride) v.v[i] = i < n ? *p : from_float<elem_t>(0);
    return v;
}
__device__ inline void store_part(elem_t* p, const vec_t& v, index_t stride, index_t n, bool vectors) {
    if (vectors && n >= kVec) {
        store_vec(p, v);
    } else {
        for (int i = 0; i < kVec; ++i, p += stride)
            if (i < n) *p = v.v[i];
    }
}

__host__ __device__ constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

#include "states.h"

// A grid, counted in 64 bits: one that is too large is refused, where dim3 would take it modulo 2^32. Along x a device counts
// to 2^31 - 1, AMD's to 2^32 - 1 threads; along y and z to 65535.
#if defined(CC1D_BLOCK)
constexpr int64_t kMaxBlocks = kMaxGridThreads / CC1D_BLOCK < 0x7fffffff ? kMaxGridThreads / CC1D_BLOCK : 0x7fffffff;
#else
constexpr int64_t kMaxBlocks = 0x7fffffff;
#endif
static bool grid_refused = false;  // not thread_local: in emulation that is a block's shared memory
static inline dim3 grid_of(int64_t x, int64_t y = 1, int64_t z = 1, int64_t limit = kMaxBlocks) {
    if (x >= 0 && x <= limit && x <= kMaxBlocks && y <= 65535 && z <= 65535)
        return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
    grid_refused = true;
    return dim3(0);  // which no device launches
}
static inline const char* stage_error() {
    const char* error = launch_error();  // asked for in any case: it forgets the launch of no blocks
    if (!grid_refused) return error;
    grid_refused = false;
    return "batch x dim x seqlen takes more blocks than a grid can have: split the call along batch, or take a variant with larger tiles";
}

// Each .hip file says what its stages are called, how to launch one, and how much workspace it needs.
#define CC1D_EXPORT(...)                                                                              \
    static const char* const kStages[] = {__VA_ARGS__};                                               \
    extern "C" {                                                                                      \
    CC1D_API int64_t cc1d_params_size() { return sizeof(Params); }                                    \
    CC1D_API int64_t cc1d_workspace_bytes(const Params* p) { return workspace_bytes(*p); }            \
    CC1D_API int cc1d_stage_count() { return sizeof(kStages) / sizeof(kStages[0]); }                  \
    CC1D_API const char* cc1d_stage_name(int stage) { return kStages[stage]; }                        \
    CC1D_API const char* cc1d_launch_stage(const Params* p, void* stream, int stage) {                \
        launch_stage(stage, *p, static_cast<stream_t>(stream));                                       \
        return stage_error();                                                                         \
    }                                                                                                 \
    CC1D_API const char* cc1d_launch(const Params* p, void* stream) {                                 \
        for (int stage = 0; stage < cc1d_stage_count(); ++stage)                                      \
            if (const char* error = cc1d_launch_stage(p, stream, stage)) return error;                \
        return nullptr;                                                                               \
    }                                                                                                 \
    }
