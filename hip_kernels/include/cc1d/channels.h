// A few neighbouring channels a thread, where the channels are contiguous.
//
// A row of channels that does not begin on a vector's boundary is read in the 32-bit words that hold it, shifted into
// place, and stored in vectors that a thread fills up with what the lane below holds.
//
//   lane             0         1         2
//   channels    [ 0 1 2 3 | 4 5 6 7 | 8 9 . .            of a thread
//   vectors     . . |0 1 2 3 4 5|6 7 8 9 . .             of memory: each of its own, but for the ends
#pragma once
#include "packed.h"

// How the channels of all threads lie: in one vector each; side by side at any address; or anyhow, element by element.
enum class Channels { vectors, shifted, scattered };

// How those of threads with `N` channels lie in all of the tensors.
template <int N, int Count>
Channels channels_of(const Params& p, const Strided (&tensors)[Count]) {
    bool aligned = p.dim % N == 0;
    for (const Strided& tensor : tensors) {
        if (tensor.dim != 1) return Channels::scattered;
        aligned = aligned && tensor.aligned_along_channels(N);
    }
    return aligned ? Channels::vectors : Channels::shifted;
}

// `N` channels of a step, of which the first `channels` exist: at most N, none below 1. Asked for apart from their use, so that loads go together.
template <Channels kHow, int N>
struct ChannelLoad {
    using channels_t = Packed<elem_t, N>;
    static constexpr bool kShifts = kHow == Channels::shifted && sizeof(elem_t) == 2;
    uint32_t words[channels_t::kWords + kShifts];

    __device__ void load(const elem_t* from, index_t stride, int channels) {
        channels_t v = channels_t::zero();
        if constexpr (kHow == Channels::vectors) {
            if (channels > 0) v = channels_t::load(from);
        } else if constexpr (kHow == Channels::scattered) {
            for (int i = 0; i < N; ++i)
                if (i < channels) v.put(i, from[i * stride]);
        } else {
            const int ahead = ahead_of(from);
            const auto* first = reinterpret_cast<const uint32_t*>(from - ahead);
            const int end = channels > 0 ? ahead + channels : 0;
            for (int w = 0; w < channels_t::kWords + kShifts; ++w) words[w] = w * channels_t::kPerWord < end ? first[w] : 0;
            return;
        }
        for (int w = 0; w < channels_t::kWords; ++w) words[w] = v.words[w];
    }

    // Past the last channel that exists it may be anything; all 0 where none exists.
    __device__ channels_t value(const elem_t* from) const {
        channels_t v;
        for (int w = 0; w < channels_t::kWords; ++w) v.words[w] = kShifts ? shift_words(words[w], words[w + kShifts], 16 * ahead_of(from)) : words[w];
        return v;
    }

    // Elements of the first word that lie before the first channel.
    __device__ static int ahead_of(const elem_t* from) { return reinterpret_cast<uintptr_t>(from) % 4 / sizeof(elem_t); }
};

// Stores the first `channels` of `N`. Below 0, that many of the lane below do not exist, either. With shifts all lanes of a wave come here; `first` and `last` are of
// a row of lanes.
template <Channels kHow, int N>
__device__ inline void store_channels(elem_t* to, const Packed<elem_t, N>& v, index_t stride, int channels, bool first, bool last) {
    using channels_t = Packed<elem_t, N>;
    constexpr int kWords = channels_t::kWords;
    if constexpr (kHow == Channels::vectors) {
        if (channels > 0) v.store(to);
    } else if constexpr (kHow == Channels::scattered) {
        for (int i = 0; i < N; ++i)
            if (i < channels) to[i * stride] = v.get(i);
    } else {
        static_assert(channels_t::kAccess == kWords, "one access stores them");
        const int ahead = reinterpret_cast<uintptr_t>(to) % (N * sizeof(elem_t)) / sizeof(elem_t);  // of a vector, from the lane below
        uint32_t both[2 * kWords];
        for (int w = 0; w < kWords; ++w) {
            both[w] = shuffle_up(v.words[w], 1);
            both[kWords + w] = v.words[w];
        }
        int words = (N - ahead) / channels_t::kPerWord;  // to go down by
#pragma unroll
        for (int by = kWords; by > 0; by /= 2) {
            const bool moves = words >= by;
            if (moves) words -= by;
            for (int w = 0; w + by < 2 * kWords; ++w) both[w] = moves ? both[w + by] : both[w];
        }
        channels_t whole;
        for (int w = 0; w < kWords; ++w)
            whole.words[w] = sizeof(elem_t) == 2 ? shift_words(both[w], both[w + 1], (N - ahead) % 2 * 16) : both[w];
        if ((!first || ahead == 0) && channels + ahead >= N) {
            whole.store(to - ahead);
        } else {
            for (int i = 0; i < N; ++i)
                if (i - ahead < channels && (i >= ahead || !first)) to[i - ahead] = whole.get(i);
        }
        if (last)
            for (int i = 1; i < N; ++i)
                if (i >= N - ahead && i < channels) to[i] = v.get(i);
    }
}
