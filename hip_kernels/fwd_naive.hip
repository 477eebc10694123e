// A thread per output element; every tap is read from global memory.
//
// Each x is read `width` times, and only the caches keep that from costing `width` times the traffic. Any width, any
// strides, either layout, states and packed sequences: the contiguous dimension runs along the threads of a block. The
// yardstick for the others.
//
//   x    [ . . . t-3 t-2 t-1 t . . . ]      global, each element read by `width` threads
//                  \   |   |  /
//   out  [ . . . . . . . . . t . . . ]      global, written once
#include "cc1d/config.h"

constexpr int kBlock = CC1D_BLOCK;

extern "C" __global__ __launch_bounds__(kBlock) void fwd_naive(const Params p) {
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

    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim * p.x_dim_stride;
    const weight_t* weight = static_cast<const weight_t*>(p.weight) + dim * p.weight_dim_stride;
    acc_t sum = p.bias ? to_float(static_cast<const weight_t*>(p.bias)[dim]) : acc_t(0);
    if (!kStates && !kSeqIdx) {
        for (int w = 0; w < kWidth; ++w) {
            const index_t from = t - (kWidth - 1) + w;
            if (from >= 0) sum += to_float(weight[w * p.weight_width_stride]) * to_float(x[from * p.x_seq_stride]);
        }
    } else {
        const index_t seen = first_seen(p, batch, t);
        for (int w = 0; w < kWidth; ++w) {
            const index_t from = t - (kWidth - 1) + w;
            if (from >= seen) sum += to_float(weight[w * p.weight_width_stride]) * to_float(x_at(p, batch, dim, from));
        }
    }
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim * p.out_dim_stride;
    out[t * p.out_seq_stride] = from_float<elem_t>(is_padding(p, batch, t) ? acc_t(0) : activate(sum));
    if (t == p.seqlen - 1) write_final_states(p, batch, dim);
}

static index_t blocks(const Params& p) {
    return kChannelLast ? p.batch * p.seqlen * ceil_div(p.dim, kBlock) : p.batch * p.dim * ceil_div(p.seqlen, kBlock);
}

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int, const Params& p, stream_t stream) {
    launch<fwd_naive>(grid_of(blocks(p)), dim3(kBlock), stream, p);
}

CC1D_EXPORT("conv")
