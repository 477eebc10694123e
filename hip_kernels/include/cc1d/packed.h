// Elements packed in 32-bit registers, and division by an invariant: what the kernels at the memory's speed are made of.
//
// A struct of 16-bit elements is taken apart by compilers, and its stores with it: a warp then writes half sectors. Words stay.
#pragma once

// Elements by which `p` is past a boundary of `Bytes`.
template <int Bytes = 16>
__host__ __device__ inline int lead_of(const elem_t* p) {
    return reinterpret_cast<uintptr_t>(p) % Bytes / sizeof(elem_t);
}

// A tensor (batch, dim, seqlen) and its strides.
struct Strided {
    const void* tensor;
    index_t batch, dim, seq;

    int lead() const { return lead_of(static_cast<const elem_t*>(tensor)); }
    // Whether all rows along the sequence begin on a boundary of `n` elements; by default of 16 bytes.
    bool aligned(int n = kVec) const { return reinterpret_cast<uintptr_t>(tensor) % (n * sizeof(elem_t)) == 0 && dim % n == 0 && batch % n == 0; }
    // Whether the rows of both lie at the same distances from a 16-byte boundary, steps side by side.
    bool alike(const Strided& other) const {
        return seq == 1 && other.seq == 1 && (batch - other.batch) % kVec == 0 && (dim - other.dim) % kVec == 0 && lead() == other.lead();
    }
    // Whether channels lie side by side, and the rows of channels on boundaries of `n` elements.
    bool aligned_along_channels(int n) const {
        return dim == 1 && reinterpret_cast<uintptr_t>(tensor) % (n * sizeof(elem_t)) == 0 && seq % n == 0 && batch % n == 0;
    }
};

template <int Low, int High>
__device__ inline int clamped(index_t n) {
    return n < Low ? Low : n > High ? High : static_cast<int>(n);
}

template <typename To, typename From>
__device__ inline To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits under another name");
    To to;
    __builtin_memcpy(&to, &from, sizeof(to));
    return to;
}

// Bytes from an element to the one `stride` elements on, hidden from the compiler: what it knows to be the same for all threads it multiplies
// and adds anew for each address, where a thread had only to go on by it.
__device__ inline int64_t step_bytes(int64_t stride) { return opaque(stride * static_cast<int64_t>(sizeof(elem_t))); }

template <typename T>
__host__ __device__ inline T* bytes_on(T* p, int64_t bytes) {
    return reinterpret_cast<T*>(const_cast<char*>(reinterpret_cast<const char*>(p)) + bytes);
}

// `n` times `bytes` on: one instruction, where a product of 64 bits takes three.
template <typename T>
__device__ inline T* bytes_on(T* p, uint32_t n, uint32_t bytes) {
    return bytes_on(p, static_cast<int64_t>(static_cast<uint64_t>(n) * bytes));
}

// 32 bits of the 64 in two words, from bit `by` on, which is 32 at most.
__device__ inline uint32_t shift_words(uint32_t low, uint32_t high, int by) {
    return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> by);
}

// All bits of a word from bit `n` on, which may lie before it or behind it.
__device__ inline uint32_t ones_from(int n) {
    return static_cast<uint32_t>(~uint64_t{0} << (n < 0 ? 0 : n > 32 ? 32 : n));
}

#if !defined(CC1D_HAS_PACK_PAIR)
template <typename T>
__device__ inline uint32_t pack_pair(float low, float high) {
    return bits_as<uint16_t>(from_float<T>(low)) | static_cast<uint32_t>(bits_as<uint16_t>(from_float<T>(high))) << 16;
}
#endif

template <typename T, int N>
struct Packed {
    static constexpr int kPerWord = 4 / sizeof(T);
    static constexpr int kWords = N / kPerWord;
    uint32_t words[kWords];

