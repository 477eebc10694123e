// A few channels a thread, where the channels are contiguous.
//
// Of rows of channels that begin on a vector's boundary a thread takes neighbours, in one vector. Of others it takes channels that
// lie `Across` apart, element by element: what a wave reads or writes at once still lies side by side, nothing is shifted into
// place, and a 16-bit element costs one access, as it costs one conversion anyway. A block may bring rows to shared memory, too, in
// whole vectors, and take its elements there (ChannelFrame).
//
//   lane        0         1         2             lane        0 1 2 3 ... 0 1 2 3 ...
//   channels  [ 0 1 2 3 | 4 5 6 7 | 8 9 . .       channels  [ 0 1 2 3 ...|32 33 34 ...       here 32 apart
//   vectors   |0 1 2 3  |4 5 6 7  |8 9 . .        vectors   . . . |0 1 2 3 4 5 6 7 | . .
#pragma once
#include "packed.h"

// How the channels of all threads lie: a vector each; apart and contiguous, and there are enough for a whole tile; or apart, anyhow.
enum class Channels { vectors, apart, scattered };

// How those of tiles of `Across` threads with `N` channels lie in all of the tensors.
template <int N, int Across, int Count>
Channels channels_of(const Params& p, const Strided (&tensors)[Count]) {
    bool aligned = p.dim % N == 0;
    for (const Strided& tensor : tensors) {
        if (tensor.dim != 1) return Channels::scattered;
        aligned = aligned && tensor.aligned_along_channels(N);
    }
    return aligned ? Channels::vectors : p.dim >= Across * N ? Channels::apart : Channels::scattered;
}

// The channels of a thread: channel i of it is `dim + i * kStep`, and `count` of them exist.
template <Channels kHow, int N, int Across>
struct OwnChannels {
    static constexpr int kStep = kHow == Channels::vectors ? 1 : Across;
    index_t dim;
    int count;

    // Of thread `lane` of a tile. The last tile of channels that lie apart reaches back to be whole: what it shares with the one before
    // is written twice, the same.
    __device__ OwnChannels(const Params& p, index_t tile, int lane) {
        const index_t begin = tile * (Across * N), last = p.dim - Across * N;
        if (kHow == Channels::vectors) dim = begin + lane * N;
        else dim = (kHow == Channels::apart && begin > last ? last : begin) + lane;
        if (kHow == Channels::vectors) count = dim < p.dim ? N : 0;
        else count = kHow == Channels::apart ? N : clamped<0, N>(ceil_div(p.dim - dim, Across));
    }
};

// Elements in a register each.
template <int N>
struct Elements {
    elem_t elements[N];

    __device__ acc_t at(int i) const { return to_float(elements[i]); }
    __device__ void put(int i, elem_t v) { elements[i] = v; }
};

template <Channels kHow, int N>
struct ValuesOf {
    using type = Elements<N>;
};
template <int N>
struct ValuesOf<Channels::vectors, N> {
    using type = Packed<elem_t, N>;
};

// `N` channels of a thread at one step. kFetch: of load_raw.
template <Channels kHow, int N, int Across, int kFetch = 0>
struct ChannelRow {
    using vector_t = Packed<elem_t, N>;
    typename ValuesOf<kHow, N>::type values;

    __device__ acc_t at(int i) const { return values.at(i); }

    // The first `count`; the others are 0.
    __device__ void load(const elem_t* from, index_t stride, int count) {
        if constexpr (kHow == Channels::vectors) {
            values = count > 0 ? vector_t::template load<kFetch>(from) : vector_t::zero();
        } else {
            for (int i = 0; i < N; ++i) values.put(i, i < count ? load_raw<kFetch>(from + offset(i, stride)) : from_float<elem_t>(0));
        }
    }

    // The initial state at step `t` below 0.
    __device__ void load_initial_states(const Params& p, index_t batch, const OwnChannels<kHow, N, Across>& own, index_t t) {
        values = {};
        for (int i = 0; i < N; ++i)
            if (i < own.count) values.put(i, x_at(p, batch, own.dim + i * own.kStep, t));
    }

    __device__ static void store(elem_t* to, index_t stride, int count, const vector_t& results) {
        if constexpr (kHow == Channels::vectors) {
            if (count > 0) results.store(to);
        } else {
            for (int i = 0; i < N; ++i)
                if (i < count) to[offset(i, stride)] = results.get(i);
        }
    }

private:
    __device__ static index_t offset(int i, index_t stride) { return kHow == Channels::apart ? i * Across : i * Across * stride; }
};

// The 16-byte vector of memory that holds `*p`.
template <typename Raw, typename T>
__device__ inline Raw* vector_at(T* p) { return reinterpret_cast<Raw*>(p - lead_of(p)); }

// Shared memory for `N` channels of a step, as far from a vector's boundary as in memory.
template <int N>
struct ChannelFrame {
    static constexpr int kWhole = N / kVec;
    raw16_t vectors[kWhole + 1];

    // Where the first of them lies, which in memory is at `row`.
    __device__ elem_t* first(const elem_t* row) {
        return reinterpret_cast<elem_t*>(reinterpret_cast<char*>(vectors) + reinterpret_cast<uintptr_t>(row) % 16);
    }
};
