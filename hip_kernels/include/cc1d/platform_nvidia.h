// NVIDIA: nvcc -x cu.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#define CC1D_API __attribute__((visibility("default")))

using float16 = __half;
using bfloat16 = __nv_bfloat16;
using stream_t = cudaStream_t;

using raw16_t = uint4;

constexpr int kWarp = CC1D_WARP;
static_assert(kWarp == 32, "NVIDIA warps have 32 lanes");

template <auto Kernel, typename... Args>
void launch(dim3 grid, dim3 block, stream_t stream, Args... args) {
    Kernel<<<grid, block, 0, stream>>>(args...);
}

inline const char* launch_error() {
    const cudaError_t e = cudaGetLastError();
    return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}

__device__ inline int lane_id() { return threadIdx.x % kWarp; }

template <typename T>
__device__ inline T shuffle_up(T v, unsigned delta) { return __shfl_up_sync(0xffffffffu, v, delta); }
template <typename T>
__device__ inline T shuffle_down(T v, unsigned delta) { return __shfl_down_sync(0xffffffffu, v, delta); }
template <typename T>
__device__ inline T shuffle(T v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
