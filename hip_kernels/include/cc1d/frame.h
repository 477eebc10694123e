// Rows that run along the sequence, in whole vectors whatever address they begin at.
//
// A convolution is shift invariant, so a row that does not begin on a 16-byte boundary keeps the aligned frame of memory and
// starts a few elements early. The first and the last run of a row are read whole, too, where that cannot leave the tensor's
// pages, and masked; they are stored element by element.
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
    const elem_t *begin, *end;  // of the tensor's memory

    __device__ Channel(const Params& p, const void* tensor, index_t batch_stride, index_t dim_stride, index_t seq_stride, index_t dim)
        : first(static_cast<elem_t*>(const_cast<void*>(tensor)) + dim * dim_stride),
          batch_stride(batch_stride),
          seq_stride(seq_stride),
          begin(static_cast<const elem_t*>(tensor)),
          end(begin + (p.batch - 1) * batch_stride + (p.dim - 1) * dim_stride + (p.seqlen - 1) * seq_stride + 1) {}
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
    __device__ bool whole() const { return static_cast<uint32_t>(t) <= static_cast<uint32_t>(seqlen - N) && seqlen >= N; }
    __device__ int first() const { return t < 0 ? -t : 0; }
    __device__ int last() const { return seqlen - t < 0 ? 0 : seqlen - t > N ? N : seqlen - t; }
    __device__ bool starts_row() const { return t <= 0; }
    __device__ bool ends_row() const { return t + N >= seqlen; }
    __device__ static index_t step(const Channel& c) { return kRows == Rows::scattered ? c.seq_stride : 1; }
    __device__ elem_t* place_in(const Channel& c) const { return c.first + batch * c.batch_stride + t * step(c); }

    // Whether what lies beside the row can be read with it. One vector that holds something of the tensor lies in its pages; of
    // two, one may not.
    __device__ static bool is_safe(const Channel& c, const elem_t* from) { return N == kVec || (from >= c.begin && from + N <= c.end); }

    __device__ run_t load(const Channel& c) const {
        const elem_t* from = place_in(c);
        if (kRows == Rows::aligned || (kRows == Rows::framed && whole())) return run_t::load(from);
        run_t v = run_t::zero();
        const int begin = first(), end = last();
        if (kRows == Rows::framed && begin < end && is_safe(c, from)) {
            v = run_t::load(from);
            v.keep(begin, end);
            return v;
        }
        for (int i = 0; i < N; ++i, from += step(c))
            if (i >= begin && i < end) v.put(i, *from);
        return v;
    }

    __device__ void store(const Channel& c, const run_t& v) const {
        elem_t* to = place_in(c);
        if (kRows == Rows::aligned || (kRows == Rows::framed && whole())) return v.store(to);
        const int begin = first(), end = last();
        for (int i = 0; i < N; ++i, to += step(c))
            if (i >= begin && i < end) *to = v.get(i);
    }
};

// Whether the rows of two tensors lie at the same distances from a 16-byte boundary, steps side by side.
struct Strides {
    const void* tensor;
    index_t batch, dim, seq;

    bool aligned() const { return lead_of(static_cast<const elem_t*>(tensor)) == 0 && dim % kVec == 0 && batch % kVec == 0; }
    bool alike(const Strides& other) const {
        return seq == 1 && other.seq == 1 && (batch - other.batch) % kVec == 0 && (dim - other.dim) % kVec == 0 &&
               lead_of(static_cast<const elem_t*>(tensor)) == lead_of(static_cast<const elem_t*>(other.tensor));
    }
};
