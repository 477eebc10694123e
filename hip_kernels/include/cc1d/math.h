// Conversion, activation and 16-byte vectors. Sums are acc_t; a result is rounded once, to nearest even, on store.
#pragma once

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(float16 v) { return static_cast<float>(v); }

template <typename T>
__device__ inline T from_float(acc_t v) {
    return static_cast<T>(v);
}

#if defined(CC1D_BACKEND_CPU)
// g++ 12 has no bfloat16 arithmetic; its bits are the upper half of a float.
__device__ inline float to_float(bfloat16 v) { return bits_to_float(static_cast<uint32_t>(v.bits) << 16); }

__device__ inline double to_float(double v) { return v; }

template <>
__device__ inline bfloat16 from_float<bfloat16>(acc_t v) {
    const uint32_t u = float_to_bits(static_cast<float>(v));
    const uint32_t nearest_even = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const uint32_t quiet_nan = (u >> 16) | 0x40u;
    return bfloat16{static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet_nan : nearest_even)};
}
#else
__device__ inline float to_float(bfloat16 v) { return static_cast<float>(v); }
#endif

__device__ inline float exponential(float v) { return expf(v); }
#if defined(CC1D_BACKEND_CPU)
inline double exponential(double v) { return exp(v); }
#endif

// y * sigmoid(y), in the form that does not overflow: exp(-y) = inf gives y / inf = -0.
__device__ inline acc_t silu(acc_t y) { return y / (acc_t(1) + exponential(-y)); }

// Its derivative: s (1 + y (1 - s)) with s = sigmoid(y).
__device__ inline acc_t silu_slope(acc_t y) {
    const acc_t s = acc_t(1) / (acc_t(1) + exponential(-y));
    return s * (acc_t(1) + y * (acc_t(1) - s));
}

template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
    T v[N];
};

// A vector to and from memory in one access of 16 bytes. Through a type that is one register quad, since compilers
// take a struct of elements apart again.
template <typename T>
__device__ inline Vec<T, 16 / sizeof(T)> load_vec(const T* p) {
    const raw16_t raw = *reinterpret_cast<const raw16_t*>(p);
    Vec<T, 16 / sizeof(T)> v;
    __builtin_memcpy(&v, &raw, 16);
    return v;
}

template <typename T>
__device__ inline void store_vec(T* p, const Vec<T, 16 / sizeof(T)>& v) {
    raw16_t raw;
    __builtin_memcpy(&raw, &v, 16);
    *reinterpret_cast<raw16_t*>(p) = raw;
}

// Whether rows that begin at `p` and lie `stride` elements apart can be read a vector at a time.
template <typename T>
__host__ __device__ inline bool is_vector_aligned(const T* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride * sizeof(T) % 16 == 0;
}
