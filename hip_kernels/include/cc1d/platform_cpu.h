// The CPU: an emulation of the execution model, so that everything works with no GPU. It is for correctness;
// its times say nothing of a GPU.
//
// Shared arrays are thread_local: an OS thread executes one block at a time, and the threads of the block are its fibres.
#pragma once
#include <string.h>

#include <tuple>
#include <type_traits>
#include <utility>

#include "emulation.h"

// As <math.h> has them, which takes as long to compile as a small kernel.
#define CC1D_MATH(name)                      \
    extern "C" float name##f(float) noexcept; \
    extern "C" double name(double) noexcept;
CC1D_MATH(exp) CC1D_MATH(exp2) CC1D_MATH(expm1) CC1D_MATH(log) CC1D_MATH(log2) CC1D_MATH(log1p) CC1D_MATH(sqrt) CC1D_MATH(fabs)
CC1D_MATH(floor) CC1D_MATH(ceil) CC1D_MATH(rint) CC1D_MATH(tanh) CC1D_MATH(erf) CC1D_MATH(sin) CC1D_MATH(cos)
#undef CC1D_MATH
extern "C" float fmaf(float, float, float) noexcept;
extern "C" double fma(double, double, double) noexcept;

#define __global__ inline __attribute__((always_inline))  // into the loop over the threads of a block, and compiled there alone
#define __device__
#define __host__
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define CC1D_BOUNDS(...)
#define threadIdx (cc1d_block->thread)
#define blockIdx (cc1d_block->block)
#define blockDim (cc1d_block->block_dim)
#define gridDim (cc1d_block->grid_dim)
#define __syncthreads() cc1d_block_barrier(__LINE__)
#define CC1D_API __attribute__((visibility("default")))

inline float bits_to_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
inline uint32_t float_to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

#if defined(__aarch64__)
using float16 = __fp16;
#else
using float16 = _Float16;
#endif
struct bfloat16 {
    uint16_t bits;
};

typedef uint32_t raw4_t __attribute__((may_alias));
typedef uint32_t raw8_t __attribute__((vector_size(8), may_alias));
typedef uint32_t raw16_t __attribute__((vector_size(16), may_alias));
template <typename Raw>
__device__ inline void store_raw(Raw* to, Raw v) { *to = v; }
template <int kFetch, typename T>  // only the L2 of NVIDIA GPUs takes such a wish
__device__ inline T load_raw(const T* p) { return *p; }

template <typename T>
constexpr bool is_bfloat16 = false;
template <>
inline constexpr bool is_bfloat16<bfloat16> = true;

constexpr int kWarp = CC1D_WARP;
constexpr int kSharedBytes = 96 * 1024;  // as on NVIDIA
constexpr bool kFewScalars = false;  // whether what is the same for all of a wave has registers of its own
constexpr int64_t kMaxGridThreads = INT64_MAX;
using stream_t = void*;

namespace cc1d_emulation {
static thread_local char shared_anchor;  // so that a kernel without shared arrays has a block of them, too
static thread_local const char* last_error;  // set after a launch, so that poisoning the shared arrays does not matter
}  // namespace cc1d_emulation

namespace cc1d_emulation {
// g++ prints "... [with auto Kernel = copy]", clang "... [Kernel = &copy]".
struct KernelName {
    char text[100] = {};
    template <size_t N>
    explicit constexpr KernelName(const char (&signature)[N]) {
        size_t from = 0, length = 0;
        while (signature[from] != '=') ++from;
        from += signature[from + 2] == '&' ? 3 : 2;
        for (; signature[from + length] != ']' && signature[from + length] != ';'; ++length) text[length] = signature[from + length];
    }
};
template <auto Kernel>
constexpr KernelName kernel_name() { return KernelName(__PRETTY_FUNCTION__); }

template <typename T>
constexpr char kind_of() { return std::is_integral_v<T> ? 'i' : std::is_floating_point_v<T> ? 'f' : std::is_pointer_v<T> ? 'p' : 's'; }

// The kernels of this library, for cc1d_launch_kernel.
struct Entry {
    const char* name;
    void (*launch)(dim3, dim3, const char* arguments);
    size_t bytes;  // of its arguments
    const Entry* next;
};
static const Entry* entries = nullptr;

// Where an argument of type T begins, the next multiple of its alignment; `offset` is moved past it.
template <typename T>
constexpr size_t place(size_t& offset) {
    const size_t begin = (offset + alignof(T) - 1) / alignof(T) * alignof(T);
    offset = begin + sizeof(T);
    return begin;
}

template <auto Kernel, typename Signature = decltype(Kernel)>
struct Launcher;

template <auto Kernel, typename... Args>
struct Launcher<Kernel, void (*)(Args...)> {
    static constexpr KernelName kName = kernel_name<Kernel>();

