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
    using run_t = Packed<elem_t, N>;
    uint32_t batch;
    int t, seqlen;

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
    __device__ bool ends_row() const { return t + N >= seqlen; }
    __device__ static index_t step(const Channel& c) { return kRows == Rows::scattered ? c.seq_stride : 1; }
    __device__ elem_t* place_in(const Channel& c) const { return c.first + batch * c.batch_stride + t * step(c); }

    // With what lies beside the row: a vector that holds something of the tensor lies in its pages. Masked apart from it, so that
    // loads go together.
    __device__ run_t load(const Channel& c) const {
        const elem_t* from = place_in(c);
        if (kRows == Rows::aligned) return run_t::load(from);
        run_t v = run_t::zero();
        const int begin = first(), end = last();
        if (kRows == Rows::framed) {
            for (int i = 0; i < N; i += kVec)
                if (i < end && i + kVec > begin) v.set(i, Packed<elem_t, kVec>::load(from + i));
        } else {
            for (int i = 0; i < N; ++i, from += step(c))
                if (i >= begin && i < end) v.put(i, *from);
        }
        return v;
    }

    // All bits of what exists.
    __device__ run_t mask() const { return run_t::mask(first(), last()); }
    __device__ run_t masked(run_t v) const {
        if (kRows == Rows::framed && !whole()) v &= mask();
        return v;
    }

    __device__ void store(const Channel& c, const run_t& v) const {
        elem_t* to = place_in(c);
        if (kRows == Rows::aligned || (kRows == Rows::framed && whole())) return v.store(to);
        const int begin = first(), end = last();
        for (int i = 0; i < N; i += kVec) {
            if (kRows == Rows::framed && i >= begin && i + kVec <= end) {
                v.template part<kVec>(i).store(to + i);
                continue;
            }
            for (int j = i; j < i + kVec; ++j)
                if (j >= begin && j < end) to[j * step(c)] = v.get(j);
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
