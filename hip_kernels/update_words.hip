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
constexpr int kHalo = kWidth - 1;
using lanes_t = Packed<elem_t, kLanes>;

// One step with a state of `kSteps`.
template <int kSteps>
__device__ inline void step(const Params& p, index_t batch, index_t dim) {
    using state_t = Packed<elem_t, kLanes * kSteps>;
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim;
    const index_t row = state_of(p, batch);
    if (row < 0) return lanes_t::zero().store(out);
    elem_t* place = static_cast<elem_t*>(p.conv_state) + row * p.conv_state_batch_stride + dim * kSteps;
    const state_t state = state_t::load(place);
    const lanes_t x = lanes_t::load(static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim);
    Parameters<kLanes> parameters;
    parameters.load(p, dim);

    acc_t result[kLanes];
    auto moved = state_t::zero();
    for (int i = 0; i < kLanes; ++i) {
        acc_t sum = parameters.bias(i);
        for (int w = 0; w < kHalo; ++w) sum += parameters.weight(i, w) * state.at(i * kSteps + kSteps - kHalo + w);
        result[i] = activate(sum + parameters.weight(i, kHalo) * x.at(i));
        for (int s = 0; s < kSteps; ++s) moved.put(i * kSteps + s, s + 1 < kSteps ? state.get(i * kSteps + s + 1) : x.get(i));
    }
    lanes_t::from(result).store(out);
    moved.store(place);
}

// `groups`: of kLanes channels, in a row.
extern "C" __global__ __launch_bounds__(kBlock) void update_words(const Params p, const Divisor groups) {
    const uint32_t i = blockIdx.x * kBlock + threadIdx.x, batch = groups(i);
    if (batch >= p.batch) return;
    const index_t dim = index_t(i - batch * groups.d) * kLanes;
    if (p.state_len == kWidth) step<kWidth>(p, batch, dim);
    else if constexpr (kHalo > 0) step<kHalo>(p, batch, dim);
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
    const index_t groups = p.dim / kLanes;
    if (is_plain(p)) launch<update_words>(grid_of(ceil_div(groups * p.batch, kBlock)), dim3(kBlock), stream, p, Divisor(groups));
    else launch<update_channel>(grid_of(ceil_div(p.batch * p.dim, kBlock)), dim3(kBlock), stream, p);
}

CC1D_EXPORT("update")