    // A direct call, inlined as the kernel is: else each thread would copy its Params.
    template <size_t... I>
    __attribute__((always_inline)) static void call(const std::tuple<Args...>& arguments, std::index_sequence<I...>) {
        Kernel(std::get<I>(arguments)...);
    }

    static void run(dim3 grid, dim3 block, Args... args) {
        (void)&registered;
        struct Bound : Launch {
            std::tuple<Args...> args;
        };
        const Argument passed[] = {{&args, sizeof(Args), kind_of<Args>()}...};
        Bound bound{{grid, block, kWarp, nullptr, nullptr, kName.text, passed, sizeof...(Args)}, {args...}};
        bound.run_threads = [](const Launch& launch, Block& block) {
            const auto& arguments = static_cast<const Bound&>(launch).args;
            while (block.start_next()) {
                call(arguments, std::index_sequence_for<Args...>{});
                ++block.finished;
            }
        };
        bound.touch_shared = [] { *const_cast<volatile char*>(&shared_anchor) = 0; };
        last_error = cc1d_emulate(&bound);
    }

    static void run_from(dim3 grid, dim3 block, const char* arguments) {
        size_t offset = 0;
        std::apply([&](const Args&... args) { run(grid, block, args...); },
                   std::tuple<const Args&...>{*reinterpret_cast<const Args*>(arguments + place<Args>(offset))...});
    }

    static size_t argument_bytes() {
        size_t offset = 0;
        ((void)place<Args>(offset), ...);
        return offset;
    }

    struct Registration : Entry {
        Registration() : Entry{kName.text, run_from, argument_bytes(), entries} { entries = this; }
    };
    static inline const Registration registered;
};
}  // namespace cc1d_emulation

template <auto Kernel, typename... Args>
void launch(dim3 grid, dim3 block, stream_t, Args... args) {
    cc1d_emulation::Launcher<Kernel>::run(grid, block, args...);
}

// A kernel that follows another of the same call. What a GPU may overlap runs in order here.
template <auto Kernel, typename... Args>
void launch_behind(dim3 grid, dim3 block, stream_t stream, Args... args) {
    launch<Kernel>(grid, block, stream, args...);
}
inline void start_next() {}
inline void wait_for_previous() {}

constexpr bool kKnowsMultiprocessors = true;
inline int multiprocessors() { return 1; }
inline const char* launch_error() { return std::exchange(cc1d_emulation::last_error, nullptr); }

// Launches one kernel of this library from its name, grid, block, and a buffer with its arguments as a GPU gets them: each at
// the next multiple of its alignment, the buffer at a multiple of 16. Returns null, or what is wrong.
extern "C" CC1D_API const char* cc1d_launch_kernel(const char* name, const unsigned* grid, const unsigned* block, const char* arguments, size_t bytes) {
    using namespace cc1d_emulation;
    for (const Entry* e = entries; e; e = e->next) {
        if (strcmp(e->name, name) != 0) continue;
        if (e->bytes != bytes) return "cc1d_launch_kernel: the arguments have another size than the kernel takes";
        e->launch(dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), arguments);
        return launch_error();
    }
    return "cc1d_launch_kernel: no kernel of this name in this library";
}

inline float reciprocal(float v) { return 1.0f / v; }
inline float minimum(float a, float b) { return a < b ? a : b; }

// As a GPU's special function unit does it: to two units in the last place, results below 2^-126 as zero. Without a branch or a
// call, so that the loop over threads can be vectorised.
inline float exp2_approximate(float v) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold
    const float limited = v < -127.0f ? -127.0f : v > 128.0f ? 128.0f : v;
    const float shifted = limited + kRound, f = limited - (shifted - kRound);
    // Taylor's series of 2^f for |f| <= 1/2; the first term left out is below 2^-23.
    const float series =
        1.0f + f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f + f * (0.00133335581f + f * 0.000154035304f)))));
    return series * bits_to_float((float_to_bits(shifted) - float_to_bits(kRound) + 127u) << 23);
}

