// A few neighbouring channels of a few batch elements a thread: words instead of elements, and the weights once for all rows.
//
// For the step that decoding mostly takes: one token, a linear state of width - 1 or width steps whose channels lie side by
// side. The states of two channels are then a few whole words, all of them loaded before the first is used, for all
// rows of the thread. Anything else (circular states, several tokens, other strides) goes a channel a thread, as update_naive.
//
//   conv_state  row b    [ channel d: s-3 s-2 s-1 | channel d+1: s-3 s-2 s-1 ]   words -> registers -> words
//   x           row b    [ d | d+1 ]
//   weight               [ d: w0 .. w3 | d+1: w0 .. w3 ]                         once for `rows` rows
#include "cc1d/config.h"
#include "cc1d/decode.h"
#include "cc1d/packed.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kLanes = CC1D_CHANNELS;  // of a thread
constexpr int kRows = CC1D_ROWS;       // of a thread
constexpr int kHalo = kWidth - 1;
using lanes_t = Packed<elem_t, kLanes>;

// The states of a block's channels, in one row. `kDirect`: those of a thread are one vector; else neighbouring threads move
// neighbouring words, and the words change hands in shared memory.
template <int kSteps>
struct States {
    using state_t = Packed<elem_t, kLanes * kSteps>;
    static constexpr int kWords = state_t::kWords;
    static constexpr bool kDirect = kWords == state_t::kAccess || !CC1D_EXCHANGE;
    using word_t = Raw<4>::type;

    __device__ static state_t load(const elem_t* first, int threads) {
        state_t v = state_t::zero();
        if (kDirect) return static_cast<int>(threadIdx.x) < threads ? state_t::load(first + threadIdx.x * kLanes * kSteps) : v;
        for (int w = 0; w < kWords; ++w) {
            const int i = w * kBlock + threadIdx.x;
            if (i < threads * kWords) v.words[w] = reinterpret_cast<const word_t*>(first)[i];
        }
        return v;
    }

    __device__ static void store(elem_t* first, int threads, const state_t& v) {
        if (kDirect) {
            if (static_cast<int>(threadIdx.x) < threads) v.store(first + threadIdx.x * kLanes * kSteps);
            return;
        }
        for (int w = 0; w < kWords; ++w) {
            const int i = w * kBlock + threadIdx.x;
            if (i < threads * kWords) store_raw(reinterpret_cast<word_t*>(first) + i, word_t(v.words[w]));
        }
    }
};

// One step with a state of `kSteps`, for the `threads` first threads of the block: kLanes channels each from `dim0` on.
template <int kSteps>
__device__ inline void step(const Params& p, index_t dim0, int threads, index_t batch0) {
    using S = States<kSteps>;
    __shared__ uint32_t words[S::kDirect ? 1 : kRows][S::kDirect ? 1 : kBlock * S::kWords];
    const bool exists = static_cast<int>(threadIdx.x) < threads;
    const index_t dim = dim0 + threadIdx.x * kLanes;
    elem_t* places[kRows];  // null for padding
    typename S::state_t states[kRows];
    lanes_t x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const index_t batch = batch0 + r, row = batch < p.batch ? state_of(p, batch) : -1;
        places[r] = row < 0 ? nullptr : static_cast<elem_t*>(p.conv_state) + row * p.conv_state_batch_stride + dim0 * kSteps;
        states[r] = places[r] ? S::load(places[r], threads) : S::state_t::zero();
        x[r] = places[r] && exists ? lanes_t::load(static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim) : lanes_t::zero();
    }
    acc_t weight[kLanes * kWidth] = {}, bias[kLanes] = {};
    if (exists) load_parameters(weight, static_cast<const weight_t*>(p.weight) + dim * kWidth, 1);
    if (exists && p.bias) load_parameters(bias, static_cast<const weight_t*>(p.bias) + dim, 1);
    const auto exchange = [&](bool scatter) {  // from words of the row to words of the thread; scatter: back
        if (S::kDirect) return;
        for (int r = 0; r < kRows; ++r)
            for (int w = 0; w < S::kWords; ++w) words[r][scatter ? threadIdx.x * S::kWords + w : w * kBlock + threadIdx.x] = states[r].words[w];
        __syncthreads();
        for (int r = 0; r < kRows; ++r)
            for (int w = 0; w < S::kWords; ++w) states[r].words[w] = words[r][scatter ? w * kBlock + threadIdx.x : threadIdx.x * S::kWords + w];
    };

    exchange(false);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        acc_t result[kLanes];
        auto moved = S::state_t::zero();
        for (int i = 0; i < kLanes; ++i) {
            acc_t sum = bias[i];
            for (int w = 0; w < kHalo; ++w) sum += weight[i * kWidth + w] * states[r].at(i * kSteps + kSteps - kHalo + w);
            result[i] = places[r] ? activate(sum + weight[i * kWidth + kHalo] * x[r].at(i)) : acc_t(0);
            for (int s = 0; s < kSteps; ++s) moved.put(i * kSteps + s, s + 1 < kSteps ? states[r].get(i * kSteps + s + 1) : x[r].get(i));
        }
        if (exists && batch0 + r < p.batch) lanes_t::from(result).store(static_cast<elem_t*>(p.out) + (batch0 + r) * p.out_batch_stride + dim);
        states[r] = moved;
    }
    if (!S::kDirect) __syncthreads();
    exchange(true);
    for (int r = 0; r < kRows; ++r)
        if (places[r]) S::store(places[r], threads, states[r]);
}

