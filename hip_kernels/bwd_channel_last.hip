// A tile of 64 steps x 64 channels in shared memory, 128 threads, grid (batch, chunks of seqlen, chunks of dim).
//
// With the channels contiguous, a 16-byte vector holds neighbouring channels of one step. A block reads its tile of x and
// dout, with the width - 1 steps before and after it, computes g = dout * act'(pre-activation) into shared memory, then dx
// and its partial sums of dweight and dbias. A second kernel adds the partial sums in a fixed order.
//
//            channels ->
//   x      [ halo ; 64 x 64 ; halo ]      global -> shared
//   dout          [ 64 x 64 ; halo ]      global -> registers -> shared as g
//                     |
//   dx            [ 64 x 64 ]             registers -> global
//   sums   a row of 64 x (width + 1)      registers -> shared, threads added in order -> workspace [tile][width + 1][dim]
//     |  stage 2: a block per 32 channels of one tap walks the tiles
//   dweight, dbias                        the same bits in every run
#include "cc1d/config.h"
#include "cc1d/sums.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kTile = 64;
constexpr int kHalo = kWidth - 1;
constexpr int kAcross = kTile / kVec;     // threads side by side along the channels
constexpr int kDown = kBlock / kAcross;   // threads below one another along the sequence
constexpr int kSteps = kTile / kDown;     // steps of a thread
constexpr index_t kGridLimit = 65535;     // of the grid's second and third dimension
static_assert(kSteps * kDown == kTile, "the threads of a block must divide the tile");

