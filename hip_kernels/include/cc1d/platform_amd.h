// AMD: hipcc with ROCm's headers, or clang++ -x hip without them (-nogpuinc, CC1D_HIP_HEADERS=0). Then what is needed of
// them is declared here: a few builtins, and the five functions of the HIP runtime that a launch calls.
#pragma once

#ifndef CC1D_HIP_HEADERS
#define CC1D_HIP_HEADERS __has_include(<hip/hip_runtime.h>)
#endif

#if CC1D_HIP_HEADERS
#include <hip/hip_runtime.h>
#else
#include <stddef.h>
#include <stdint.h>
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __host__ __attribute__((host))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    __host__ __device__ constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// The C ABI of libamdhip64, which has been the same since ROCm 4. The compiler calls the first three for <<<>>>.
typedef struct ihipStream_t* hipStream_t;
typedef enum hipError_t { hipSuccess = 0 } hipError_t;
extern "C" {
hipError_t __hipPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, hipStream_t stream);
hipError_t __hipPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, hipStream_t* stream);
hipError_t hipLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** args, size_t shared_bytes, hipStream_t stream);
hipError_t hipGetLastError(void);
const char* hipGetErrorString(hipError_t error);
}

namespace cc1d_builtin {
struct ThreadIdx {
    struct X { __device__ operator unsigned() const { return __builtin_amdgcn_workitem_id_x(); } } x;
    struct Y { __device__ operator unsigned() const { return __builtin_amdgcn_workitem_id_y(); } } y;
};
struct BlockIdx {
    struct X { __device__ operator unsigned() const { return __builtin_amdgcn_workgroup_id_x(); } } x;
    struct Y { __device__ operator unsigned() const { return __builtin_amdgcn_workgroup_id_y(); } } y;
    struct Z { __device__ operator unsigned() const { return __builtin_amdgcn_workgroup_id_z(); } } z;
};
}  // namespace cc1d_builtin
static const __device__ cc1d_builtin::ThreadIdx threadIdx{};
static const __device__ cc1d_builtin::BlockIdx blockIdx{};

__device__ inline void __syncthreads() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
__device__ inline float expf(float v) { return __builtin_expf(v); }
__device__ inline float fminf(float a, float b) { return __builtin_fminf(a, b); }
__device__ inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#endif
using stream_t = hipStream_t;

// The exact workgroup size belongs in the code object; the HIP macro leaves the maximum at 1024.
#undef __launch_bounds__
#define __launch_bounds__(threads, ...) __attribute__((amdgpu_flat_work_group_size(threads, threads)))

// At most `block` threads a block, and registers for `resident` threads a compute unit, which has four SIMDs.
#define CC1D_BOUNDS(block, resident) __launch_bounds__(block, (resident) < 4 * CC1D_WARP ? 1 : (resident) / (4 * CC1D_WARP))
#define CC1D_API __attribute__((visibility("default")))

using float16 = _Float16;
using bfloat16 = __bf16;

typedef uint32_t raw4_t __attribute__((may_alias));
typedef uint32_t raw8_t __attribute__((ext_vector_type(2), may_alias));
typedef uint32_t raw16_t __attribute__((ext_vector_type(4), may_alias));
template <typename Raw>
__device__ inline void store_raw(Raw* to, Raw v) { *to = v; }
template <int kFetch, typename T>  // only the L2 of NVIDIA GPUs takes such a wish
__device__ inline T load_raw(const T* p) { return *p; }

template <typename T>
constexpr bool is_bfloat16 = false;
template <>
inline constexpr bool is_bfloat16<bfloat16> = true;

constexpr int kWarp = CC1D_WARP;  // 64 on gfx9, 32 on gfx10 and later
constexpr int kSharedBytes = 64 * 1024;  // of a compute unit; a block may have all of it
constexpr bool kFewScalars = true;  // whether what is the same for all of a wave has registers of its own
constexpr int64_t kMaxGridThreads = 0xffffffff;

template <auto Kernel, typename... Args>
void launch(dim3 grid, dim3 block, stream_t stream, Args... args) {
    Kernel<<<grid, block, 0, stream>>>(args...);
}

// A kernel that follows another of the same call. What another platform overlaps runs in order here.
template <auto Kernel, typename... Args>
void launch_behind(dim3 grid, dim3 block, stream_t stream, Args... args) {
    launch<Kernel>(grid, block, stream, args...);
}
__device__ inline void start_next() {}
__device__ inline void wait_for_previous() {}

