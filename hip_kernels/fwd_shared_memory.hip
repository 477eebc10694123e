// A block per (batch, channel) walks the sequence; a chunk and its halo pass through shared memory.
//
// Global memory is read and written once, 16 bytes a thread, neighbours side by side (block load and block store).
// The taps of a thread then come from shared memory: it reads its run of the chunk with the halo before it once, and
// writes its run of results to a second tile, from which the block stores in order. Two barriers a chunk.
//
//   x     [ halo | chunk: block x items ]     global -> shared, 16-byte vectors
//            \      |
//   tile  [ halo | t0 t1 t2 ...         ]     shared -> registers: items + width - 1 values a thread
//                   |
//   out   [        chunk                ]     registers -> shared -> global, 16-byte vectors
#include "cc1d/config.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kItems = kVec * CC1D_VECTORS;  // consecutive outputs of a thread
constexpr int kChunk = kBlock * kItems;
constexpr int kHalo = kWidth - 1;
constexpr int kHaloPad = ceil_div(kHalo, kVec) * kVec;  // keeps the chunk itself on a 16-byte boundary

// A chunk of `n` elements into shared memory, what lies past its end as zero.
__device__ inline void block_load(elem_t* tile, const elem_t* x, index_t stride, index_t n, bool vectors) {
    for (int i = threadIdx.x * kVec; i < kChunk; i += kBlock * kVec) {
        if (vectors && i + kVec <= n) {
            store_vec(tile + i, load_vec<kVec>(x + i));
        } else {
            for (int j = i; j < i + kVec; ++j) tile[j] = j < n ? x[j * stride] : from_float<elem_t>(0);
        }
    }
}

__device__ inline void block_store(elem_t* out, const elem_t* tile, index_t stride, index_t n, bool vectors) {
    for (int i = threadIdx.x * kVec; i < kChunk && i < n; i += kBlock * kVec) {
        if (vectors && i + kVec <= n) {
            move_vec(out + i, tile + i);
        } else {
            for (int j = i; j < i + kVec; ++j)
                if (j < n) out[j * stride] = tile[j];
        }
    }
}

extern "C" __global__ __launch_bounds__(kBlock) void fwd_shared_memory(const Params p) {
    alignas(16) __shared__ elem_t tile[kHaloPad + kChunk];
    alignas(16) __shared__ elem_t results[kChunk];

    const index_t batch = blockIdx.x / p.dim, dim = blockIdx.x - batch * p.dim;
    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim * p.x_dim_stride;
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim * p.out_dim_stride;
    const bool x_vectors = p.x_seq_stride == 1 && is_vector_aligned(x, 0);
    const bool out_vectors = p.out_seq_stride == 1 && is_vector_aligned(out, 0);

    acc_t weight[kWidth];
    for (int w = 0; w < kWidth; ++w)
        weight[w] = to_float(static_cast<const weight_t*>(p.weight)[dim * p.weight_dim_stride + w * p.weight_width_stride]);
    const acc_t bias = p.bias ? to_float(static_cast<const weight_t*>(p.bias)[dim]) : acc_t(0);

    for (index_t t0 = 0; t0 < p.seqlen; t0 += kChunk) {
        const index_t n = p.seqlen - t0 < kChunk ? p.seqlen - t0 : index_t(kChunk);
        block_load(tile + kHaloPad, x + t0 * p.x_seq_stride, p.x_seq_stride, n, x_vectors);
        for (int i = threadIdx.x; i < kHalo; i += kBlock) {
            const index_t t = t0 - kHalo + i;
            tile[kHaloPad - kHalo + i] = t >= 0 ? x[t * p.x_seq_stride] : from_float<elem_t>(0);
            if (kStates && t < 0) tile[kHaloPad - kHalo + i] = x_at(p, batch, dim, t);
        }
        __syncthreads();

        const elem_t* mine = tile + kHaloPad - kHalo + threadIdx.x * kItems;
        acc_t values[kItems + kHalo];
        for (int i = 0; i < kItems + kHalo; ++i) values[i] = to_float(mine[i]);
        const index_t first = t0 + index_t(threadIdx.x) * kItems;
        for (int i = 0; i < kItems; ++i) {
            const bool here = !kSeqIdx || first + i < p.seqlen;
            const int seen = kSeqIdx && here ? static_cast<int>(first_seen(p, batch, first + i) - (first + i - kHalo)) : 0;
            acc_t sum = bias;
            for (int w = 0; w < kWidth; ++w)
                if (!kSeqIdx || w >= seen) sum += weight[w] * values[i + w];
            const bool padding = kSeqIdx && (!here || is_padding(p, batch, first + i));
            results[threadIdx.x * kItems + i] = from_float<elem_t>(padding ? acc_t(0) : activate(sum));
        }
        __syncthreads();

        // The next chunk may fill `tile` at once: nobody reads it any more. `results` is next written after a barrier.
        block_store(out + t0 * p.out_seq_stride, results, p.out_seq_stride, n, out_vectors);
    }
    if (kStates && threadIdx.x == 0) write_final_states(p, batch, dim);
}

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int, const Params& p, stream_t stream) {
    launch<fwd_shared_memory>(grid_of(p.batch * p.dim), dim3(kBlock), stream, p);
}

CC1D_EXPORT("conv")