// Tiles of the sequence before `seq_tile0` and of the channels before `dim_tile0` belong to other launches.
extern "C" __global__ __launch_bounds__(kBlock) void bwd_channel_last(const Params p, index_t seq_tile0, index_t dim_tile0) {
    __shared__ vec_t x_tile[kHalo + kTile + kHalo][kAcross];
    __shared__ acc_t gradients[kTile + kHalo][kTile];
    __shared__ acc_t weights[kWidth][kTile];
    __shared__ acc_t sums[kDown][kTile];

    const index_t batch = blockIdx.x, seq_tile = seq_tile0 + blockIdx.y, t0 = seq_tile * kTile;
    const index_t dim0 = (dim_tile0 + blockIdx.z) * kTile;
    const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
    const index_t dim = dim0 + across * kVec, channels = p.dim - dim;  // those of this thread that exist

    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim * p.x_dim_stride;
    const elem_t* dout = static_cast<const elem_t*>(p.dout) + batch * p.dout_batch_stride + dim * p.dout_dim_stride;
    elem_t* dx = static_cast<elem_t*>(p.dx) + batch * p.dx_batch_stride + dim * p.dx_dim_stride;
    const bool x_vectors = p.x_dim_stride == 1 && is_vector_aligned(x, p.x_seq_stride);
    const bool dout_vectors = p.dout_dim_stride == 1 && is_vector_aligned(dout, p.dout_seq_stride);
    const bool dx_vectors = p.dx_dim_stride == 1 && is_vector_aligned(dx, p.dx_seq_stride);

    // x_tile[i] is step t0 - halo + i; gradients[i] is step t0 + i.
    for (int row = down; row < kHalo + kTile + kHalo; row += kDown) {
        const index_t t = t0 - kHalo + row;
        const bool inside = t >= 0 && t < p.seqlen;
        x_tile[row][across] = load_part(x + (inside ? t : 0) * p.x_seq_stride, p.x_dim_stride, inside ? channels : 0, x_vectors);
        if (kStates && t < 0)
            for (int i = 0; i < kVec; ++i)
                if (i < channels) x_tile[row][across].v[i] = x_at(p, batch, dim + i, t);
    }
    for (int i = threadIdx.x; i < kTile * kWidth; i += kBlock) {
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
    const auto seen = [&](index_t t) { return kSeqIdx ? static_cast<int>(first_seen(p, batch, t) - (t - kHalo)) : 0; };

    for (int row = down; row < kTile + kHalo; row += kDown) {
        const index_t t = t0 + row;
        const bool inside = t < p.seqlen && !(kSeqIdx && is_padding(p, batch, t));
        const vec_t d = load_part(dout + (inside ? t : 0) * p.dout_seq_stride, p.dout_dim_stride, inside ? channels : 0, dout_vectors);
        const int from = inside ? seen(t) : 0;
        for (int i = 0; i < kVec; ++i) {
            acc_t g = to_float(d.v[i]);
            if (kSilu) {
                acc_t sum = bias[i];
                for (int w = 0; w < kWidth; ++w)
                    if (!kSeqIdx || w >= from) sum += weight[w][i] * to_float(x_tile[row + w][across].v[i]);
                g *= activate_slope(sum);
            }
            gradients[row][across * kVec + i] = inside ? g : acc_t(0);
        }
    }
    __syncthreads();

    const Tail tail = gradient_tail(p, batch);
    acc_t mine[kSums][kVec] = {};
    for (int step = 0; step < kSteps; ++step) {
        const int row = down * kSteps + step;
        const index_t t = t0 + row;
        const bool inside = t < p.seqlen, counts = inside && !is_padding(p, batch, t);  // x of padding may be anything
        const int from = inside ? seen(t) : 0, until = kSeqIdx && inside ? seen_by(p, batch, t) : kWidth;
        vec_t result;
        for (int i = 0; i < kVec; ++i) {
            const int channel = across * kVec + i;
            const acc_t g = gradients[row][channel];
            acc_t sum = 0;
            for (int k = kWidth; k-- > 0;)
                if (!kSeqIdx || k < until) sum += weight[kHalo - k][i] * gradients[row + k][channel];
            for (int w = 0; w < kWidth; ++w)
                if (counts && (!kSeqIdx || w >= from)) mine[w][i] += g * to_float(x_tile[row + w][across].v[i]);
            mine[kWidth][i] += g;
            if (kStates && i < channels && inside) sum += final_gradient(p, tail, batch, dim + i, t);
            result.v[i] = from_float<elem_t>(sum);
        }
        if (inside) store_part(dx + t * p.dx_seq_stride, result, p.dx_dim_stride, channels, dx_vectors);
    }
    if (kStates && t0 == 0 && down == 0)
        for (int i = 0; i < kVec && i < channels; ++i)
            write_dinitial_states(
                p, tail, batch, dim + i, [&](index_t t) { return gradients[t][across * kVec + i]; }, [&](int w) { return weights[w][across * kVec + i]; });

    // Added up below one another, thread after thread.
    const index_t seq_tiles = ceil_div(p.seqlen, kTile);
    acc_t* partial = static_cast<acc_t*>(p.workspace) + (batch * seq_tiles + seq_tile) * kSums * p.dim;
    for (int w = 0; w < kSums; ++w) {
        for (int i = 0; i < kVec; ++i) sums[down][across * kVec + i] = mine[w][i];
        __syncthreads();
        for (int channel = threadIdx.x; channel < kTile; channel += kBlock) {
            acc_t sum = 0;
            for (int row = 0; row < kDown; ++row) sum += sums[row][channel];
            if (dim0 + channel < p.dim) partial[w * p.dim + dim0 + channel] = sum;
        }
        __syncthreads();
    }
}

constexpr int kReduceAcross = 32, kReduceDown = kBlock / kReduceAcross;

extern "C" __global__ __launch_bounds__(kBlock) void reduce(const Params p) {
    add_partial_sums<kReduceAcross, kReduceDown>(p, p.batch * ceil_div(p.seqlen, kTile));
}

static int64_t workspace_bytes(const Params& p) { return p.batch * ceil_div(p.seqlen, kTile) * kSums * p.dim * sizeof(acc_t); }

static void launch_stage(int stage, const Params& p, stream_t stream) {
    const index_t seq_tiles = ceil_div(p.seqlen, kTile), dim_tiles = ceil_div(p.dim, kTile);
    const auto part = [](index_t tiles, index_t begin) { return tiles - begin < kGridLimit ? tiles - begin : kGridLimit; };
    for (index_t s = 0; stage == 0 && s < seq_tiles; s += kGridLimit)
        for (index_t d = 0; d < dim_tiles; d += kGridLimit)
            launch<bwd_channel_last>(grid_of(p.batch, part(seq_tiles, s), part(dim_tiles, d)), dim3(kBlock), stream, p, s, d);
    if (stage == 1) launch<reduce>(grid_of_sums<kReduceAcross>(p), dim3(kBlock), stream, p);
}

CC1D_EXPORT("partial", "reduce")