// Unknown: HIP's number of that attribute is not the same in all releases, and there may be no header that has it.
constexpr bool kKnowsMultiprocessors = false;
inline int multiprocessors() { return 0; }

inline const char* launch_error() {
    const hipError_t e = hipGetLastError();
    return e == hipSuccess ? nullptr : hipGetErrorString(e);
}

__device__ inline float minimum(float a, float b) { return fminf(a, b); }
__device__ inline float reciprocal(float v) { return __builtin_amdgcn_rcpf(v); }
__device__ inline float exp2_approximate(float v) { return __builtin_amdgcn_exp2f(v); }

__device__ inline int64_t opaque(int64_t v) { return v; }
__device__ inline int opaque(int v) { return v; }
__device__ inline int lowest_bit(uint32_t bits) { return __builtin_ctz(bits); }  // which is set
__device__ inline int lane_id() {
    return kWarp == 64 ? __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0)) : __builtin_amdgcn_mbcnt_lo(~0u, 0);
}

// All lanes have come here, and see what the others wrote to shared memory.
__device__ inline void sync_wave() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

// Bit i: what lane i of the same 32 says. All lanes of the wave come here, but for those that have returned.
__device__ inline uint32_t vote(bool says) {
#if CC1D_WARP == 64
    return static_cast<uint32_t>(__builtin_amdgcn_ballot_w64(says) >> (lane_id() & 32));
#else
    return __builtin_amdgcn_ballot_w32(says);
#endif
}

// 4-byte values travel between lanes by ds_bpermute, which addresses lanes in bytes.
template <typename T>
__device__ inline T shuffle(T v, int lane) {
    static_assert(sizeof(T) == 4, "shuffle moves 4 bytes");
    return __builtin_bit_cast(T, __builtin_amdgcn_ds_bpermute(4 * lane, __builtin_bit_cast(int, v)));
}
template <typename T>
__device__ inline T shuffle_up(T v, unsigned delta) {
    const int lane = lane_id(), from = lane - static_cast<int>(delta);
    return shuffle(v, from < 0 ? lane : from);
}
template <typename T>
__device__ inline T shuffle_down(T v, unsigned delta) {
    const int lane = lane_id(), from = lane + static_cast<int>(delta);
    return shuffle(v, from >= kWarp ? lane : from);
}

// One matrix instruction of a wave. The registers of a fragment, as the builtins want them: 16-bit lanes side by side.
namespace cc1d_matrix {
template <typename T, int N>
using vector = T __attribute__((ext_vector_type(N)));

template <typename To, typename From>
__device__ inline To as(const From& from) {
    To to;
    static_assert(sizeof(to) == sizeof(from), "same registers, other name");
    __builtin_memcpy(&to, &from, sizeof(to));
    return to;
}
}  // namespace cc1d_matrix

template <typename Map, typename T, int N, int M>
__device__ inline void matrix_instruction(float (&c)[M], const T (&a)[N], const T (&b)[N]) {
    using namespace cc1d_matrix;
    constexpr bool kHalf = __is_same(T, float16);
    using in_f16 = vector<_Float16, N>;
    using in_bf16 = vector<short, N>;
    using acc = vector<float, M>;
    acc sum = as<acc>(c);
#if CC1D_MATRIX == 2 && (defined(__GFX9__) || !defined(__AMDGCN__))
    if constexpr (kHalf) sum = __builtin_amdgcn_mfma_f32_16x16x16f16(as<in_f16>(a), as<in_f16>(b), sum, 0, 0, 0);
    else sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(as<in_bf16>(a), as<in_bf16>(b), sum, 0, 0, 0);
#elif CC1D_MATRIX == 3
    if constexpr (kHalf) sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(as<in_f16>(a), as<in_f16>(b), sum);
    else sum = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(as<in_bf16>(a), as<in_bf16>(b), sum);
#elif CC1D_MATRIX == 4
    if constexpr (kHalf) sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(as<in_f16>(a), as<in_f16>(b), sum);
    else sum = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(as<in_bf16>(a), as<in_bf16>(b), sum);
#endif
    __builtin_memcpy(&c, &sum, sizeof(c));
}
