// A small tile a thread, all its loads first; tiles in raster order; the halo is read again from the cache.
//
// With the channels contiguous, no lane needs what another has. A thread takes a few neighbouring channels (8 bytes) of
// `steps` steps, loads those and the `width - 1` before them at once, and never loops: what hides the latency is the
// number of loads in flight and the number of threads, not a walk. The steps before the tile were just read by the
// neighbouring tile, so they come from L1 or L2. Rows of 16-bit channels that begin anywhere, but alike in x and out, move in aligned
// vectors, which lanes shift by what their neighbours hold (turned.h); others a block brings to shared memory. The first tile of a
// row takes its initial state, and the last one writes the final state.
//
//            channels ->
//   x      [ halo: width - 1 steps   ]      cache
//          [ tile: 8 bytes x steps   ]      global -> registers, all at once
//                  |
//   out    [ tile: 8 bytes x steps   ]      registers -> global
#include "cc1d/config.h"
#include "cc1d/channels.h"
#include "cc1d/sequences.h"
#include "cc1d/turned.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr bool kWide = kWidth > 4;        // a halo as long as a tile asks for other tiles
constexpr int kSteps = CC1D_STEPS;
constexpr int kAcross = CC1D_ACROSS;      // threads side by side along the channels
constexpr int kDown = kBlock / kAcross;   // threads below one another along the sequence
constexpr int kHalo = kWidth - 1, kRows = kHalo + kSteps;
constexpr int kResident = CC1D_RESIDENT;  // threads that are to fit on a multiprocessor: bounds the registers
constexpr int kLanes = CC1D_BYTES / sizeof(elem_t);  // channels of a thread
constexpr bool kTogether = sizeof(elem_t) == 4 && !kStates && !kSeqIdx;  // how weight and bias are loaded; else the compiler's order is worse for it
static_assert(kChannelLast, "a thread's channels lie side by side");
static_assert(kAcross % 32 == 0, "32 lanes share their steps");

// A block's place among all, batch by batch, along the channels first.
struct Place {
    uint32_t batch, down, across;

    __device__ Place(uint32_t block, const Divisor& by_across, const Divisor& by_down) {
        const uint32_t line = by_across(block);
        batch = by_down(line);
        down = line - batch * by_down.d;
        across = block - line * by_across.d;
    }
};

// The first step of a tile, how many of its steps exist, and of those before it how many do not.
struct Steps {
    index_t first;
    int count, missing;

    __device__ Steps(const Params& p, index_t first)
        : first(first), count(clamped<-kHalo, kSteps>(p.seqlen - first)), missing(kHalo - clamped<0, kHalo>(first)) {}
    __device__ bool all() const { return missing == 0 && count == kSteps; }
    __device__ bool has(int row) const { return row >= missing && row < kHalo + count; }
};

// Every step of a tile: `at(row, i)` is channel i, after `enter(row)`, and `store(step, results)` gets its channels.
template <bool kMasked, typename Taps, typename Enter, typename At, typename Store>
__device__ inline void convolve(const Taps& parameters, const Sequences<kSteps>& sequences, Enter enter, At at, Store store) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
        enter(row);
        const int step = row - kHalo;
        if (step < 0) continue;
        acc_t results[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            acc_t sum = parameters.bias(i);
            for (int w = 0; w < kWidth; ++w)
                if (!kMasked || sequences.sees(step, kHalo - w)) sum += parameters.weight(i, w) * at(step + w, i);
            results[i] = activate(sum);
        }
        if constexpr (kMasked)  // apart from the sums, which would else wait for one another
            for (int i = 0; i < kLanes; ++i) results[i] = sequences.is_padding(step) ? acc_t(0) : results[i];
        store(step, results);
    }
}