// `groups` of kLanes channels in a row, `blocks` in a row.
extern "C" __global__ __launch_bounds__(kBlock) void update_rows(const Params p, const Divisor blocks, int groups) {
    const uint32_t rows = blocks(blockIdx.x);
    const int group0 = static_cast<int>(blockIdx.x - rows * blocks.d) * kBlock, threads = groups - group0 < kBlock ? groups - group0 : kBlock;
    const index_t batch0 = index_t(rows) * kRows;
    if (p.state_len == kWidth) step<kWidth>(p, index_t(group0) * kLanes, threads, batch0);
    else if constexpr (kHalo > 0) step<kHalo>(p, index_t(group0) * kLanes, threads, batch0);
}

extern "C" __global__ __launch_bounds__(kBlock) void update_channel(const Params p) {
    const index_t i = index_t(blockIdx.x) * kBlock + threadIdx.x;
    if (i >= p.batch * p.dim) return;
    const index_t batch = i / p.dim;
    decode_channel(p, batch, i - batch * p.dim);
}

// Whether all of it lies side by side, and in whole words.
static bool is_plain(const Params& p) {
    const auto aligned = [](const void* first, index_t batch_stride) { return is_vector_aligned(static_cast<const elem_t*>(first), batch_stride); };
    const bool step = p.seqlen == 1 && !p.cache_seqlens && (p.state_len == kWidth || (kHalo > 0 && p.state_len == kHalo));
    const bool dense = p.x_dim_stride == 1 && p.out_dim_stride == 1 && p.conv_state_seq_stride == 1 && p.conv_state_dim_stride == p.state_len;
    return step && dense && p.dim % kLanes == 0 && p.weight_dim_stride == kWidth && p.weight_width_stride == 1 && aligned(p.x, p.x_batch_stride) &&
           aligned(p.out, p.out_batch_stride) && aligned(p.conv_state, p.conv_state_batch_stride) && p.batch * p.dim < (int64_t{1} << 31);
}

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int, const Params& p, stream_t stream) {
    const index_t groups = p.dim / kLanes, blocks = ceil_div(groups, kBlock);
    if (is_plain(p)) launch<update_rows>(dim3(blocks * ceil_div(p.batch, kRows)), dim3(kBlock), stream, p, Divisor(blocks), static_cast<int>(groups));
    else launch<update_channel>(dim3(ceil_div(p.batch * p.dim, kBlock)), dim3(kBlock), stream, p);
}

CC1D_EXPORT("update")