    __device__ float at(int i) const {
        if constexpr (sizeof(T) == 4) return bits_as<float>(words[i]);
        else if constexpr (is_bfloat16<T>) return bits_as<float>(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
        else return to_float(bits_as<T>(static_cast<uint16_t>(words[i / 2] >> (i % 2 ? 16 : 0))));
    }

    // All bits of the elements [first, last). A mask, since what lies outside may be a NaN.
    __device__ static Packed mask(int first, int last) {
        Packed m;
        for (int w = 0; w < kWords; ++w) {
            if constexpr (sizeof(T) == 4) m.words[w] = w >= first && w < last ? ~0u : 0;
            else m.words[w] = ones_from(16 * first - 32 * w) & ~ones_from(16 * last - 32 * w);
        }
        return m;
    }
    __device__ void operator&=(const Packed& mask) {
        for (int w = 0; w < kWords; ++w) words[w] &= mask.words[w];
    }

    // For an element at a time; starts from zero words.
    __device__ void put(int i, T v) {
        if constexpr (sizeof(T) == 4) words[i] = bits_as<uint32_t>(v);
        else words[i / 2] |= static_cast<uint32_t>(bits_as<uint16_t>(v)) << (i % 2 ? 16 : 0);
    }

    __device__ void replace(int i, T v) {
        if constexpr (sizeof(T) == 2) words[i / 2] &= i % 2 ? 0xffffu : 0xffff0000u;
        put(i, v);
    }

    // `M` neighbouring elements of it.
    template <int M>
    __device__ Packed<T, M> part(int i) const {
        Packed<T, M> p;
        for (int w = 0; w < Packed<T, M>::kWords; ++w) p.words[w] = words[i / kPerWord + w];
        return p;
    }
    template <int M>
    __device__ void set(int i, const Packed<T, M>& part) {
        for (int w = 0; w < Packed<T, M>::kWords; ++w) words[i / kPerWord + w] = part.words[w];
    }

    __device__ T get(int i) const {
        if constexpr (sizeof(T) == 4) return bits_as<T>(words[i]);
        else return bits_as<T>(static_cast<uint16_t>(words[i / 2] >> (i % 2 ? 16 : 0)));
    }

    __device__ static Packed zero() {
        Packed p;
        for (int w = 0; w < kWords; ++w) p.words[w] = 0;
        return p;
    }

    // Rounds to nearest even.
    __device__ static Packed from(const float (&v)[N]) {
        Packed p;
        for (int w = 0; w < kWords; ++w) {
            if constexpr (sizeof(T) == 4) p.words[w] = bits_as<uint32_t>(v[w]);
            else p.words[w] = pack_pair<T>(v[2 * w], v[2 * w + 1]);
        }
        return p;
    }

    // The largest access that divides it, of at most 16 bytes, which `from` and `to` must be aligned to.
    static constexpr int kAccess = kWords % 4 == 0 ? 4 : kWords % 2 == 0 ? 2 : 1;
    using raw_t = typename Raw<4 * kAccess>::type;

    template <int kFetch = 0>
    __device__ static Packed load(const T* from) {
        Packed p;
        for (int w = 0; w < kWords; w += kAccess) {
            const raw_t raw = load_raw<kFetch>(reinterpret_cast<const raw_t*>(from + w * kPerWord));
            __builtin_memcpy(p.words + w, &raw, sizeof(raw));
        }
        return p;
    }

    __device__ void store(T* to) const {
        for (int w = 0; w < kWords; w += kAccess) {
            auto* quad = reinterpret_cast<raw_t*>(to + w * kPerWord);
            if constexpr (kAccess == 4) store_raw(quad, raw_t{words[w], words[w + 1], words[w + 2], words[w + 3]});
            else if constexpr (kAccess == 2) store_raw(quad, raw_t{words[w], words[w + 1]});
            else store_raw(quad, words[w]);
        }
    }
};

// Weight and bias of `N` neighbouring channels, as words: a conversion waits for its load, and must not hold up the next one.
template <int N>
struct Parameters {
    template <int M>
    using words_t = Packed<weight_t, ceil_div(M, 4 / sizeof(weight_t)) * (4 / sizeof(weight_t))>;
    words_t<N * kWidth> weights;  // channel by channel, as in memory
    words_t<N> biases;

    __device__ acc_t weight(int i, int w) const { return weights.at(i * kWidth + w); }
    __device__ acc_t bias(int i) const { return biases.at(i); }

    // Whether all channels lie side by side, on the boundaries of vectors, as the next two ask. What is known before the launch they do
    // not ask again: a branch between two loads takes as long as a tenth of a small call (DECISIONS 48).
    static bool are_together(const Params& p) {
        const auto on_boundary = [](const void* first) { return reinterpret_cast<uintptr_t>(first) % 16 == 0; };
        return p.weight_width_stride == 1 && p.weight_dim_stride == kWidth && on_boundary(p.weight) && on_boundary(p.bias);
    }

    // Of `dim`, a multiple of N, and those beside it. `p`: Params, or what else has weight and bias.
    template <typename P>
    __device__ void load_together(const P& p, index_t dim) {
        weights = words_of<N * kWidth>(static_cast<const weight_t*>(p.weight) + dim * kWidth);
        biases = p.bias ? words_of<N>(static_cast<const weight_t*>(p.bias) + dim) : words_t<N>::zero();
    }

    // Of any `dim`, odd or even for all threads alike, and those beside it: two from an even one on lie on their boundary.
    template <typename P>
    __device__ void load_pairs(const P& p, index_t dim) {
        const weight_t* weight = static_cast<const weight_t*>(p.weight) + dim * kWidth;
        const weight_t* bias = static_cast<const weight_t*>(p.bias) + dim;
        weights = words_t<N * kWidth>::zero();
        biases = words_t<N>::zero();
        if (dim % 2 == 0) {
            take_pairs<kWidth, false>(weights, weight);
            if (p.bias) take_pairs<1, false>(biases, bias);
        } else {
            take_pairs<kWidth, true>(weights, weight);
            if (p.bias) take_pairs<1, true>(biases, bias);
        }
    }

