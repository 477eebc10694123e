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
#include "cc1d/decode.h"

constexpr int kBlock = CC1D_BLOCK;

extern "C" __global__ __launch_bounds__(kBlock) void update_naive(const Params p) {
    const index_t i = index_t(blockIdx.x) * kBlock + threadIdx.x;
    if (i >= p.batch * p.dim) return;
    const index_t batch = i / p.dim;
    decode_channel(p, batch, i - batch * p.dim);
}

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int, const Params& p, stream_t stream) {
    launch<update_naive>(grid_of(ceil_div(p.batch * p.dim, kBlock)), dim3(kBlock), stream, p);
}

CC1D_EXPORT("update")
