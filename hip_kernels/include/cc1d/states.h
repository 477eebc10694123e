// Sequences packed in one row, and the steps before the first and after the last.
//
// A sequence is a run of equal seq_idx: a step whose seq_idx differs from the one before begins a new one. A negative
// seq_idx is padding, whose output and gradient are 0. The initial state belongs to the sequence of step 0: it stands
// at the steps -(width - 1) to -1. The final state is the last width - 1 steps of the last sequence that is not padding,
// 0 before its start. Without seq_idx a row is one sequence.
//
//   step        -3 -2 -1 |  0  1  2  3  4  5  6  7 |        seq_idx    5 5 5 7 7 8 -1 -1
//               initial  |  x                      |        sequences  ----- --- -
//                                                           final      [0, 0, x at 5]         (width 4)
#pragma once

__device__ inline int32_t seq_idx_at(const Params& p, index_t batch, index_t t) {
    return static_cast<const int32_t*>(p.seq_idx)[batch * p.seq_idx_batch_stride + t * p.seq_idx_seq_stride];
}

__device__ inline bool is_padding(const Params& p, index_t batch, index_t t) { return kSeqIdx && seq_idx_at(p, batch, t) < 0; }

// Whether a sequence begins at `t`, which is not the first step.
__device__ inline bool is_start(const Params& p, index_t batch, index_t t) {
    return kSeqIdx && seq_idx_at(p, batch, t) != seq_idx_at(p, batch, t - 1);
}

// The earliest step that `t` sees: width - 1 steps back, or where its sequence begins. Below 0: in the initial state.
__device__ inline index_t first_seen(const Params& p, index_t batch, index_t t) {
    const index_t oldest = t - (kWidth - 1);
    if (!kSeqIdx) return oldest;
    index_t from = t;
    while (from > oldest && from > 0 && !is_start(p, batch, from)) --from;
    return from > 0 ? from : oldest;
}

// x at a step, which may lie in the initial state.
__device__ inline elem_t x_at(const Params& p, index_t batch, index_t dim, index_t t) {
    if (t >= 0) return static_cast<const elem_t*>(p.x)[batch * p.x_batch_stride + dim * p.x_dim_stride + t * p.x_seq_stride];
    if (!kStates || !p.initial_states) return from_float<elem_t>(0);
    return static_cast<const elem_t*>(p.initial_states)[batch * p.initial_states_batch_stride + dim * p.initial_states_dim_stride +
                                                        (kWidth - 1 + t) * p.initial_states_width_stride];
}

// The steps that the final state holds, in its last places.
struct Tail {
    index_t begin, end;

    __device__ Tail() : begin(0), end(0) {}
    __device__ Tail(const Params& p, index_t batch) : begin(0), end(p.seqlen) {
        // Padding is passed over in strides, whose loads go together: a thread that takes step after step waits for each.
        constexpr int kStride = 8;
        for (bool padding = kSeqIdx; padding && end >= kStride;) {
            for (int i = 1; i <= kStride; ++i) padding &= seq_idx_at(p, batch, end - i) < 0;
            if (padding) end -= kStride;
        }
        while (end > 0 && is_padding(p, batch, end - 1)) --end;
        if (kSeqIdx && end == 0) return;  // nothing but padding
        const index_t oldest = end - (kWidth - 1), seen = first_seen(p, batch, end - 1);
        begin = seen > oldest ? seen : oldest;
    }
    // The same where 32 lanes ask for one batch element: they look at as many steps at once.
    __device__ static Tail of_wave(const Params& p, index_t batch) {
        constexpr int kStride = 8;
        Tail tail;
        for (index_t end = p.seqlen; end > 0 && tail.end == 0; end -= 32 * kStride) {
            int32_t ids[kStride];
            for (int k = 0; k < kStride; ++k) {
                const index_t t = end - 1 - 32 * k - lane_id() % 32;
                ids[k] = t >= 0 ? seq_idx_at(p, batch, t) : -1;
            }
            for (int k = 0; k < kStride; ++k)
                if (const uint32_t there = vote(ids[k] >= 0); there && tail.end == 0) tail.end = end - 32 * k - lowest_bit(there);
        }
        if (tail.end == 0) return tail;
        int32_t ids[kWidth];  // of the last steps, the last first
        for (int i = 0; i < kWidth; ++i) ids[i] = tail.end > i ? seq_idx_at(p, batch, tail.end - 1 - i) : 0;
        tail.begin = tail.end - 1;
        for (int i = 1; i < kWidth - 1; ++i)
            if (tail.begin == tail.end - i && tail.begin > 0 && ids[i] == ids[i - 1]) --tail.begin;
        if (tail.begin == 0) tail.begin = tail.end - (kWidth - 1);  // on into the initial state
        return tail;
    }
    __device__ bool has(index_t t) const { return t >= begin && t < end; }
    __device__ index_t place(index_t t) const { return t - end + kWidth - 1; }  // of step t in the final state
};