// In most tiles no sequence begins. With states, too, two copies of the loop would spill scalar registers.
template <typename Taps, typename Enter, typename At, typename Store>
__device__ inline void convolve(const Taps& parameters, const Sequences<kSteps>& sequences, Enter enter, At at, Store store) {
    if (kSeqIdx && (kStates || !sequences.is_one())) convolve<kSeqIdx>(parameters, sequences, enter, at, store);
    else convolve<false>(parameters, sequences, enter, at, store);
}

template <Channels kHow>
__device__ inline void convolve(const Params& p, const Divisor& by_across, const Divisor& by_down) {
    using Row = ChannelRow<kHow, kLanes, kAcross>;
    const auto ahead = static_cast<uint32_t>(tail_blocks<kBlock>(p));
    if (kTailBlocks && blockIdx.x < ahead) return write_tail_block<kBlock>(p);
    const Place place(blockIdx.x - ahead, by_across, by_down);
    const uint32_t batch = place.batch;
    const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
    const OwnChannels<kHow, kLanes, kAcross> own(p, place.across, across);
    const Steps steps(p, index_t(place.down * kDown + down) * kSteps);
    const bool exists = own.count > 0 && steps.count > 0;
    if (!kSeqIdx && !exists) return;

    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + own.dim * p.x_dim_stride + (steps.first - kHalo) * p.x_seq_stride;
    Row rows[kRows];
    if (steps.all() && own.count == kLanes) {  // nothing to ask for each
        for (int r = 0; r < kRows; ++r) rows[r].load(x + r * p.x_seq_stride, p.x_dim_stride, kLanes);
    } else {
        for (int r = 0; r < kRows; ++r) rows[r].load(x + r * p.x_seq_stride, p.x_dim_stride, steps.has(r) ? own.count : 0);
    }
    VotedMarks marks;
    if constexpr (kSeqIdx) marks.load(p, batch, steps.first);
    Parameters<kLanes> parameters;
    const index_t dim = exists ? own.dim : 0;
    if constexpr (kHow == Channels::vectors && kTogether) parameters.load_together(p, dim);
    else parameters.load(p, dim, kHow == Channels::vectors ? kLanes : own.count, own.kStep);

    Sequences<kSteps> sequences;
    if constexpr (kSeqIdx) sequences.find(marks);
    if (!exists) return;
    if constexpr (kStates)
        for (int r = 0; r < kHalo; ++r)
            if (r < steps.missing) rows[r].load_initial_states(p, batch, own, steps.first + r - kHalo);
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + own.dim * p.out_dim_stride + steps.first * p.out_seq_stride;
    const auto at = [&](int row, int i) { return rows[row].at(i); };
    const auto store = [&](int step, const acc_t(&results)[kLanes]) {
        Row::store(out + step * p.out_seq_stride, p.out_dim_stride, step < steps.count ? own.count : 0, results);
    };
    convolve(parameters, sequences, [](int) {}, at, store);
    if (kStates && !kTailBlocks && steps.first + kSteps >= p.seqlen) write_final_states(p, batch, own.dim, own.count, own.kStep);
}

extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void fwd_raster(const Params p, const Divisor by_across, const Divisor by_down) { convolve<Channels::vectors>(p, by_across, by_down); }

extern "C" __global__ __launch_bounds__(kBlock) void scattered(const Params p, const Divisor by_across, const Divisor by_down) { convolve<Channels::scattered>(p, by_across, by_down); }

// --- rows of channels that begin anywhere --------------------------------------------------------

// Stores go by shared memory, too, where two of a wave that meet within 32 bytes cost more than that: not for 16-bit elements, whose
// stores are bound by instructions.
constexpr bool kStagesOut = sizeof(elem_t) > 2;
template <int kThreads>
constexpr int kFrameBytes = (kRows + (kStagesOut ? kSteps : 1)) * sizeof(ChannelFrame<kThreads * kLanes>);
// Threads, side by side along the channels. The wider a block, the fewer ends of its rows: where two of them fit.
constexpr bool kWideBlock = kStagesOut && !kWide && !kStates && !kSeqIdx && 2 * kFrameBytes<256> <= kSharedBytes;
constexpr int kStagedBlock = kWideBlock ? 256 : 128;
constexpr int kTile = kStagedBlock * kLanes;  // channels of a block: those of a thread lie kStagedBlock apart
using Frame = ChannelFrame<kTile>;
constexpr int kAtOnce = kStagedBlock / Frame::kWhole;  // rows that a block moves at once
constexpr int kStagedResident = kWide || kStates || kSeqIdx ? kResident - kStagedBlock : 1024;
static_assert(kRows <= kStagedBlock && kSteps % kAtOnce == 0, "rows are dealt out to threads");

