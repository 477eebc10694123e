// A thread per (batch, channel): the outputs of a few new steps, then the state moved on in place.
//
// A linear state holds the last steps, newest last; it is shifted. A circular one (cache_seqlens) is a ring in which the
// next step goes to cache_seqlens % state_len; nothing is shifted. A row of conv_state_indices that names no state is
// padding: its output is 0 and no state is touched. Rows that name the same state race; that is the caller's to avoid.
//
//   conv_state  [ . . . s-3 s-2 s-1 ]   x [ 0 1 .. ]      any state_len >= width - 1
//                         \   \   \      /
//   out                        [ 0 1 .. ]
//   conv_state  [ . . s-3 s-2 s-1 0 1 .. ]                in place, after all outputs of the thread
#include "cc1d/config.h"

constexpr int kBlock = CC1D_BLOCK;

extern "C" __global__ __launch_bounds__(kBlock) void update_naive(const Params p) {
    const index_t i = index_t(blockIdx.x) * kBlock + threadIdx.x;
    if (i >= p.batch * p.dim) return;
    const index_t batch = i / p.dim, dim = i - batch * p.dim;
    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim * p.x_dim_stride;
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim * p.out_dim_stride;

    const index_t row = p.conv_state_indices ? static_cast<const int32_t*>(p.conv_state_indices)[batch] : batch;
    if (row < 0 || row >= p.state_count) {
        for (index_t t = 0; t < p.seqlen; ++t) out[t * p.out_seq_stride] = from_float<elem_t>(0);
        return;
    }
    elem_t* state = static_cast<elem_t*>(p.conv_state) + row * p.conv_state_batch_stride + dim * p.conv_state_dim_stride;
    const bool circular = p.cache_seqlens;
    index_t next = circular ? static_cast<const int32_t*>(p.cache_seqlens)[batch] % p.state_len : 0;
    if (next < 0) next += p.state_len;  // where step 0 goes; in a linear state, step 0 follows its end

    const weight_t* weight = static_cast<const weight_t*>(p.weight) + dim * p.weight_dim_stride;
    const acc_t bias = p.bias ? to_float(static_cast<const weight_t*>(p.bias)[dim]) : acc_t(0);
    for (index_t t = 0; t < p.seqlen; ++t) {
        acc_t sum = bias;
        for (int w = 0; w < kWidth; ++w) {
            const index_t from = t - (kWidth - 1) + w;  // below 0: in the state, at most width - 1 <= state_len back
            index_t place = next + from;
            if (place < 0) place += p.state_len;
            const elem_t value = from >= 0 ? x[from * p.x_seq_stride] : state[place * p.conv_state_seq_stride];
            sum += to_float(weight[w * p.weight_width_stride]) * to_float(value);
        }
        out[t * p.out_seq_stride] = from_float<elem_t>(activate(sum));
    }
    if (circular) {
        for (index_t t = 0; t < p.seqlen; ++t) {
            state[next * p.conv_state_seq_stride] = x[t * p.x_seq_stride];
            next = next + 1 == p.state_len ? 0 : next + 1;
        }
    } else {
        for (index_t s = 0; s < p.state_len; ++s) {
            const index_t from = s + p.seqlen;  // of the state and x side by side
            state[s * p.conv_state_seq_stride] = from < p.state_len ? state[from * p.conv_state_seq_stride] : x[(from - p.state_len) * p.x_seq_stride];
        }
    }
}

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int, const Params& p, stream_t stream) {
    launch<update_naive>(grid_of(ceil_div(p.batch * p.dim, kBlock)), dim3(kBlock), stream, p);
}

CC1D_EXPORT("update")