inline int64_t opaque(int64_t v) { return v; }
inline int opaque(int v) { return v; }
inline int lowest_bit(uint32_t bits) { return __builtin_ctz(bits); }  // which is set
inline int lane_id() { return static_cast<int>(cc1d_lane()); }

// All lanes have come here.
inline void sync_wave() {
    cc1d_wave_exchange(nullptr, [](void* const*, unsigned, void*) {}, nullptr);
}

namespace cc1d_emulation {
template <typename T>
struct Shuffle {
    T value, received;
    int from;
};

template <typename T>
inline T exchange(T v, int from) {
    Shuffle<T> mine{v, v, from};
    cc1d_wave_exchange(
        &mine,
        [](void* const* lanes, unsigned count, void*) {
            for (unsigned l = 0; l < count; ++l) {
                auto* to = static_cast<Shuffle<T>*>(lanes[l]);
                if (to && to->from >= 0 && to->from < static_cast<int>(count) && lanes[to->from])
                    to->received = static_cast<Shuffle<T>*>(lanes[to->from])->value;
            }
        },
        nullptr);
    return mine.received;
}

template <typename T, int N, int M>
struct Registers {
    float* c;
    const T *a, *b;
};
}  // namespace cc1d_emulation

template <typename T>
inline T shuffle(T v, int lane) { return cc1d_emulation::exchange(v, lane); }
template <typename T>
inline T shuffle_up(T v, unsigned delta) { return cc1d_emulation::exchange(v, lane_id() - static_cast<int>(delta)); }
template <typename T>
inline T shuffle_down(T v, unsigned delta) { return cc1d_emulation::exchange(v, lane_id() + static_cast<int>(delta)); }

// Bit i: what lane i of the same 32 says. All lanes of the wave come here, but for those that have returned.
inline uint32_t vote(bool says) {
    struct Vote {
        bool says;
        uint32_t votes;
    } mine{says, 0};
    cc1d_wave_exchange(
        &mine,
        [](void* const* lanes, unsigned count, void*) {
            uint32_t votes[kWarp / 32] = {};
            for (unsigned l = 0; l < count; ++l)
                if (lanes[l]) votes[l / 32] |= static_cast<uint32_t>(static_cast<Vote*>(lanes[l])->says) << l % 32;
            for (unsigned l = 0; l < count; ++l)
                if (lanes[l]) static_cast<Vote*>(lanes[l])->votes = votes[l / 32];
        },
        nullptr);
    return mine.votes;
}

float to_float(float16);
float to_float(bfloat16);

// One matrix instruction of a wave: the last lane to come gathers A, B and C by the lane map, multiplies, scatters C.
template <typename Map, typename T, int N, int M>
inline void matrix_instruction(float (&c)[M], const T (&a)[N], const T (&b)[N]) {
    using R = cc1d_emulation::Registers<T, N, M>;
    R mine{c, a, b};
    cc1d_wave_exchange(
        &mine,
        [](void* const* lanes, unsigned count, void*) {
            float A[16][16], B[16][16], C[16][16];
            for (unsigned l = 0; l < count; ++l) {
                const R& r = *static_cast<const R*>(lanes[l]);
                for (int i = 0; i < N; ++i) A[l % 16][Map::k(l, i)] = to_float(r.a[i]);
                for (int i = 0; i < N; ++i) B[Map::k(l, i)][l % 16] = to_float(r.b[i]);
                for (int i = 0; i < M; ++i) C[Map::row(l, i)][l % 16] = r.c[i];
            }
            for (int row = 0; row < 16; ++row)
                for (int k = 0; k < 16; ++k)
                    for (int col = 0; col < 16; ++col) C[row][col] += A[row][k] * B[k][col];
            for (unsigned l = 0; l < count; ++l) {
                const R& r = *static_cast<const R*>(lanes[l]);
                for (int i = 0; i < M; ++i) r.c[i] = C[Map::row(l, i)][l % 16];
            }
        },
        nullptr);
}
