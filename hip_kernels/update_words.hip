// A few neighbouring channels of one batch element a thread: the state moves as whole words.
//
// For the step that decoding mostly takes: one token, a linear state of width - 1 or width steps whose channels lie side by
// side. The states of a few channels are then whole words, all of them loaded before the first is used, and shifted in
// registers. Anything else (circular states, several tokens, other strides) goes a channel a thread, as update_naive.
//
//   conv_state  row b   [ channel d: s-3 s-2 s-1 | channel d+1: s-3 s-2 s-1 | ... ]   words -> registers -> words
//   x           row b   [ d | d+1 | ... ]
//   weight              [ d: w0 .. w3 | d+1: w0 .. w3 | ... ]
#include "cc1d/config.h"
#include "cc1d/decode.h"
#include "cc1d/packed.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kLanes = CC1D_CHANNELS;  // of a thread
constexpr int kFewer = kLanes > 2 ? kLanes / 2 : kLanes;  // with a state of width steps, whose channel is a word or more
constexpr int kHalo = kWidth - 1;

// What is needed of Params, side by side: a thread waits for each line of its arguments, and a call is over in two microseconds.
struct Step {
    const elem_t* x;
    const weight_t *weight, *bias;
    elem_t *out, *conv_state;
    const int32_t* indices;
    index_t x_stride, out_stride, state_stride;  // of a batch element
    uint32_t batch, states;

    explicit Step(const Params& p)
        : x(static_cast<const elem_t*>(p.x)), weight(static_cast<const weight_t*>(p.weight)), bias(static_cast<const weight_t*>(p.bias)),
          out(static_cast<elem_t*>(p.out)), conv_state(static_cast<elem_t*>(p.conv_state)), indices(static_cast<const int32_t*>(p.conv_state_indices)),
          x_stride(p.x_batch_stride), out_stride(p.out_batch_stride), state_stride(p.conv_state_batch_stride),
          batch(static_cast<uint32_t>(p.batch)), states(static_cast<uint32_t>(p.state_count)) {}
};

// A state of `kSteps`, `N` channels a thread. `groups`: of N channels, in a row.
template <int kSteps, int N, bool kIndexed>
__device__ inline void update(const Step& step, const Divisor& groups) {
    using lanes_t = Packed<elem_t, N>;
    using state_t = Packed<elem_t, N * kSteps>;
    const uint32_t place = blockIdx.x * kBlock + threadIdx.x, batch = groups(place);
    if (batch >= step.batch) return;
    const index_t dim = index_t(place - batch * groups.d) * N;
    elem_t* out = step.out + batch * step.out_stride + dim;
    const uint32_t row = kIndexed ? static_cast<uint32_t>(step.indices[batch]) : batch;
    if (row >= step.states) return lanes_t::zero().store(out);  // padding is -1
    elem_t* held = step.conv_state + row * step.state_stride + dim * kSteps;
    const state_t state = state_t::load(held);
    const lanes_t x = lanes_t::load(step.x + batch * step.x_stride + dim);
    Parameters<N> parameters;
    parameters.load_together(step, dim);

    acc_t result[N];
    auto moved = state_t::zero();
    for (int i = 0; i < N; ++i) {
        acc_t sum = parameters.bias(i);
        for (int w = 0; w < kHalo; ++w) sum += parameters.weight(i, w) * state.at(i * kSteps + kSteps - kHalo + w);
        result[i] = activate(sum + parameters.weight(i, kHalo) * x.at(i));
        for (int s = 0; s < kSteps; ++s) moved.put(i * kSteps + s, s + 1 < kSteps ? state.get(i * kSteps + s + 1) : x.get(i));
    }
    lanes_t::from(result).store(out);
    moved.store(held);
}

// A kernel each: what a call does not have takes time to ask for, too.
extern "C" __global__ __launch_bounds__(kBlock) void update_words(const Step step, const Divisor groups) {
    if constexpr (kHalo > 0) update<kHalo, kLanes, false>(step, groups);
}
extern "C" __global__ __launch_bounds__(kBlock) void indexed_words(const Step step, const Divisor groups) {
    if constexpr (kHalo > 0) update<kHalo, kLanes, true>(step, groups);
}
extern "C" __global__ __launch_bounds__(kBlock) void full_words(const Step step, const Divisor groups) { update<kWidth, kFewer, false>(step, groups); }
extern "C" __global__ __launch_bounds__(kBlock) void indexed_full_words(const Step step, const Divisor groups) { update<kWidth, kFewer, true>(step, groups); }

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
    constexpr int64_t kLimit = int64_t{1} << 31;
    return step && dense && p.dim % kLanes == 0 && Parameters<kLanes>::are_together(p) && aligned(p.x, p.x_batch_stride) &&
           aligned(p.out, p.out_batch_stride) && aligned(p.conv_state, p.conv_state_batch_stride) && p.batch * p.dim < kLimit && p.state_count < kLimit;
}

static int64_t workspace_bytes(const Params&) { return 0; }

template <auto Kernel, int N>
static void launch_words(const Params& p, stream_t stream) {
    const index_t groups = p.dim / N;
    launch<Kernel>(grid_of(ceil_div(groups * p.batch, kBlock)), dim3(kBlock), stream, Step(p), Divisor(groups));
}

static void launch_stage(int, const Params& p, stream_t stream) {
    const bool full = p.state_len == kWidth;
    if (!is_plain(p)) return launch<update_channel>(grid_of(ceil_div(p.batch * p.dim, kBlock)), dim3(kBlock), stream, p);
    if (p.conv_state_indices) return full ? launch_words<indexed_full_words, kFewer>(p, stream) : launch_words<indexed_words, kLanes>(p, stream);
    return full ? launch_words<full_words, kFewer>(p, stream) : launch_words<update_words, kLanes>(p, stream);
}

CC1D_EXPORT("update")
