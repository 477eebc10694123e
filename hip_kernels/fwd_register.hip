// One or two 16-byte vectors a thread; the halo comes from the neighbouring lane's registers. No shared memory, no barrier.
//
// All vectors of all rows are numbered, along the sequence first and the rows as they lie in memory, and a thread takes one run of
// them: no lane idles, and neighbouring blocks touch neighbouring memory. The `width - 1` elements before its run a thread gets from
// the lane below by shuffle; the first lane of a wave loads them. Rows that do not begin on a 16-byte boundary keep the aligned frame of
// memory (frame.h). Where sequences begin, a lane sees in the ids of its own steps; for framed rows a first kernel writes it down
// as bits (sequences.h). An initial state enters where a row begins; who holds a row's end writes its final state.
//
//   row    . . [ x x x x x x x x x x x x x x x x x ] . .      of memory; | marks 16 bytes
//   frame  |       |       |       |       |       |
//   lane       0       1       2       3       4              one run each
//   halo         3>>     3>>     3>>     3>>                  shuffle from the lane below
//   out    . . [ y y y y y y y y y y y y y y y y y ] . .      one run each
#include "cc1d/config.h"
#include "cc1d/frame.h"
#include "cc1d/sequences.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kHalo = kWidth - 1;
// Neighbouring elements of a thread: more in framed rows where each run looks for its marks.
constexpr int kOwn = kVec * CC1D_VECTORS, kOwnFramed = kSeqIdx ? 2 * kVec : kOwn;
constexpr int kHaloPad = kHalo > kVec ? 2 * kVec : kVec;  // whole vectors that hold the halo
constexpr int kFetch = 128;  // bytes of framed rows that the L2 fetches at once: they cut lines of memory
static_assert(kHalo <= kOwn && kHalo <= kHaloPad, "the halo lies in one run");
static_assert(!kChannelLast, "rows run along the sequence");
// With states as many threads to a multiprocessor as 48 registers allow; else the compiler's own choice is as good.
constexpr int kMinThreads = kStates && !kSeqIdx && kWidth <= 4 ? 1280 : 0;
using halo_t = Packed<elem_t, kHaloPad>;

// The steps of the initial state that a run sees: in its halo, and at the front where its frame begins early. Both hold 0 there.
struct InitialState {
    elem_t values[kHalo + kVec];  // from step t - halo on
    bool is_seen;

    __device__ static bool has(int step) { return step >= -kHalo && step < 0; }
    __device__ void load(const Params& p, index_t batch, index_t dim, int t) {
        is_seen = t < kHalo && p.initial_states;
        if (!is_seen) return;
        const elem_t* step0 = static_cast<const elem_t*>(p.initial_states) + batch * p.initial_states_batch_stride +
                              dim * p.initial_states_dim_stride + kHalo * p.initial_states_width_stride;  // where step 0 would be
        for (int i = 0; i < kHalo + kVec - 1; ++i)
            if (const int step = t - kHalo + i; has(step)) values[i] = step0[step * p.initial_states_width_stride];
    }
    template <int kRun>
    __device__ void put(int t, halo_t& halo, Packed<elem_t, kRun>& own) const {
        if (!is_seen) return;
        for (int i = 1; i <= kHalo; ++i)
            if (has(t - i)) halo.put(kHaloPad - i, values[kHalo - i]);
        for (int i = 0; i < kVec - 1; ++i)
            if (has(t + i)) own.put(i, values[kHalo + i]);
    }
};

// Outputs of the last kRun of `values` where sequences are packed. What a step sees of the one d before it is what that one's successor saw
// of it, or nothing where a sequence begins: a selection a tap, and one comparison a step.
template <int kRun, typename Which>
__device__ inline void sum_sequences(const Parameters<1>& parameters, const acc_t (&values)[kHalo + kRun], const Which& sequences, acc_t (&result)[kRun]) {
    acc_t seen[kWidth] = {};  // of the step d before
#pragma unroll
    for (int i = kHalo > 0 ? 1 - kHalo : 0; i < kRun; ++i) {
        const bool follows = sequences.follows(i);
        for (int d = kHalo; d > 0; --d) seen[d] = follows ? (d > 1 ? seen[d - 1] : values[kHalo + i - 1]) : acc_t(0);
        if (i < 0) continue;
        seen[0] = values[kHalo + i];
        acc_t sum = parameters.bias(0);
        for (int w = 0; w < kWidth; ++w) sum += parameters.weight(0, w) * seen[kHalo - w];
        result[i] = kStates && sequences.is_padding(i) ? acc_t(0) : activate(sum);  // with states, registers are too few for the other way
    }
    for (int i = 0; i < kRun; ++i) result[i] = !kStates && sequences.is_padding(i) ? acc_t(0) : result[i];
}

