// The only header a kernel includes. A cell is compiled for itself: what is fixed for a cell arrives as
// -D macros and becomes a constant here. The platform supplies the few names in which the vendors differ.
#pragma once
#include "params.h"

#if defined(CC1D_BACKEND_CPU)
#include "platform_cpu.h"
#elif defined(__HIP__) || defined(__HIPCC__)
#include "platform_amd.h"
#elif defined(__CUDACC__)
#include "platform_nvidia.h"
#else
#error "compile with hipcc, nvcc -x cu, or g++ -x c++ -DCC1D_BACKEND_CPU"
#endif

#include "math.h"
#include "matrix_core.h"

using elem_t = CC1D_ELEM;      // x and out: float, float16 or bfloat16
using weight_t = CC1D_WEIGHT;  // weight and bias
using acc_t = float;           // sums, always
using index_t = CC1D_INDEX;    // element offsets: 64 bits, so that no tensor is too large

constexpr int kWidth = CC1D_WIDTH;
constexpr bool kSilu = CC1D_SILU;
constexpr bool kChannelLast = CC1D_CHANNEL_LAST;  // whether dim or seqlen is the contiguous dimension

// What a thread moves at once: 16 bytes.
constexpr int kVec = 16 / sizeof(elem_t);
using vec_t = Vec<elem_t, kVec>;

__device__ inline acc_t activate(acc_t y) { return kSilu ? silu(y) : y; }

__host__ __device__ constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

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
        return launch_error();                                                                        \
    }                                                                                                 \
    CC1D_API const char* cc1d_launch(const Params* p, void* stream) {                                 \
        for (int stage = 0; stage < cc1d_stage_count(); ++stage)                                      \
            if (const char* error = cc1d_launch_stage(p, stream, stage)) return error;                \
        return nullptr;                                                                               \
    }                                                                                                 \
    }