// `frames` of all steps: vectors `v` of every kAtOnce-th one to memory, and the ends of all rows element by element.
__device__ inline void store_frames(const Params& p, Frame* frames, elem_t* out, int channels, int steps) {
    const int thread = threadIdx.x, v = thread % Frame::kWhole;
    for (int step = thread / Frame::kWhole; step < steps; step += kAtOnce) {
        elem_t* to = out + step * p.out_seq_stride + v * kVec;
        const int lead = lead_of(to);
        if ((v > 0 || lead == 0) && (v + 1) * kVec <= channels + lead) store_raw(vector_at<raw16_t>(to), frames[step].vectors[v]);
    }
    for (int i = thread; i < kSteps * 2 * kVec; i += kStagedBlock) {
        const int step = i / (2 * kVec), at_end = i / kVec % 2;
        elem_t* row = out + step * p.out_seq_stride;
        const int lead = lead_of(row), whole = (lead + channels) / kVec * kVec - lead;  // where the vector begins that the row ends in
        const int c = i % kVec + (at_end ? whole : -lead);
        if (step < steps && c >= 0 && c < channels && (at_end || (lead > 0 && whole > 0))) row[c] = frames[step].first(row)[c];
    }
}

extern "C" __global__ CC1D_BOUNDS(kStagedBlock, kStagedResident) void staged(const Params p, const Divisor by_across, const Divisor by_down) {
    constexpr int kPasses = ceil_div(kRows, kAtOnce);
    __shared__ Frame x_frames[kRows], out_frames[kStagesOut ? kSteps : 1];
    const auto ahead = static_cast<uint32_t>(tail_blocks<kStagedBlock>(p));
    if (kTailBlocks && blockIdx.x < ahead) return write_tail_block<kStagedBlock>(p);
    const Place place(blockIdx.x - ahead, by_across, by_down);
    const uint32_t batch = place.batch;
    const int thread = threadIdx.x;
    const index_t dim0 = index_t(place.across) * kTile, dim = dim0 + thread;
    const Steps steps(p, index_t(place.down) * kSteps);
    const int channels = clamped<0, kTile>(p.dim - dim0), count = clamped<0, kLanes>(ceil_div(channels - thread, kStagedBlock));
    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim0 + (steps.first - kHalo) * p.x_seq_stride;

    // Vector `v` of every kAtOnce-th row. A row that does not begin on a boundary lies in one vector more: `more`.
    const int v = thread % Frame::kWhole, row0 = thread / Frame::kWhole, more = ceil_div(channels, kVec);
    const elem_t *from = x + row0 * p.x_seq_stride + v * kVec, *end = x + thread * p.x_seq_stride + more * kVec;
    raw16_t vectors[kPasses], last{};
    if (steps.all() && channels == kTile) {  // nothing to ask for each
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass, from += kAtOnce * p.x_seq_stride)
            if (row0 + pass * kAtOnce < kRows) vectors[pass] = *vector_at<const raw16_t>(from);
    } else {
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass, from += kAtOnce * p.x_seq_stride) {
            vectors[pass] = raw16_t{};
            if (v < more && steps.has(row0 + pass * kAtOnce)) vectors[pass] = *vector_at<const raw16_t>(from);
        }
    }
    if (steps.has(thread) && lead_of(end) + channels > more * kVec) last = *vector_at<const raw16_t>(end);
    VotedMarks marks;
    if constexpr (kSeqIdx) marks.load(p, batch, steps.first);
    Parameters<kLanes> parameters;
    parameters.load(p, count > 0 ? dim : 0, count, kStagedBlock);
    for (int pass = 0; pass < kPasses; ++pass)
        if (v < more && row0 + pass * kAtOnce < kRows) x_frames[row0 + pass * kAtOnce].vectors[v] = vectors[pass];
    if (thread < kRows) x_frames[thread].vectors[more] = last;
    Sequences<kSteps> sequences;
    if constexpr (kSeqIdx) sequences.find(marks);
    __syncthreads();

    acc_t values[kRows][kLanes];
    const auto enter = [&](int row) {
        const elem_t* first = x_frames[row].first(x + row * p.x_seq_stride) + thread;
        for (int i = 0; i < kLanes; ++i) {
            values[row][i] = to_float(first[i * kStagedBlock]);
            if (kStates && row < steps.missing && i < count) values[row][i] = to_float(x_at(p, batch, dim + i * kStagedBlock, steps.first + row - kHalo));
        }
    };
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim0 + steps.first * p.out_seq_stride;
    const auto store = [&](int step, const acc_t(&results)[kLanes]) {
        using Row = ChannelRow<Channels::apart, kLanes, kStagedBlock>;
        elem_t* row = out + step * p.out_seq_stride;
        if (kStagesOut) Row::store(out_frames[step].first(row) + thread, 1, kLanes, results);
        else if (step < steps.count && count == kLanes) Row::store(row + thread, 1, kLanes, results);
        else Row::store(row + thread, 1, step < steps.count ? count : 0, results);
    };
    convolve(parameters, sequences, enter, [&](int row, int i) { return values[row][i]; }, store);
    if constexpr (kStagesOut) {
        __syncthreads();
        store_frames(p, out_frames, out, channels, steps.count);
    }
    if (kStates && !kTailBlocks && steps.first + kSteps >= p.seqlen) write_final_states(p, batch, dim, count, kStagedBlock);
}