    // Of any `dim` and those beside it, where the first channel stands behind the last one. Those before the first get its own.
    template <typename P, typename Index>
    __device__ void load_around(const P& p, Index dim) {
        weights = words_t<N * kWidth>::zero();
        biases = words_t<N>::zero();
        for (int i = 0; i < N; ++i) {
            const Index at = dim + i < 0 ? 0 : dim + i, channel = at < p.dim ? at : at - p.dim;
            take<kWidth>(weights, i * kWidth, static_cast<const weight_t*>(p.weight) + index_t(channel) * kWidth);
            if (p.bias) take<1>(biases, i, static_cast<const weight_t*>(p.bias) + channel);
        }
    }

    // Of channels `dim`, `dim + step`, ..., of which the first `channels` exist; the others get the first one's. In wide accesses where
    // all lie side by side on their own alignment, or those of a channel do. The usual way is one branch for both: a compiler that has
    // one between two loads converts what the first brought before it, and the second waits.
    __device__ void load(const Params& p, index_t dim, int channels = N, int step = 1) {
        const weight_t* weight = static_cast<const weight_t*>(p.weight) + dim * p.weight_dim_stride;
        const weight_t* bias = static_cast<const weight_t*>(p.bias) + dim;
        const bool neighbours = channels >= N && step == 1;
        const bool contiguous = p.weight_width_stride == 1 && (N == 1 || p.weight_dim_stride == kWidth);
        biases = words_t<N>::zero();
        if (neighbours && contiguous && is_together<N * kWidth>(weight) && (N == 1 || !p.bias || is_together<N>(bias))) {
            weights = words_t<N * kWidth>::load(weight);
            if constexpr (N == 1) {
                if (p.bias) biases.put(0, *bias);
            } else {
                if (p.bias) biases = words_t<N>::load(bias);
            }
            return;
        }
        weights = words_t<N * kWidth>::zero();
        const bool taps_together = contiguous && is_together<kWidth>(weight);
        for (int i = 0; i < N; ++i) {
            const weight_t* taps = weight + (i < channels ? i * step : 0) * p.weight_dim_stride;
            if (taps_together) weights.set(i * kWidth, words_t<kWidth>::load(taps));
            else for (int w = 0; w < kWidth; ++w) weights.put(i * kWidth + w, taps[w * p.weight_width_stride]);
        }
        if (p.bias)
            for (int i = 0; i < N; ++i) biases.put(i, bias[i < channels ? i * step : 0]);
    }

private:
    // `Each` elements of every channel, two channels at once; with kOdd the first and the last alone.
    template <int Each, bool kOdd, typename Words>
    __device__ static void take_pairs(Words& words, const weight_t* from) {
        if (kOdd) take<Each>(words, 0, from);
        for (int i = kOdd; i + 2 <= N; i += 2) take<2 * Each>(words, i * Each, from + i * Each);
        if (kOdd) take<Each>(words, (N - 1) * Each, from + (N - 1) * Each);
    }
    // `M` elements from `from` on become those from element `i` on.
    template <int M, typename Words>
    __device__ static void take(Words& words, int i, const weight_t* from) {
        const words_t<M> part = words_of<M>(from);
        if (M % Words::kPerWord == 0 && i % Words::kPerWord == 0) words.set(i, part);
        else for (int j = 0; j < M; ++j) words.put(i + j, part.get(j));
    }
    // In wide accesses, where `M` elements are whole words.
    template <int M>
    __device__ static words_t<M> words_of(const weight_t* from) {
        if constexpr (M * sizeof(weight_t) % 4 == 0) return words_t<M>::load(from);
        auto words = words_t<M>::zero();
        for (int i = 0; i < M; ++i) words.put(i, from[i]);
        return words;
    }
    template <int M>
    __device__ static bool is_together(const weight_t* from) {
        return M * sizeof(weight_t) % 4 == 0 && reinterpret_cast<uintptr_t>(from) % sizeof(typename words_t<M>::raw_t) == 0;
    }
};

// n / d for a d that is the same for all threads: a multiplication and a shift. Right for n < 2^31 (Granlund and
// Montgomery, Division by invariant integers using multiplication, 1994).
struct Divisor {
    static constexpr int64_t kLimit = int64_t{1} << 31;  // of n
    uint32_t d, magic, shift;

    explicit Divisor(int64_t divisor) : d(static_cast<uint32_t>(divisor)), magic(0), shift(0) {
        while ((uint64_t{1} << shift) < d) ++shift;
        magic = static_cast<uint32_t>(((uint64_t{1} << (31 + shift)) + d - 1) / d);  // at most 2^31 * 2^shift / d < 2^32
    }

    __device__ uint32_t operator()(uint32_t n) const {
        return static_cast<uint32_t>((static_cast<uint64_t>(n) * magic) >> 31 >> shift);
    }
};
