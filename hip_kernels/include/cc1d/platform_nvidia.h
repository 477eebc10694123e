// NVIDIA: nvcc -x cu.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

// At most `block` threads a block, and registers for `resident` threads a multiprocessor.
#define CC1D_BOUNDS(block, resident) __launch_bounds__(block, (resident) / (block))
#define CC1D_API __attribute__((visibility("default")))

using float16 = __half;
using bfloat16 = __nv_bfloat16;
template <typename T>
constexpr bool is_bfloat16 = false;
template <>
inline constexpr bool is_bfloat16<bfloat16> = true;
using stream_t = cudaStream_t;

using raw4_t = uint32_t;
using raw8_t = uint2;
using raw16_t = uint4;
// To global memory, in one access: nvcc takes an assignment of these structs apart.
template <typename Raw>
__device__ inline void store_raw(Raw* to, Raw v) { __stwb(to, v); }

// From global memory that the kernel does not write, in one access. kFetch: bytes, on their own boundary, that the L2 fetches with it; 0
// leaves that to the device. Not `volatile`: loads that keep to their order cost what is gained.
template <int kFetch>
struct Fetch;
#define CC1D_FETCH(bytes)                                                                                                                  \
    template <>                                                                                                                            \
    struct Fetch<bytes> {                                                                                                                  \
        __device__ static void load(const void* p, uint16_t& v) { asm("ld.global.L2::" #bytes "B.u16 %0, [%1];" : "=h"(v) : "l"(p)); }     \
        __device__ static void load(const void* p, uint32_t& v) { asm("ld.global.L2::" #bytes "B.u32 %0, [%1];" : "=r"(v) : "l"(p)); }     \
        __device__ static void load(const void* p, uint2& v) {                                                                             \
            asm("ld.global.L2::" #bytes "B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));                                       \
        }                                                                                                                                  \
        __device__ static void load(const void* p, uint4& v) {                                                                             \
            asm("ld.global.L2::" #bytes "B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));         \
        }                                                                                                                                  \
    }
CC1D_FETCH(128);
CC1D_FETCH(256);
#undef CC1D_FETCH

template <typename Bits, int kFetch, typename T>
__device__ inline T fetch_as(const T* p) {
    Bits bits;
    Fetch<kFetch>::load(p, bits);
    T v;
    __builtin_memcpy(&v, &bits, sizeof(v));
    return v;
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kFetches = false;
#else
constexpr bool kFetches = true;
#endif
template <int kFetch, typename T>
__device__ inline T load_raw(const T* p) {
    if constexpr (kFetch == 0 || !kFetches) return *p;
    else if constexpr (sizeof(T) == 2) return fetch_as<uint16_t, kFetch>(p);
    else if constexpr (sizeof(T) == 4) return fetch_as<uint32_t, kFetch>(p);
    else if constexpr (sizeof(T) == 8) return fetch_as<uint2, kFetch>(p);
    else return fetch_as<uint4, kFetch>(p);
}

constexpr int kWarp = CC1D_WARP;
constexpr int kSharedBytes = 96 * 1024;  // of a multiprocessor, at least; a block may have half
constexpr bool kFewScalars = false;  // whether what is the same for all of a wave has registers of its own
constexpr int64_t kMaxGridThreads = INT64_MAX;
static_assert(kWarp == 32, "NVIDIA warps have 32 lanes");

template <auto Kernel, typename... Args>
void launch(dim3 grid, dim3 block, stream_t stream, Args... args) {
    Kernel<<<grid, block, 0, stream>>>(args...);
}

// For a kernel that follows another of the same call: where the device can (sm_90 on), its blocks start once those of the one before it
// have all begun and called start_next(), and call wait_for_previous() before they read what that one writes.
template <auto Kernel, typename... Args>
void launch_behind(dim3 grid, dim3 block, stream_t stream, Args... args) {
    constexpr int kArchs[] = {__CUDA_ARCH_LIST__};
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = kArchs[0] >= 900 && CUDART_VERSION >= 12030;  // older ones cannot capture it in a graph
    cudaLaunchKernelEx(&config, Kernel, args...);
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ inline void start_next() { asm volatile("griddepcontrol.launch_dependents;"); }
__device__ inline void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#else
__device__ inline void start_next() {}
__device__ inline void wait_for_previous() {}
#endif

// Of the current device; 0 where a platform does not know.
constexpr bool kKnowsMultiprocessors = true;
inline int multiprocessors() {
    int device = 0, count = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return count;
}

inline const char* launch_error() {
    const cudaError_t e = cudaGetLastError();
    return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}

// Two conversions in one instruction.
#define CC1D_HAS_PACK_PAIR
template <typename T>
__device__ inline uint32_t pack_pair(float low, float high) {
    uint32_t word;
    if constexpr (is_bfloat16<T>) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        __builtin_memcpy(&word, &pair, 4);
    } else {
        const __half2 pair = __floats2half2_rn(low, high);
        __builtin_memcpy(&word, &pair, 4);
    }
    return word;
}

__device__ inline float minimum(float a, float b) { return fminf(a, b); }

// The special function unit, results below 2^-126 as zero.
__device__ inline float reciprocal(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
__device__ inline float exp2_approximate(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

// The value, of which the compiler knows nothing.
__device__ inline int64_t opaque(int64_t v) {
    asm("" : "+l"(v));
    return v;
}
__device__ inline int opaque(int v) {
    asm("" : "+r"(v));
    return v;
}

__device__ inline int lowest_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }  // which is set
__device__ inline int lane_id() { return threadIdx.x % kWarp; }

// All lanes have come here, and see what the others wrote to shared memory.
__device__ inline void sync_wave() { __syncwarp(); }

// Bit i: what lane i of the same 32 says. All lanes of the wave come here, but for those that have returned.
__device__ inline uint32_t vote(bool says) { return __ballot_sync(0xffffffffu, says); }

template <typename T>
__device__ inline T shuffle_up(T v, unsigned delta) { return __shfl_up_sync(0xffffffffu, v, delta); }
template <typename T>
__device__ inline T shuffle_down(T v, unsigned delta) { return __shfl_down_sync(0xffffffffu, v, delta); }
template <typename T>
__device__ inline T shuffle(T v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