// --- the same of 16-bit elements, where those of x and out lie alike ------------------------------

// Whether there are such kernels. Beside states or packed sequences they would spill scalar registers.
constexpr bool kTurns = sizeof(elem_t) == 2 && !kWide && kLanes == kFour && kSteps % kFour == 0 && !(kFewScalars && (kStates || kSeqIdx));
constexpr int kGroupsSteps = kBlock / kGroup * kSteps;  // of a block
static_assert(kSteps <= kGroup, "a lane finds what a row stores");

// Channels [begin(step), end(step)) of the steps of a tile one by one: what is left at the ends of rows.
template <typename Begin, typename End>
__device__ inline void convolve_rest(const Params& p, index_t batch, const Steps& steps, const Sequences<kSteps>& sequences, Begin begin, End end) {
    const int lane = lane_id() % kGroup;
    for (int step = lane / kFour; step < steps.count; step += kGroup / kFour) {
        const index_t t = steps.first + step, last = end(step);
        for (index_t dim = begin(step) + lane % kFour; dim < last; dim += kFour) {
            Parameters<1> parameters;
            parameters.load(p, dim);
            acc_t sum = parameters.bias(0);
            for (int w = 0; w < kWidth; ++w)
                if (!kSeqIdx || sequences.sees(step, kHalo - w)) sum += parameters.weight(0, w) * to_float(x_at(p, batch, dim, t - kHalo + w));
            const acc_t result = kSeqIdx && sequences.is_padding(step) ? acc_t(0) : activate(sum);
            static_cast<elem_t*>(p.out)[batch * p.out_batch_stride + dim * p.out_dim_stride + t * p.out_seq_stride] = from_float<elem_t>(result);
        }
    }
}

