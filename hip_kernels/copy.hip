// A copy of as many bytes as the convolution moves, a 16-byte vector a thread: the ceiling that it is compared with.
//
//   x  [ 16 bytes a thread ]  ->  out      global -> registers -> global, every element once
#include "cc1d/config.h"

constexpr int kBlock = CC1D_BLOCK;

extern "C" __global__ __launch_bounds__(kBlock) void copy(const Params p, index_t n) {
    const index_t i = (index_t(blockIdx.x) * kBlock + threadIdx.x) * kVec;
    const elem_t* x = static_cast<const elem_t*>(p.x);
    elem_t* out = static_cast<elem_t*>(p.out);
    if (i + kVec <= n) store_vec(out + i, load_vec<kVec>(x + i));
    else
        for (index_t j = i; j < n; ++j) out[j] = x[j];
}

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int, const Params& p, stream_t stream) {
    const index_t n = p.batch * p.dim * p.seqlen;  // x and out are contiguous
    launch<copy>(grid_of(ceil_div(n, kBlock * kVec)), dim3(kBlock), stream, p, n);
}

CC1D_EXPORT("copy")
