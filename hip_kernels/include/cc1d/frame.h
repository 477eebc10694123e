// Rows that run along the sequence, in whole vectors whatever address they begin at.
//
// A convolution is shift invariant, so a row that does not begin on a 16-byte boundary keeps the aligned frame of memory and
// starts a few elements early. The first and the last vector of a row are read whole, too, and masked; they are stored
// element by element.
//
//   row    . . [ x x x x x x x x x x x x x x x x x ] . .      of memory; | marks 16 bytes
//   frame  |       |       |       |       |       |          lead: the two elements before [
#pragma once
#include "packed.h"

// How the rows of some tensors lie: each on a 16-byte boundary and all of it in whole runs; at the same distance from one in
// every tensor, so that they share a frame; or anyhow, element by element.
enum class Rows { aligned, framed, scattered };

// One channel of a tensor (batch, dim, seqlen).
struct Channel {
    elem_t* first;
    index_t batch_stride, seq_stride;

    __device__ Channel(const void* tensor, index_t batch_stride, index_t dim_stride, index_t seq_stride, index_t dim)
        : first(static_cast<elem_t*>(const_cast<void*>(tensor)) + dim * dim_stride), batch_stride(batch_stride), seq_stride(seq_stride) {}
};

// `N` neighbouring steps of a row from step `t` on, which may be below 0. What exists of them lies from first() to before last().
template <int N, Rows kRows>
struct Run {
    static constexpr int kAtOnce = N < kVec ? N : kVec;  // elements of an access
    using run_t = Packed<elem_t, N>;
    uint32_t batch;
    int t, seqlen;

    Run() = default;
    // Run `place` of the row of `batch`.
    __device__ Run(const Channel& c, uint32_t batch, uint32_t place, int seqlen) : batch(batch), t(static_cast<int>(place) * N), seqlen(seqlen) {
        if (kRows == Rows::framed) t -= lead_of(c.first + batch * c.batch_stride);
    }
    __device__ Run(uint32_t batch, int t, int seqlen) : batch(batch), t(t), seqlen(seqlen) {}

    // The `M` steps before it.
    template <int M>
    __device__ Run<M, kRows> before() const {
        return {batch, t - M, seqlen};
    }
    __device__ Run after(int steps) const { return {batch, t + steps, seqlen}; }
    __device__ bool whole() const { return static_cast<uint32_t>(t) <= static_cast<uint32_t>(seqlen - N) && seqlen >= N; }
    __device__ int first() const { return t < 0 ? -t : 0; }
    __device__ int last() const { return seqlen - t < 0 ? 0 : seqlen - t > N ? N : seqlen - t; }
    __device__ bool starts_row() const { return t <= 0; }
    __device__ bool goes_on() const { return t > 0 && t < seqlen; }  // there are steps, and one before them; a frame's last run may be empty
    __device__ bool ends_row() const { return t + N >= seqlen; }
    __device__ static index_t step(const Channel& c) { return kRows == Rows::scattered ? c.seq_stride : 1; }
    __device__ elem_t* place_in(const Channel& c) const { return c.first + batch * c.batch_stride + t * step(c); }

    // With what lies beside the row: a vector that holds something of the tensor lies in its pages. Masked apart from it, so that
    // loads go together.
    // kFetch: of load_raw, of rows that keep a frame.
    template <int kFetch = 0>
    __device__ run_t load(const Channel& c) const {
        return load<kFetch>(place_in(c), step(c));
    }
    template <int kFetch = 0>
    __device__ run_t load(const elem_t* from, index_t step) const {
        if (kRows == Rows::aligned) return run_t::load(from);
        run_t v = run_t::zero();
        if (kRows == Rows::framed) {
            for (int i = 0; i < N; i += kAtOnce)
                if (t + i > -kAtOnce && t + i < seqlen) v.set(i, Packed<elem_t, kAtOnce>::template load<kFetch>(from + i));
        } else {
            const int begin = first(), end = last();
            for (int i = 0; i < N; ++i, from += step)
                if (i >= begin && i < end) v.put(i, *from);
        }
        return v;
    }

    // The `M` steps before it, of which one at least exists; M is at most 8, whole words. `from`: its own place.
    template <int M>
    __device__ Packed<elem_t, M> load_before(const elem_t* from, index_t step) const {
        if constexpr (kRows == Rows::scattered) return before<M>().load(from - M * step, step);
        else return Packed<elem_t, M>::load(from - M);
    }

    // All bits of what exists.
    __device__ run_t mask() const { return run_t::mask(first(), last()); }
    __device__ run_t masked(run_t v) const {
        if (kRows == Rows::framed && !whole()) v &= mask();
        return v;
    }

    __device__ void store(const Channel& c, const run_t& v) const { store(place_in(c), step(c), v); }
    __device__ void store(elem_t* to, index_t step, const run_t& v) const {
        if (kRows == Rows::aligned || (kRows == Rows::framed && whole())) return v.store(to);
        const int begin = first(), end = last();
        for (int i = 0; i < N; i += kAtOnce) {
            if (kRows == Rows::framed && i >= begin && i + kAtOnce <= end) {
                v.template part<kAtOnce>(i).store(to + i);
                continue;
            }
            for (int j = i; j < i + kAtOnce; ++j)
                if (j >= begin && j < end) to[j * step] = v.get(j);
        }
    }

    // The same for all lanes of a wave, some of which have none. Those that hold an end of a row hand it round, and each lane stores an
    // element: one by one takes as many instructions as elements, and the others wait. `to`: its place in `c`.
    __device__ void store_together(const Channel& c, elem_t* to, const run_t& v, bool exists) const {
        if constexpr (kRows != Rows::framed || N < 16) {
            if (exists) store(to, step(c), v);
        } else {
            static_assert(N <= 32, "a lane for each element");
            if (exists && whole()) v.store(to);
            const int lane = lane_id() % 32, half = lane_id() - lane, i = lane % N;
            uint32_t pending = vote(exists && !whole()), others = kWarp > 32 ? shuffle(pending, (lane_id() + 32) % kWarp) : 0;
            while (pending | others) {
                uint32_t mine = pending;
                for (int group = 0; group < 32 / N; ++group, pending &= pending - 1, others &= others - 1)
                    if (group == lane / N) mine = pending;
                const int source = half + (mine ? lowest_bit(mine) : 0);
                uint32_t word = 0;
                for (int w = 0; w < run_t::kWords; ++w) {
                    const uint32_t received = shuffle(v.words[w], source);
                    if (w == i / run_t::kPerWord) word = received;
                }
                const Run theirs(shuffle(batch, source), shuffle(t, source), seqlen);
                if (mine && theirs.t + i >= 0 && theirs.t + i < seqlen) theirs.place_in(c)[i] = Packed<elem_t, run_t::kPerWord>{word}.get(i % run_t::kPerWord);
            }
        }
    }
};

struct RowPlan {
    Rows rows;
    index_t runs;  // of a row
};

// How the rows of some tensors lie, the first of which sets the frame: in runs of `N` elements, of `Framed` where they are framed.
template <int N, int Framed = N, int Count>
RowPlan rows_of(const Params& p, const Strided (&tensors)[Count]) {
    for (const Strided& tensor : tensors)
        if (!tensor.alike(tensors[0])) return {Rows::scattered, ceil_div(p.seqlen, N)};
    const bool aligned = tensors[0].aligned();
    if (aligned && p.seqlen % N == 0) return {Rows::aligned, p.seqlen / N};
    return {Rows::framed, ceil_div(p.seqlen + (aligned ? 0 : kVec - 1), Framed)};
}