// A group's tile. With kTurn all of its steps exist, and those before it.
template <int kTurn>
__device__ inline void convolve_turned(const Params& p, index_t batch, const Steps& steps, index_t dim0, bool starts, bool ends, uint32_t turn) {
    const TurnedRows<kTurn> rows{turn};
    const int lane = lane_id() % kGroup, group = lane_id() - lane;
    const index_t dim = dim0 + lane * kFour;
    const int64_t x_step = step_bytes(p.x_seq_stride), out_step = step_bytes(p.out_seq_stride);
    const elem_t* from = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim + (steps.first - kHalo) * p.x_seq_stride;
    four_t vectors[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r, from = bytes_on(from, x_step)) vectors[r] = kTurn || steps.has(r) ? four_t::load(from - rows.behind(r)) : four_t::zero();
    VotedMarks marks;
    if constexpr (kSeqIdx) marks.load(p, batch, steps.first);
    Parameters<kFour> parameters;
    parameters.load_pairs(p, dim);
    Sequences<kSteps> sequences;
    if constexpr (kSeqIdx) sequences.find(marks);

    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim0 + steps.first * p.out_seq_stride;
    const auto stored_of = [&](int step) {
        const int behind = static_cast<int>((step + kHalo) * turn % kFour);
        return Stored(out + step * p.out_seq_stride - behind, behind, starts, ends);
    };
    const uint32_t mine = lane < steps.count ? stored_of(lane).mask() : 0;  // of step `lane`

    const auto enter = [&](int row) {
        vectors[row] = rows.channels(row, vectors[row]);
        if (kStates && row < steps.missing)
            for (int i = 0; i < kFour; ++i) vectors[row].replace(i, x_at(p, batch, dim + i, steps.first + row - kHalo));
    };
    elem_t* to = out + lane * kFour;
    const auto store = [&](int step, const acc_t(&results)[kLanes]) {
        const four_t v = rows.in_memory(step + kHalo, Packed<elem_t, kLanes>::from(results).template part<kFour>(0));
        if (shuffle(mine, group + step) >> lane & 1) v.store(to - rows.behind(step + kHalo));
        to = bytes_on(to, out_step);
    };
    convolve(parameters, sequences, enter, [&](int row, int i) { return vectors[row].at(i); }, store);
    if (starts || ends) {
        const auto channel = [&](int step, int vector) { return dim0 + vector * kFour - static_cast<int>((step + kHalo) * turn % kFour); };
        convolve_rest(p, batch, steps, sequences, [&](int step) { return starts ? 0 : channel(step, stored_of(step).end); },
                      [&](int step) { return starts ? channel(step, stored_of(step).begin) : p.dim; });
    }
    if (kStates && !kTailBlocks && steps.first + kSteps >= p.seqlen) {
        write_final_states(p, batch, dim, kFour);
        if (starts && lane < dim0) write_final_states(p, batch, lane);
        if (ends && dim0 + kSpan + lane < p.dim) write_final_states(p, batch, dim0 + kSpan + lane);
    }
}

template <int kTurn>
__device__ inline void convolve_turned(const Params& p, const Divisor& by_across, const Divisor& by_down) {
    if constexpr (kTurns) {
        const auto ahead = static_cast<uint32_t>(tail_blocks<kBlock>(p));
        if (kTailBlocks && blockIdx.x < ahead) return write_tail_block<kBlock>(p);
        const Place place(blockIdx.x - ahead, by_across, by_down);
        const index_t step = index_t(place.down) * kGroupsSteps;
        const bool starts = place.across == 0, ends = place.across == by_across.d - 1;
        // Channel dim0 of the first row lies on a boundary; the last group reaches back to be whole.
        const elem_t* row0 = static_cast<const elem_t*>(p.x) + place.batch * p.x_batch_stride + (step - kHalo) * p.x_seq_stride;
        const auto aligned = static_cast<index_t>(-(reinterpret_cast<uintptr_t>(row0) / sizeof(elem_t)) % kFour);
        const index_t last = p.dim - kSpan - (p.dim - kSpan - aligned) % kFour, wanted = aligned + index_t(place.across) * kAdvance;
        const index_t dim0 = wanted < last ? wanted : last;
        const Steps steps(p, step + threadIdx.x / kGroup * kSteps);
        // Asked of the block: a compiler that cannot see that all lanes of a wave go one way makes each shuffle fit for two.
        if (step >= kHalo && step + kGroupsSteps <= p.seqlen) convolve_turned<kTurn>(p, place.batch, steps, dim0, starts, ends, kTurn);
        else if (steps.count > 0) convolve_turned<0>(p, place.batch, steps, dim0, starts, ends, kTurn);
    }
}

