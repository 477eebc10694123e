// A block per (batch, channel) walks the sequence and keeps partial sums of dweight and dbias; a second kernel adds them up.
//
// x and dout are read once and dx is written once. With g = dout * act'(pre-activation) computed once for each step (and
// once more for the width - 1 steps that the chunk before looks ahead to), an output costs O(width) operations.
//
//   x     [ halo | chunk: block x items | halo ]     global -> shared
//   dout         [ chunk                | halo ]     global -> shared, turned into g
//                   |
//   dx           [ chunk ]                           shared -> registers -> shared -> global
//   sums  dweight, dbias of this (batch, channel)    registers of the threads -> shared, a tree -> workspace
//     |  stage 2: a thread per (channel, tap) adds the batches up in order; one per (batch, channel) for the initial state
//   dweight, dbias, dinitial_states                  the same bits in every run
#include "cc1d/config.h"
#include "cc1d/sums.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kItems = kVec * CC1D_VECTORS;  // consecutive steps of a thread
constexpr int kChunk = kBlock * kItems;
constexpr int kHalo = kWidth - 1;

constexpr int kKept = kSums + (kStates ? kHalo : 0);  // in the workspace, of a (batch, channel): and the first gradients

__device__ inline acc_t weight_at(const Params& p, index_t dim, int w) {
    return to_float(static_cast<const weight_t*>(p.weight)[dim * p.weight_dim_stride + w * p.weight_width_stride]);
}

// Elements [0, n) of a row into shared memory, and zeros up to `size`. The row begins at a step below `seqlen`.
__device__ inline void block_load(elem_t* tile, int size, const elem_t* row, index_t stride, index_t n, bool vectors) {
    for (int i = threadIdx.x * kVec; i < size; i += kBlock * kVec) {
        const vec_t v = load_part(row + i * stride, stride, n - i, vectors);
        for (int j = 0; j < kVec; ++j)
            if (i + j < size) tile[i + j] = v.v[j];
    }
}