// Rows are numbered as they lie in memory: batch by batch, or channel by channel where the batch is the second dimension there (not with packed
// sequences, which that would cost 0.5 %). `inner`: channels of a batch, or batches of a channel; `count`: runs of all rows; `ahead`: blocks
// before those.
template <Rows kRows, int kRun>
__device__ inline void convolve(const Params& p, const Divisor& runs, const Divisor& inner, int by_channel, uint32_t count, uint32_t ahead) {
    if (kSeqIdx) by_channel = 0;
    using run_t = Packed<elem_t, kRun>;
    if (kTailBlocks && blockIdx.x < ahead) return write_tail_block<kBlock>(p);
    const uint32_t place = (kTailBlocks ? blockIdx.x - ahead : blockIdx.x) * kBlock + threadIdx.x;
    const bool exists = place < count;  // the others stay for the shuffle, and do the first run again
    const uint32_t number = exists ? place : 0;
    const uint32_t row = runs(number), first = inner(row), second = row - first * inner.d;
    const uint32_t batch = by_channel ? second : first, dim = by_channel ? first : second;
    const Channel x(p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride, dim);
    const Channel out(p.out, p.out_batch_stride, p.out_dim_stride, p.out_seq_stride, dim);
    const Run<kRun, kRows> run(x, batch, number - row * runs.d, static_cast<int>(p.seqlen));
    const auto before = run.template before<kHaloPad>();

    run_t own = run.template load<kFetch>(x);
    halo_t halo = halo_t::zero();
    const bool loads_halo = lane_id() == 0 && !run.starts_row();  // the first lane has nobody below
    if (loads_halo) halo = before.template load<kFetch>(x);
    InitialState initial;
    constexpr bool kLate = kRows == Rows::scattered;  // scalar registers are few there
    if constexpr (kStates && !kLate) initial.load(p, batch, dim, run.t);
    Parameters<1> parameters;
    if constexpr (kRows == Rows::aligned) parameters.load_together(p, dim);
    else parameters.load(p, dim);
    MarksAt marks;
    OwnIds<kRun> ids;
    if constexpr (kSeqIdx && kRows == Rows::aligned) {
        ids.load(p, batch, run.t);
    } else if constexpr (kSeqIdx) {
        wait_for_previous();
        marks.load(p, batch, run.t);
    }

    own = run.masked(own);
    if (loads_halo) halo = before.masked(halo);
    if constexpr (kStates && kLate) initial.load(p, batch, dim, run.t);
    if constexpr (kStates) initial.put(run.t, halo, own);

    // What the lane below holds is what lies before, except at the beginning of a row: there is nothing, or the initial state.
    for (int w = 0; w < halo_t::kWords; ++w) {
        const bool needed = (w + 1) * halo_t::kPerWord > kHaloPad - kHalo;
        const uint32_t below = needed ? shuffle_up(own.words[run_t::kWords - halo_t::kWords + w], 1) : 0;
        halo.words[w] = lane_id() == 0 || (kStates && run.starts_row()) ? halo.words[w] : run.starts_row() ? 0 : below;
    }
    acc_t values[kHalo + kRun];
    for (int i = 0; i < kHalo; ++i) values[i] = halo.at(kHaloPad - kHalo + i);
    for (int i = 0; i < kRun; ++i) values[kHalo + i] = own.at(i);

    acc_t result[kRun];
    if constexpr (kSeqIdx && kRows == Rows::aligned) {
        ids.share();
        sum_sequences(parameters, values, ids, result);
    } else if constexpr (kSeqIdx) {
        Sequences<kRun> sequences;
        sequences.find(marks);
        sum_sequences(parameters, values, sequences, result);
    } else {
        for (int i = 0; i < kRun; ++i) {
            acc_t sum = parameters.bias(0);
            for (int w = 0; w < kWidth; ++w) sum += parameters.weight(0, w) * values[i + w];
            result[i] = activate(sum);
        }
    }
    if (exists) run.store(out, run_t::from(result));
    if (kStates && !kTailBlocks && exists && run.first() < run.last() && run.ends_row()) write_final_states(p, batch, dim);
}