__device__ inline void write_final_state(const Params& p, const Tail& tail, index_t batch, index_t dim) {
    elem_t* out = static_cast<elem_t*>(p.final_states) + batch * p.final_states_batch_stride + dim * p.final_states_dim_stride;
    for (int i = 0; i < kWidth - 1; ++i) {
        const index_t t = tail.end - (kWidth - 1) + i;
        out[i * p.final_states_width_stride] = tail.has(t) ? x_at(p, batch, dim, t) : from_float<elem_t>(0);
    }
}

// The final state of channels `dim`, `dim + step`, ...
__device__ inline void write_final_states(const Params& p, index_t batch, index_t dim, int channels = 1, int step = 1) {
    if (!kStates || !p.final_states) return;
    const Tail tail(p, batch);
    for (int c = 0; c < channels; ++c, dim += step) write_final_state(p, tail, batch, dim);
}

// Where sequences are packed, blocks of their own write the final states, a thread a channel of one batch element: to find a row's
// last sequence takes loads that wait for one another. They come first, so that this passes beside the others' work.
constexpr bool kTailBlocks = kStates && kSeqIdx;

template <int Block>
__host__ __device__ inline index_t tail_blocks(const Params& p) {
    return kTailBlocks && p.final_states ? p.batch * ceil_div(p.dim, Block) : 0;
}

template <int Block>
__device__ inline void write_tail_block(const Params& p) {
    const index_t strips = ceil_div(p.dim, Block), batch = blockIdx.x / strips, dim = (blockIdx.x - batch * strips) * Block + threadIdx.x;
    const Tail tail = Tail::of_wave(p, batch);
    if (dim < p.dim) write_final_state(p, tail, batch, dim);
}

// The steps that a gradient reaches through the final state: none where there is no such gradient.
__device__ inline Tail gradient_tail(const Params& p, index_t batch) { return kStates && p.dfinal_states ? Tail(p, batch) : Tail(); }

// The gradient that reaches step `t` through the final state.
__device__ inline acc_t final_gradient(const Params& p, const Tail& tail, index_t batch, index_t dim, index_t t) {
    if (!kStates || !tail.has(t)) return 0;
    return to_float(static_cast<const elem_t*>(p.dfinal_states)[batch * p.dfinal_states_batch_stride + dim * p.dfinal_states_dim_stride +
                                                                tail.place(t) * p.dfinal_states_width_stride]);
}

// The gradient of the initial state of one channel, from `gradient(t)`, the gradient before the activation at step t, and
// `weight(w)`. Only the first width - 1 steps see the initial state.
template <typename Gradient, typename Weight>
__device__ inline void write_dinitial_states(const Params& p, const Tail& tail, index_t batch, index_t dim, Gradient gradient, Weight weight) {
    if (!kStates || !p.dinitial_states) return;
    elem_t* out = static_cast<elem_t*>(p.dinitial_states) + batch * p.dinitial_states_batch_stride + dim * p.dinitial_states_dim_stride;
    for (int i = 0; i < kWidth - 1; ++i) {
        acc_t sum = 0;
        for (int t = 0; t <= i; ++t) {
            if (t >= p.seqlen || (t > 0 && is_start(p, batch, t))) break;
            sum += weight(i - t) * gradient(t);
        }
        out[i * p.dinitial_states_width_stride] = from_float<elem_t>(sum + final_gradient(p, tail, batch, dim, index_t(i) - (kWidth - 1)));
    }
}

// How many steps from `t` on see it: those of its sequence, width at most.
__device__ inline int seen_by(const Params& p, index_t batch, index_t t) {
    int n = 1;
    while (n < kWidth && t + n < p.seqlen && !is_start(p, batch, t + n)) ++n;
    return n;
}