extern "C" __global__ __launch_bounds__(kBlock) void bwd_two_stage(const Params p) {
    __shared__ elem_t x_tile[kHalo + kChunk + kHalo];
    __shared__ elem_t dout_tile[kChunk + kHalo];  // then dx
    __shared__ acc_t gradients[kChunk + kHalo];
    __shared__ acc_t sums[kSums][kBlock];
    __shared__ acc_t dfinal[kWidth];  // as it is at the last steps of the last sequence

    const index_t batch = blockIdx.x / p.dim, dim = blockIdx.x - batch * p.dim;
    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim * p.x_dim_stride;
    const elem_t* dout = static_cast<const elem_t*>(p.dout) + batch * p.dout_batch_stride + dim * p.dout_dim_stride;
    elem_t* dx = static_cast<elem_t*>(p.dx) + batch * p.dx_batch_stride + dim * p.dx_dim_stride;
    const bool x_vectors = p.x_seq_stride == 1 && is_vector_aligned(x, 0);
    const bool dout_vectors = p.dout_seq_stride == 1 && is_vector_aligned(dout, 0);
    const bool dx_vectors = p.dx_seq_stride == 1 && is_vector_aligned(dx, 0);

    acc_t* kept = static_cast<acc_t*>(p.workspace) + index_t(blockIdx.x) * kKept;
    acc_t weight[kWidth], mine[kSums] = {};
    for (int w = 0; w < kWidth; ++w) weight[w] = weight_at(p, dim, w);
    const acc_t bias = p.bias ? to_float(static_cast<const weight_t*>(p.bias)[dim]) : acc_t(0);

    const Tail tail = gradient_tail(p, batch);

    // x_tile[i] is step t0 - halo + i; dout_tile[i] and gradients[i] are step t0 + i.
    const auto seen = [&](index_t t) { return kSeqIdx ? static_cast<int>(first_seen(p, batch, t) - (t - kHalo)) : 0; };
    const auto gradient = [&](index_t t, int i) -> acc_t {
        if (kSeqIdx && (t >= p.seqlen || is_padding(p, batch, t))) return 0;
        const acc_t d = to_float(dout_tile[i]);
        if (!kSilu) return d;
        const int from = seen(t);
        acc_t sum = bias;
        for (int w = 0; w < kWidth; ++w)
            if (!kSeqIdx || w >= from) sum += weight[w] * to_float(x_tile[i + w]);
        return d * activate_slope(sum);
    };

    if (kStates)
        for (int i = threadIdx.x; i < kHalo; i += kBlock) dfinal[i] = final_gradient(p, tail, batch, dim, tail.end - kHalo + i);

    for (index_t t0 = 0; t0 < p.seqlen; t0 += kChunk) {
        const index_t n = p.seqlen - t0;
        block_load(x_tile + kHalo, kChunk + kHalo, x + t0 * p.x_seq_stride, p.x_seq_stride, n, x_vectors);
        block_load(dout_tile, kChunk + kHalo, dout + t0 * p.dout_seq_stride, p.dout_seq_stride, n, dout_vectors);
        for (int i = threadIdx.x; i < kHalo; i += kBlock) x_tile[i] = x_at(p, batch, dim, t0 - kHalo + i);
        __syncthreads();

        const int first = threadIdx.x * kItems;
        CC1D_STEP_BY_STEP
        for (int i = first; i < first + kItems; ++i) gradients[i] = gradient(t0 + i, i);
        for (int i = kChunk + threadIdx.x; i < kChunk + kHalo; i += kBlock) gradients[i] = gradient(t0 + i, i);
        __syncthreads();

        CC1D_STEP_BY_STEP
        for (int i = first; i < first + kItems; ++i) {
            const index_t t = t0 + i;
            const acc_t g = gradients[i];
            const bool inside = t < p.seqlen, counts = inside && !is_padding(p, batch, t);  // x of padding may be anything
            const int from = inside ? seen(t) : 0, until = kSeqIdx && inside ? seen_by(p, batch, t) : kWidth;
            acc_t sum = 0;
            for (int k = kWidth; k-- > 0;)
                if (!kSeqIdx || k < until) sum += weight[kHalo - k] * gradients[i + k];
            for (int w = 0; w < kWidth; ++w)
                if (counts && (!kSeqIdx || w >= from)) mine[w] += g * to_float(x_tile[i + w]);
            mine[kWidth] += g;
            if (kStates && inside && tail.has(t)) sum += dfinal[tail.place(t)];
            dout_tile[i] = from_float<elem_t>(sum);
        }
        if (kStates && t0 == 0)
            for (int i = threadIdx.x; i < kHalo; i += kBlock) kept[kSums + i] = gradients[i];
        __syncthreads();

        elem_t* row = dx + t0 * p.dx_seq_stride;
        for (int i = threadIdx.x * kVec; i < kChunk && i < n; i += kBlock * kVec) {
            vec_t v;
            for (int j = 0; j < kVec; ++j) v.v[j] = dout_tile[i + j];
            store_part(row + i * p.dx_seq_stride, v, p.dx_seq_stride, n - i, dx_vectors);
        }
        __syncthreads();
    }

    for (int w = 0; w < kSums; ++w) sums[w][threadIdx.x] = mine[w];
    for (int half = kBlock / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            for (int w = 0; w < kSums; ++w) sums[w][threadIdx.x] += sums[w][threadIdx.x + half];
    }
    if (threadIdx.x == 0)
        for (int w = 0; w < kSums; ++w) kept[w] = sums[w][0];
}

extern "C" __global__ __launch_bounds__(kBlock) void reduce(const Params p) {
    const index_t i = index_t(blockIdx.x) * kBlock + threadIdx.x, row = i - p.dim * kSums;
    const acc_t* kept = static_cast<const acc_t*>(p.workspace);
    if (kStates && row >= 0 && row < p.batch * p.dim) {
        const index_t batch = row / p.dim, dim = row - batch * p.dim;
        const acc_t* first = kept + row * kKept + kSums;
        write_dinitial_states(p, gradient_tail(p, batch), batch, dim, [&](index_t t) { return first[t]; }, [&](int w) { return weight_at(p, dim, w); });
    }
    if (row >= 0) return;
    const index_t dim = i / kSums;
    const int w = static_cast<int>(i - dim * kSums);
    acc_t sum = 0;
    for (index_t batch = 0; batch < p.batch; ++batch) sum += kept[(batch * p.dim + dim) * kKept + w];
    write_sum(p, w, dim, sum);
}

static int64_t workspace_bytes(const Params& p) { return p.batch * p.dim * kKept * sizeof(acc_t); }

static void launch_stage(int stage, const Params& p, stream_t stream) {
    if (stage == 0) launch<bwd_two_stage>(grid_of(p.batch * p.dim), dim3(kBlock), stream, p);
    const index_t results = p.dim * kSums + (kStates ? p.batch * p.dim : 0);
    if (stage == 1) launch<reduce>(grid_of(ceil_div(results, kBlock)), dim3(kBlock), stream, p);
}

CC1D_EXPORT("partial", "reduce")