extern "C" __global__ __launch_bounds__(kBlock, kMinThreads / kBlock) void fwd_register(const Divisor runs, const Divisor inner, int by_channel, uint32_t count, uint32_t ahead, const Params p) {
    convolve<Rows::aligned, kOwn>(p, runs, inner, by_channel, count, ahead);
}
extern "C" __global__ __launch_bounds__(kBlock, kMinThreads / kBlock) void framed(const Divisor runs, const Divisor inner, int by_channel, uint32_t count, uint32_t ahead, const Params p) {
    convolve<Rows::framed, kOwnFramed>(p, runs, inner, by_channel, count, ahead);
}
extern "C" __global__ __launch_bounds__(kBlock, kMinThreads / kBlock) void scattered(const Divisor runs, const Divisor inner, int by_channel, uint32_t count, uint32_t ahead, const Params p) {
    convolve<Rows::scattered, kOwn>(p, runs, inner, by_channel, count, ahead);
}

#if CC1D_SEQ_IDX
extern "C" __global__ __launch_bounds__(kBlock) void mark(const Params p) {
    start_next();
    Marks::write(p, index_t(blockIdx.x) * kBlock + threadIdx.x);
}

static int64_t workspace_bytes(const Params& p) { return Marks::bytes(p); }
static void launch_marks(const Params& p, stream_t stream) {
    launch<mark>(grid_of(ceil_div(4 * p.batch * Marks::of_row(p), kBlock)), dim3(kBlock), stream, p);
}
#else
static int64_t workspace_bytes(const Params&) { return 0; }
static void launch_marks(const Params&, stream_t) {}
#endif

template <auto Kernel>
static void launch_runs(const Params& p, index_t runs, stream_t stream) {
    const index_t count = p.batch * p.dim * runs, ahead = tail_blocks<kBlock>(p);
    const int by_channel = !kSeqIdx && p.x_batch_stride < p.x_dim_stride;
    const dim3 grid = grid_of(ahead + ceil_div(count, kBlock), 1, 1, ahead + Divisor::kLimit / kBlock);
    if (kSeqIdx && Kernel != fwd_register) {
        launch_marks(p, stream);
        launch_behind<Kernel>(grid, dim3(kBlock), stream, Divisor(runs), Divisor(by_channel ? p.batch : p.dim), by_channel, static_cast<uint32_t>(count), static_cast<uint32_t>(ahead), p);
    } else {
        launch<Kernel>(grid, dim3(kBlock), stream, Divisor(runs), Divisor(by_channel ? p.batch : p.dim), by_channel, static_cast<uint32_t>(count), static_cast<uint32_t>(ahead), p);
    }
}

static void launch_stage(int, const Params& p, stream_t stream) {
    RowPlan plan = rows_of<kOwn, kOwnFramed>(p, {{p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride}, {p.out, p.out_batch_stride, p.out_dim_stride, p.out_seq_stride}});
    // The kernel of aligned rows asks neither of weights nor of ids how they lie.
    const bool together = Parameters<1>::are_together(p) && (!kSeqIdx || OwnIds<kOwn>::takes(p));
    if (plan.rows == Rows::aligned && !together) plan = {Rows::framed, ceil_div(p.seqlen, kOwnFramed)};
    if (plan.rows == Rows::aligned) launch_runs<fwd_register>(p, plan.runs, stream);
    if (plan.rows == Rows::framed) launch_runs<framed>(p, plan.runs, stream);
    if (plan.rows == Rows::scattered) launch_runs<scattered>(p, plan.runs, stream);
}

CC1D_EXPORT("conv")
