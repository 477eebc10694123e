// im2col in shared memory, and a matrix product whose sums get bias and activation on the spot: one kernel, no workspace.
//
// The same matrix product as fwd_im2col_wmma, cut into tiles of 64 steps and a few channels, without anything of it in device memory.
// The im2col tile holds `width` shifted copies of a tile of x side by side. Of the dense weight (width x dim by dim) a
// tile meets the blocks of 16 x 16 on its diagonals, one for each tap; the others are all zero and left out. They are dense
// to the matrix cores, so 16 times the useful products are issued: 32 x width FLOPs an output, in whole tiles of 16 x 16.
//
//   x        [ 64 steps x `channels` ]                     and width - 1 steps before; global memory, once
//                |  `width` shifted copies side by side
//   im2col   [ 64 ][ width x channels ]   16-bit           shared memory
//                x  [ width ][ channels / 16 ][ 16 x 16 ]  shared memory: diagonal, written from the weight
//   sums     [ 64 ][ channels ]           fp32             shared memory, in place of the im2col tile
//                |  + bias, activation, rounding
//   out      [ 64 steps x `channels` ]                     in vectors along the contiguous dimension
//
// That is channel_last. In channel_first all of it is transposed (weight x im2col), so that the contiguous dimension
// stays the last one, and the shifted copies go element by element.
#include "cc1d/config.h"
#include "cc1d/packed.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kChannels = CC1D_CHANNELS;  // of a tile
constexpr int kSteps = 64;                // of a tile
constexpr int kSide = 16;                 // of a fragment
constexpr int kHalo = kWidth - 1;
constexpr int kHaloPad = kChannelLast ? kHalo : kVec;  // steps that are loaded before the tile: whole vectors
constexpr int kWaves = kBlock / kWarp;
constexpr int kAcross = kChannels / kSide;                     // fragments side by side along the channels
constexpr int kMine = ceil_div(kSteps / kSide * kAcross, kWaves);  // fragments of sums a wave has
static_assert(kHalo <= kVec, "the halo lies in the vector before the tile");

// The last dimension of the tiles is the contiguous one, `kFast` long. 8 elements more keep neighbouring rows in other banks.
constexpr int kFast = kChannelLast ? kChannels : kSteps, kSlow = kChannelLast ? kSteps : kChannels;
constexpr int kColPitch = (kChannelLast ? kWidth * kChannels : kSteps) + 8;
constexpr int kColRows = kChannelLast ? kSteps : kWidth * kChannels;
constexpr int kSumPitch = kFast + 8;
using vector_t = Packed<elem_t, kVec>;

union Tile {
    elem_t col[kColRows * kColPitch];  // im2col, first
    float sums[kSlow * kSumPitch];     // then the products
};

__device__ inline void store_shared(elem_t* to, const vec_t& v) { *reinterpret_cast<vec_t*>(to) = v; }

// Where a step of a channel stands among the copies of a tap.
__device__ inline int col_index(int step, int channel, int tap) {
    return kChannelLast ? step * kColPitch + tap * kChannels + channel : (tap * kChannels + channel) * kColPitch + step;
}

struct Place {
    index_t batch, dim, t;  // of the tile

    __device__ explicit Place(const Params& p) {
        const index_t dims = ceil_div(p.dim, kChannels), steps = ceil_div(p.seqlen, kSteps);
        const index_t across = kChannelLast ? dims : steps, down = kChannelLast ? steps : dims;  // contiguous first
        const index_t line = blockIdx.x / across, first = blockIdx.x - line * across;
        batch = line / down;
        const index_t second = line - batch * down;
        dim = (kChannelLast ? first : second) * kChannels;
        t = (kChannelLast ? second : first) * kSteps;
    }
};

// A vector of x is read once, and goes to its place in the copy of each tap; 0 where x has nothing.
__device__ inline void form_im2col(const Params& p, const Place& at, elem_t* col) {
    constexpr int kLoaded = kHaloPad + kSteps;  // steps
    constexpr int kPerRow = (kChannelLast ? kChannels : kLoaded) / kVec, kRows = kChannelLast ? kLoaded : kChannels;
    const index_t fast = kChannelLast ? p.x_dim_stride : p.x_seq_stride, slow = kChannelLast ? p.x_seq_stride : p.x_dim_stride;
    const elem_t* x = static_cast<const elem_t*>(p.x) + at.batch * p.x_batch_stride;
    const bool vectors = fast == 1 && is_vector_aligned(x, slow);
    for (int i = threadIdx.x; i < kRows * kPerRow; i += kBlock) {
        const int row = i / kPerRow, in_row = (i - row * kPerRow) * kVec;
        const int channel = kChannelLast ? in_row : row, step = (kChannelLast ? row : in_row) - kHaloPad;
        const index_t dim = at.dim + channel, t = at.t + step;
        const bool inside = dim < p.dim && t >= 0 && t < p.seqlen;
        const index_t left = kChannelLast ? p.dim - dim : p.seqlen - t;
        const vec_t v = load_part(x + dim * p.x_dim_stride + t * p.x_seq_stride, fast, inside ? left : 0, vectors);
        for (int tap = 0; tap < kWidth; ++tap) {
            const int to = step + kHalo - tap;
            if constexpr (kChannelLast) {
                if (to >= 0 && to < kSteps) store_shared(col + col_index(to, channel, tap), v);
            } else {
                for (int e = 0; e < kVec; ++e)
                    if (to + e >= 0 && to + e < kSteps) col[col_index(to + e, channel, tap)] = v.v[e];
            }
        }
    }
}

