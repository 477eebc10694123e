// One or two 16-byte vectors a thread; the halo comes from the neighbouring lane's registers. No shared memory, no barrier.
//
// All vectors of all rows are numbered, along the sequence first, and a thread takes one run of them: no lane idles,
// and neighbouring blocks touch neighbouring memory. The `width - 1` elements before its run a thread gets from the lane below by
// shuffle; the first lane of a wave loads them. Rows that do not begin on a 16-byte boundary keep the aligned
// frame of memory: the convolution is shift invariant, so the frame starts a few elements early. The first and the last
// run of a row are read whole, too, where what lies beside the row is still within the tensor, and masked; they are
// stored element by element. An initial state enters where a row begins; who holds a row's end writes its final state.
//
//   row    . . [ x x x x x x x x x x x x x x x x x ] . .      of memory; | marks 16 bytes
//   frame  |       |       |       |       |       |
//   lane       0       1       2       3       4              one run each
//   halo         3>>     3>>     3>>     3>>                  shuffle from the lane below
//   out    . . [ y y y y y y y y y y y y y y y y y ] . .      one run each
#include "cc1d/config.h"
#include "cc1d/packed.h"
#include "cc1d/sequences.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kRun = kVec * CC1D_VECTORS;  // neighbouring elements of a thread
constexpr int kHalo = kWidth - 1;
constexpr int kHaloPad = kHalo > kVec ? 2 * kVec : kVec;  // whole vectors that hold the halo
static_assert(kHalo <= kRun && kHalo <= kHaloPad, "the halo lies in one run");
static_assert(!kChannelLast, "rows run along the sequence");
// With states as many threads to a multiprocessor as 48 registers allow; else the compiler's own choice is as good.
constexpr int kMinBlocks = kStates && !kSeqIdx && kWidth <= 4 ? 1280 / kBlock : 0;
using run_t = Packed<elem_t, kRun>;
using halo_t = Packed<elem_t, kHaloPad>;

// The run of a thread: what exists of it lies from `first` to before `last`, all of it but at the ends of a row.
struct Run {
    int first, last;
    bool whole;        // all of it, and in vectors
    bool inside;       // in vectors, and all of it lies between the first and the last byte of the tensor

    __device__ run_t load(const elem_t* x, index_t stride) const {
        if (whole) return run_t::load(x);
        run_t v = run_t::zero();
        if (inside) {
            v = run_t::load(x);
            v.keep(first, last);
            return v;
        }
        for (int i = 0; i < kRun; ++i)
            if (i >= first && i < last) v.put(i, x[i * stride]);
        return v;
    }

    __device__ void store(elem_t* out, index_t stride, const run_t& v) const {
        if (whole) return v.store(out);
        for (int i = 0; i < kRun; ++i)
            if (i >= first && i < last) out[i * stride] = v.get(i);
    }
};

__device__ inline int clamp_to_run(index_t i) { return i < 0 ? 0 : i > kRun ? kRun : static_cast<int>(i); }

// The initial state, where steps below 0 lie: in the halo, and at the front of a run whose frame begins early (both hold 0).
__device__ inline void put_initial_states(const Params& p, index_t batch, index_t dim, index_t t, halo_t& halo, run_t& own) {
    if (!p.initial_states) return;
    const index_t stride = p.initial_states_width_stride;
    const elem_t* step0 = static_cast<const elem_t*>(p.initial_states) + batch * p.initial_states_batch_stride +
                          dim * p.initial_states_dim_stride + kHalo * stride;  // where step 0 would be
    const auto is_there = [](index_t step) { return step >= -kHalo && step < 0; };
    for (int i = 1; i <= kHalo; ++i)
        if (is_there(t - i)) halo.put(kHaloPad - i, step0[(t - i) * stride]);
    for (int i = 0; i < kVec - 1; ++i)
        if (is_there(t + i)) own.put(i, step0[(t + i) * stride]);
}

