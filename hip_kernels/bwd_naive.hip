// A thread per element of x for dx; a block per (channel, tap) for dweight and dbias. Everything is read from global memory.
//
// With g = dout * act'(pre-activation), which each thread computes anew (width taps) wherever it needs it:
//
//   x, weight, bias, dout
//     |  dx:       dx[t] = sum_w weight[width - 1 - w] g[t + w]     width x width reads for one output
//     |  dweight:  dweight[w] = sum_{b, t} x[t - (width - 1) + w] g[t];  dbias = sum_{b, t} g[t]
//   dx, dinitial_states, dweight, dbias
//
// Any width, strides and layout, states, packed sequences. The sums of a block are taken in a fixed order: the same bits
// in every run. The yardstick for the others.
#include "cc1d/config.h"
#include "cc1d/sums.h"

constexpr int kBlock = CC1D_BLOCK;

__device__ inline acc_t weight_at(const Params& p, index_t dim, index_t w) {
    return to_float(static_cast<const weight_t*>(p.weight)[dim * p.weight_dim_stride + w * p.weight_width_stride]);
}

// The gradient before the activation at step `t`.
__device__ inline acc_t inner_gradient(const Params& p, index_t batch, index_t dim, index_t t) {
    if (is_padding(p, batch, t)) return 0;
    const acc_t dout = to_float(static_cast<const elem_t*>(p.dout)[batch * p.dout_batch_stride + dim * p.dout_dim_stride + t * p.dout_seq_stride]);
    if (!kSilu) return dout;
    acc_t sum = p.bias ? to_float(static_cast<const weight_t*>(p.bias)[dim]) : acc_t(0);
    const index_t oldest = t - (kWidth - 1);
    for (index_t from = first_seen(p, batch, t); from <= t; ++from)
        if (kStates || from >= 0) sum += weight_at(p, dim, from - oldest) * to_float(x_at(p, batch, dim, from));
    return dout * activate_slope(sum);
}

extern "C" __global__ __launch_bounds__(kBlock) void bwd_naive(const Params p) {
    // A block covers kBlock elements of one row along the contiguous dimension.
    const index_t inner = kChannelLast ? p.dim : p.seqlen;
    const index_t outer = kChannelLast ? p.seqlen : p.dim;
    const index_t chunks = ceil_div(inner, kBlock);
    const index_t row = blockIdx.x / chunks;
    const index_t i = (blockIdx.x - row * chunks) * kBlock + threadIdx.x;
    if (i >= inner) return;
    const index_t batch = row / outer;
    const index_t dim = kChannelLast ? i : row - batch * outer;
    const index_t t = kChannelLast ? row - batch * outer : i;

    const auto weight = [&](int w) { return weight_at(p, dim, w); };
    const auto gradient = [&](index_t to) { return inner_gradient(p, batch, dim, to); };
    acc_t sum = 0;
    for (int k = seen_by(p, batch, t); k-- > 0;) sum += weight(kWidth - 1 - k) * gradient(t + k);
    const Tail tail = gradient_tail(p, batch);
    if (kStates) sum += final_gradient(p, tail, batch, dim, t);
    static_cast<elem_t*>(p.dx)[batch * p.dx_batch_stride + dim * p.dx_dim_stride + t * p.dx_seq_stride] = from_float<elem_t>(sum);
    if (t == 0) write_dinitial_states(p, tail, batch, dim, gradient, weight);
}

// Block (dim, w): dweight[dim, w], and dbias[dim] where w is width.
extern "C" __global__ __launch_bounds__(kBlock) void dweight(const Params p) {
    __shared__ acc_t sums[kBlock];
    const index_t dim = blockIdx.x / (kWidth + 1);
    const int w = static_cast<int>(blockIdx.x - dim * (kWidth + 1));
    const index_t n = w < kWidth || p.dbias ? p.batch * p.seqlen : 0;

    acc_t sum = 0;
    for (index_t i = threadIdx.x; i < n; i += kBlock) {
        const index_t batch = i / p.seqlen, t = i - batch * p.seqlen;
        const index_t from = t - (kWidth - 1) + w;
        if (is_padding(p, batch, t)) continue;  // x of padding may be anything
        if (w == kWidth) sum += inner_gradient(p, batch, dim, t);
        else if ((kStates || from >= 0) && from >= first_seen(p, batch, t))
            sum += inner_gradient(p, batch, dim, t) * to_float(x_at(p, batch, dim, from));
    }
    sums[threadIdx.x] = sum;
    for (int half = kBlock / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x > 0) return;
    write_sum(p, w, dim, sums[0]);
}

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int stage, const Params& p, stream_t stream) {
    const index_t rows = kChannelLast ? p.batch * p.seqlen * ceil_div(p.dim, kBlock) : p.batch * p.dim * ceil_div(p.seqlen, kBlock);
    if (stage == 0) launch<bwd_naive>(grid_of(rows), dim3(kBlock), stream, p);
    if (stage == 1) launch<dweight>(grid_of(p.dim * (kWidth + 1)), dim3(kBlock), stream, p);
}

CC1D_EXPORT("dx", "dweight")