// The blocks on the diagonals: [tap][block of channels][16][16].
__device__ inline void expand_weight(const Params& p, const Place& at, elem_t* blocks) {
    for (int i = threadIdx.x; i < kWidth * kChannels * (kSide / kVec); i += kBlock) {
        const int row = i / (kSide / kVec), column = i % (kSide / kVec) * kVec;
        const int tap = row / kChannels, channel = row - tap * kChannels;
        const index_t dim = at.dim + channel;
        const weight_t* weight = static_cast<const weight_t*>(p.weight) + dim * p.weight_dim_stride;
        vec_t v;
        for (int e = 0; e < kVec; ++e)
            v.v[e] = column + e == channel % kSide && dim < p.dim ? weight[tap * p.weight_width_stride] : from_float<elem_t>(0);
        store_shared(blocks + row * kSide + column, v);
    }
}

// Bias and activation on the sums, and out in vectors.
__device__ inline void store_tile(const Params& p, const Place& at, const float* sums) {
    const index_t fast = kChannelLast ? p.out_dim_stride : p.out_seq_stride, slow = kChannelLast ? p.out_seq_stride : p.out_dim_stride;
    elem_t* out = static_cast<elem_t*>(p.out) + at.batch * p.out_batch_stride;
    const bool vectors = fast == 1 && is_vector_aligned(out, slow);
    const weight_t* biases = static_cast<const weight_t*>(p.bias);
    for (int i = threadIdx.x; i < kSlow * kFast / kVec; i += kBlock) {
        const int row = i / (kFast / kVec), in_row = i % (kFast / kVec) * kVec;
        const index_t dim = at.dim + (kChannelLast ? in_row : row), t = at.t + (kChannelLast ? row : in_row);
        if (dim >= p.dim || t >= p.seqlen) continue;
        const index_t left = kChannelLast ? p.dim - dim : p.seqlen - t;
        acc_t result[kVec];
        for (int e = 0; e < kVec; ++e) {
            const index_t channel = kChannelLast && e < left ? dim + e : dim;
            result[e] = activate(sums[row * kSumPitch + in_row + e] + (p.bias ? to_float(biases[channel]) : acc_t(0)));
        }
        const vector_t v = vector_t::from(result);
        elem_t* to = out + dim * p.out_dim_stride + t * p.out_seq_stride;
        if (vectors && left >= kVec) {
            v.store(to);
        } else {
            for (int e = 0; e < kVec; ++e)
                if (e < left) to[e * fast] = v.get(e);
        }
    }
}

// Where fragment i of a wave begins in the tile.
__device__ inline int step_of(int i) { return (threadIdx.x / kWarp + i * kWaves) / kAcross * kSide; }
__device__ inline int channel_of(int i) { return (threadIdx.x / kWarp + i * kWaves) % kAcross * kSide; }

extern "C" __global__ __launch_bounds__(kBlock) void fwd_im2col_fused_wmma(const Params p) {
    alignas(32) __shared__ Tile tile;
    alignas(32) __shared__ elem_t blocks[kWidth * kChannels * kSide];
    const Place at(p);
    form_im2col(p, at, tile.col);
    expand_weight(p, at, blocks);
    __syncthreads();

    FragmentC sums[kMine];
    for (int i = 0; i < kMine; ++i) sums[i].fill(0.0f);
    for (int tap = 0; tap < kWidth; ++tap) {
        FragmentA<elem_t> a;
        FragmentB<elem_t> b;
        for (int i = 0; i < kMine; ++i) {
            const int step = step_of(i), channel = channel_of(i);
            const elem_t* col = tile.col + col_index(step, channel, tap);
            if (i == 0 || kWaves % kAcross != 0) {  // else a wave keeps to one block of channels
                const elem_t* block = blocks + (tap * kChannels + channel) * kSide;
                if constexpr (kChannelLast) b.load_shared(block, kSide);
                else a.load_shared(block, kSide);
            }
            if (at.t + step >= p.seqlen || at.dim + channel >= p.dim || step >= kSteps) continue;
            if constexpr (kChannelLast) a.load_shared(col, kColPitch);
            else b.load_shared(col, kColPitch);
            multiply_accumulate(sums[i], a, b);
        }
    }
    __syncthreads();
    for (int i = 0; i < kMine; ++i) {
        const int step = step_of(i), channel = channel_of(i);
        if (step < kSteps) sums[i].store(tile.sums + (kChannelLast ? step * kSumPitch + channel : channel * kSumPitch + step), kSumPitch);
    }
    __syncthreads();
    store_tile(p, at, tile.sums);
}

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int, const Params& p, stream_t stream) {
    const index_t tiles = p.batch * ceil_div(p.dim, kChannels) * ceil_div(p.seqlen, kSteps);
    launch<fwd_im2col_fused_wmma>(grid_of(tiles), dim3(kBlock), stream, p);
}

CC1D_EXPORT("conv")