extern "C" __global__ __launch_bounds__(kBlock, kMinBlocks) void fwd_register(const Params p, const Divisor runs, const Divisor dims) {
    const uint32_t number = blockIdx.x * kBlock + threadIdx.x;
    const uint32_t row = runs(number), batch = dims(row), dim = row - batch * dims.d;
    const bool exists = batch < p.batch;  // the others stay for the shuffle

    // From here on x and out point at the thread's run, whose first element is number t of the row. A row whose x and out
    // begin at different places of a vector moves element by element.
    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim * p.x_dim_stride;
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim * p.out_dim_stride;
    const int lead = lead_of(x);
    const bool alike = p.x_seq_stride == 1 && p.out_seq_stride == 1 && lead == lead_of(out);
    const index_t t = index_t(number - row * runs.d) * kRun - lead;
    x += t * p.x_seq_stride;
    out += t * p.out_seq_stride;
    const int first = clamp_to_run(-t), last = exists ? clamp_to_run(p.seqlen - t) : 0;
    const elem_t* begin = static_cast<const elem_t*>(p.x);
    const elem_t* end = begin + (p.batch - 1) * p.x_batch_stride + (p.dim - 1) * p.x_dim_stride + p.seqlen;
    const Run run{first, last, alike && first == 0 && last == kRun, alike && first < last && x >= begin && x + kRun <= end};
    run_t own = run.load(x, p.x_seq_stride);
    SeqIdx<kRun> seq_idx;
    if constexpr (kSeqIdx) seq_idx.load(p, batch, t);

    // The first lane has nobody below.
    halo_t halo = halo_t::zero();
    if (lane_id() == 0 && exists && t > 0) {
        if (alike && t >= kHaloPad) {
            halo = halo_t::load(x - kHaloPad);
        } else {
            for (int i = 1; i <= kHalo; ++i)
                if (i <= t) halo.put(kHaloPad - i, x[-i * p.x_seq_stride]);
        }
    }
    if constexpr (kStates)
        if (exists && t < kHalo) put_initial_states(p, batch, dim, t, halo, own);

    acc_t weight[kWidth];
    const weight_t* taps = static_cast<const weight_t*>(p.weight) + dim * p.weight_dim_stride;
    if (p.weight_width_stride == 1) {
        for (int w = 0; w < kWidth; ++w) weight[w] = to_float(taps[w]);
    } else {
        for (int w = 0; w < kWidth; ++w) weight[w] = to_float(taps[w * p.weight_width_stride]);
    }
    const acc_t bias = p.bias ? to_float(static_cast<const weight_t*>(p.bias)[dim]) : acc_t(0);

    // What the lane below holds is what lies before, except at the beginning of a row: there is nothing, or the initial state.
    for (int w = 0; w < halo_t::kWords; ++w) {
        const bool needed = (w + 1) * halo_t::kPerWord > kHaloPad - kHalo;
        const uint32_t below = needed ? shuffle_up(own.words[run_t::kWords - halo_t::kWords + w], 1) : 0;
        halo.words[w] = lane_id() == 0 || (kStates && t <= 0) ? halo.words[w] : t > 0 ? below : 0;
    }
    acc_t values[kHalo + kRun];
    for (int i = 0; i < kHalo; ++i) values[i] = halo.at(kHaloPad - kHalo + i);
    for (int i = 0; i < kRun; ++i) values[kHalo + i] = own.at(i);

    Sequences<kRun> sequences;
    if constexpr (kSeqIdx) sequences.find(seq_idx, t);
    acc_t result[kRun];
    for (int i = 0; i < kRun; ++i) {
        acc_t sum = bias;
        for (int w = 0; w < kWidth; ++w)
            if (!kSeqIdx || sequences.sees(i, kHalo - w)) sum += weight[w] * values[i + w];
        result[i] = kSeqIdx && sequences.is_padding(i) ? acc_t(0) : activate(sum);
    }
    run.store(out, p.out_seq_stride, run_t::from(result));
    if (kStates && first < last && t + kRun >= p.seqlen) write_final_states(p, batch, dim);
}

constexpr int64_t kMaxNumbers = int64_t{1} << 31;  // of runs: what Divisor divides

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int, const Params& p, stream_t stream) {
    const index_t blocks = ceil_div(p.batch * p.dim * runs_of_row<kRun>(p), kBlock);
    launch<fwd_register>(grid_of(blocks, 1, 1, kMaxNumbers / kBlock), dim3(kBlock), stream, p, Divisor(runs_of_row<kRun>(p)), Divisor(p.dim));
}

CC1D_EXPORT("conv")