// A kernel each: one that asks for the turn is 1 % slower.
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void turned1(const Params p, const Divisor by_across, const Divisor by_down) { convolve_turned<1>(p, by_across, by_down); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void turned2(const Params p, const Divisor by_across, const Divisor by_down) { convolve_turned<2>(p, by_across, by_down); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void turned3(const Params p, const Divisor by_across, const Divisor by_down) { convolve_turned<3>(p, by_across, by_down); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void turned4(const Params p, const Divisor by_across, const Divisor by_down) { convolve_turned<4>(p, by_across, by_down); }

// By how much the rows of both tensors turn, where they lie alike; else 0.
static uint32_t turn_of(const Params& p) {
    const index_t strides = p.x_seq_stride - p.out_seq_stride, batches = p.x_batch_stride - p.out_batch_stride;
    const auto apart = (reinterpret_cast<uintptr_t>(p.x) - reinterpret_cast<uintptr_t>(p.out)) / sizeof(elem_t);
    if (!kTurns || p.dim < 2 * kSpan || strides % kFour || batches % kFour || apart % kFour || !Parameters<kLanes>::are_together(p)) return 0;
    return kFour - static_cast<uint32_t>(-static_cast<uint64_t>(p.x_seq_stride)) % kFour;
}

static Channels how(const Params& p) {
    const Channels channels = channels_of<kLanes, kAcross>(p, {{p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride},
                                                               {p.out, p.out_batch_stride, p.out_dim_stride, p.out_seq_stride}});
    if (channels != Channels::vectors || !kTogether || Parameters<kLanes>::are_together(p)) return channels;
    return p.dim >= kAcross * kLanes ? Channels::apart : Channels::scattered;
}

static int64_t workspace_bytes(const Params&) { return 0; }

template <auto Kernel, int Block>
static void launch_tiles(const Params& p, index_t across, index_t down, stream_t stream) {
    const index_t ahead = tail_blocks<Block>(p);
    launch<Kernel>(grid_of(ahead + p.batch * down * across, 1, 1, ahead + Divisor::kLimit), dim3(Block), stream, p, Divisor(across), Divisor(down));
}

static void launch_stage(int, const Params& p, stream_t stream) {
    const index_t across = ceil_div(p.dim, kAcross * kLanes), down = ceil_div(p.seqlen, kDown * kSteps);
    const Channels channels = how(p);
    if (channels == Channels::vectors) launch_tiles<fwd_raster, kBlock>(p, across, down, stream);
    if (channels == Channels::apart) {
        const uint32_t turn = turn_of(p);
        const index_t groups = 1 + ceil_div(p.dim - kSpan, kAdvance), rows = ceil_div(p.seqlen, kGroupsSteps);
        if (turn == 0) launch_tiles<staged, kStagedBlock>(p, ceil_div(p.dim, kTile), ceil_div(p.seqlen, kSteps), stream);
        if (turn == 1) launch_tiles<turned1, kBlock>(p, groups, rows, stream);
        if (turn == 2) launch_tiles<turned2, kBlock>(p, groups, rows, stream);
        if (turn == 3) launch_tiles<turned3, kBlock>(p, groups, rows, stream);
        if (turn == 4) launch_tiles<turned4, kBlock>(p, groups, rows, stream);
    }
    if (channels == Channels::scattered) launch_tiles<scattered, kBlock>(p, across, down, stream);
}

CC1D_EXPORT("conv")
