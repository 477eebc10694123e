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

// sigmoid(y) = 1 / (1 + 2^-a) with a = y log2(e), from the special function unit (2^x and 1/x), written as s / (s + s 2^-a) with
// s = 2^-32, so that nothing overflows or underflows before the result does. Returned as 1 / (s + s 2^-a), of which s is
// still to be multiplied. For 16-bit elements to 2^-17 of its value, a thirtieth of their rounding; else what the exponent lost in
// rounding is put back, for a few units in the last place of fp32 over the whole range.
constexpr float kSigmoidScale = 2.3283064365386963e-10f;

__device__ inline float scaled_sigmoid(float y) {
    constexpr float kLog2e = 1.44269502f, kLog2eRest = 1.92596299e-8f, kLn2 = 0.693147182f;
    if constexpr (sizeof(elem_t) == 2) return reciprocal(exp2_approximate(fmaf(y, -kLog2e, -32.0f)) + kSigmoidScale);
    y = minimum(y, 200.0f);
    const float exponent = fmaf(y, -kLog2e, -32.0f);
    const float rounded_off = fmaf(y, -kLog2eRest, fmaf(y, -kLog2e, -(exponent + 32.0f)));
    return reciprocal(fmaf(exp2_approximate(exponent), fmaf(rounded_off, kLn2, 1.0f), kSigmoidScale));
}

__device__ inline float sigmoid(float y) { return kSigmoidScale * scaled_sigmoid(y); }

// y sigmoid(y). The scale must not go to y, which may be subnormal.
__device__ inline float silu(float y) { return y * sigmoid(y); }

#if defined(CC1D_BACKEND_CPU)
inline double sigmoid(double y) { return 1 / (1 + exp(-y)); }
inline double silu(double y) { return y * sigmoid(y); }
#endif

// Its derivative: s (1 + y (1 - s)) with s = sigmoid(y).
__device__ inline acc_t silu_slope(acc_t y) {
    const acc_t s = sigmoid(y);
    return s * (acc_t(1) + y * (acc_t(1) - s));
}

template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
    T v[N];
};

template <int Bytes>
struct Raw;
template <>
struct Raw<4> {
    using type = raw4_t;
};
template <>
struct Raw<8> {
    using type = raw8_t;
};
template <>
struct Raw<16> {
    using type = raw16_t;
};

// A vector of 8 or 16 bytes to and from memory in one access. Through a type that is one group of registers, since
// compilers take a struct of elements apart again.
template <int N, typename T>
__device__ inline Vec<T, N> load_vec(const T* p) {
    const auto raw = *reinterpret_cast<const typename Raw<sizeof(T) * N>::type*>(p);
    Vec<T, N> v;
    __builtin_memcpy(&v, &raw, sizeof(v));
    return v;
}

template <typename T, int N>
__device__ inline void store_vec(T* p, const Vec<T, N>& v) {
    typename Raw<sizeof(T) * N>::type raw;
    __builtin_memcpy(&raw, &v, sizeof(v));
    *reinterpret_cast<typename Raw<sizeof(T) * N>::type*>(p) = raw;
}

// 16 bytes from shared to global memory, as they are.
template <typename T>
__device__ inline void move_vec(T* to, const T* from) {
    store_raw(reinterpret_cast<raw16_t*>(to), *reinterpret_cast<const raw16_t*>(from));
}

// Whether rows that begin at `p` and lie `stride` elements apart can be read `Bytes` at a time.
template <int Bytes = 16, typename T>
__host__ __device__ inline bool is_vector_aligned(const T* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % Bytes == 0 && stride * sizeof(T) % Bytes == 0;
}
