// A tile of 64 channels x `tile_seqlen` steps in shared memory; a thread computes a vector of channels over a few steps.
//
// With the channels contiguous, a 16-byte vector holds neighbouring channels of one step, so loads and stores are
// coalesced along the channels and no shuffle is needed. The tile is read with its halo of width - 1 steps once; each
// thread then walks its steps with the last `width` vectors in registers. One barrier.
//
//            channels ->
//   x     [ halo  : width - 1 steps ]
//         [ tile  : 64 x tile_seqlen ]    global -> shared, 16-byte vectors along the channels
//                |
//   regs  [ thread: vector x steps   ]    shared -> registers, a window that slides down the steps
//                |
//   out   [ tile  : 64 x tile_seqlen ]    registers -> global, 16-byte vectors along the channels
#include "cc1d/config.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kTileSeqlen = CC1D_TILE_SEQLEN;
constexpr int kTileDim = 64;
constexpr int kHalo = kWidth - 1;
constexpr int kAcross = kTileDim / kVec;            // threads side by side along the channels
constexpr int kDown = kBlock / kAcross;             // threads below one another along the sequence
constexpr int kSteps = kTileSeqlen / kDown;         // steps of a thread
static_assert(kSteps * kDown == kTileSeqlen, "the threads of a block must divide the tile");

extern "C" __global__ __launch_bounds__(kBlock) void fwd_channel_last(const Params p) {
    __shared__ vec_t tile[kHalo + kTileSeqlen][kAcross];
    __shared__ acc_t weights[kWidth][kTileDim];

    const index_t dim_tiles = ceil_div(p.dim, kTileDim), seq_tiles = ceil_div(p.seqlen, kTileSeqlen);
    const index_t plane = blockIdx.x / dim_tiles;
    const index_t batch = plane / seq_tiles;
    const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
    const index_t dim = (blockIdx.x - plane * dim_tiles) * kTileDim + across * kVec;
    const index_t t0 = (plane - batch * seq_tiles) * kTileSeqlen;
    const index_t channels = p.dim - dim;  // those of this thread that exist: below kVec at the edge, or none

    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim * p.x_dim_stride;
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim * p.out_dim_stride;
    const bool x_vectors = p.x_dim_stride == 1 && is_vector_aligned(x, p.x_seq_stride);
    const bool out_vectors = p.out_dim_stride == 1 && is_vector_aligned(out, p.out_seq_stride);

    for (int row = down; row < kHalo + kTileSeqlen; row += kDown) {
        const index_t t = t0 - kHalo + row;
        const bool inside = t >= 0 && t < p.seqlen;
        tile[row][across] = load_part(x + (inside ? t : 0) * p.x_seq_stride, p.x_dim_stride, inside ? channels : 0, x_vectors);
        if (kStates && t < 0)
            for (int i = 0; i < kVec; ++i)
                if (i < channels) tile[row][across].v[i] = x_at(p, batch, dim + i, t);
    }

    const index_t dim0 = dim - across * kVec;
    for (int i = threadIdx.x; i < kTileDim * kWidth; i += kBlock) {
        const index_t d = dim0 + i / kWidth;
        const int w = i % kWidth;
        const weight_t* weight = static_cast<const weight_t*>(p.weight);
        weights[w][i / kWidth] = d < p.dim ? to_float(weight[d * p.weight_dim_stride + w * p.weight_width_stride]) : acc_t(0);
    }
    __syncthreads();

    acc_t weight[kWidth][kVec], bias[kVec];
    for (int i = 0; i < kVec; ++i) {
        for (int w = 0; w < kWidth; ++w) weight[w][i] = weights[w][across * kVec + i];
        bias[i] = p.bias && i < channels ? to_float(static_cast<const weight_t*>(p.bias)[dim + i]) : acc_t(0);
    }

    vec_t window[kWidth];  // the last `width` steps, oldest first
    for (int w = 0; w < kHalo; ++w) window[w + 1] = tile[down * kSteps + w][across];
    for (int step = 0; step < kSteps; ++step) {
        for (int w = 0; w < kHalo; ++w) window[w] = window[w + 1];
        window[kHalo] = tile[down * kSteps + step + kHalo][across];
        const index_t t = t0 + down * kSteps + step;
        const bool here = !kSeqIdx || t < p.seqlen;
        const int seen = kSeqIdx && here ? static_cast<int>(first_seen(p, batch, t) - (t - kHalo)) : 0;
        const bool padding = kSeqIdx && (!here || is_padding(p, batch, t));
        vec_t result;
        for (int i = 0; i < kVec; ++i) {
            acc_t sum = bias[i];
            for (int w = 0; w < kWidth; ++w)
                if (!kSeqIdx || w >= seen) sum += weight[w][i] * to_float(window[w].v[i]);
            result.v[i] = from_float<elem_t>(padding ? acc_t(0) : activate(sum));
        }
        if (t < p.seqlen) store_part(out + t * p.out_seq_stride, result, p.out_dim_stride, channels, out_vectors);
    }
    if (kStates && down == 0 && t0 + kTileSeqlen >= p.seqlen)
        write_final_states(p, batch, dim, static_cast<int>(channels < kVec ? channels : kVec));
}

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int, const Params& p, stream_t stream) {
    const index_t blocks = p.batch * ceil_div(p.seqlen, kTileSeqlen) * ceil_div(p.dim, kTileDim);
    launch<fwd_channel_last>(grid_of(blocks), dim3(kBlock), stream, p);
}

CC1D_EXPORT("conv")
