// A small tile a thread, all its loads first; tiles in raster order; the halo is read again from the cache.
//
// With the channels contiguous, no lane needs what another has. A thread takes a few neighbouring channels (8 bytes) of
// `steps` steps, loads those and the `width - 1` before them at once, and never loops: what hides the latency is the
// number of loads in flight and the number of threads, not a walk. The steps before the tile were just read by the
// neighbouring tile, so they come from L1 or L2. Rows of channels that begin anywhere a block brings to shared memory in the
// aligned vectors that hold them. The first tile of a row takes its initial state, and the last one writes the final state.
//
//            channels ->
//   x      [ halo: width - 1 steps   ]      cache
//          [ tile: 8 bytes x steps   ]      global -> registers, all at once
//                  |
//   out    [ tile: 8 bytes x steps   ]      registers -> global
#include "cc1d/config.h"
#include "cc1d/channels.h"
#include "cc1d/sequences.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr bool kWide = kWidth > 4;        // a halo as long as a tile asks for other tiles
constexpr int kSteps = CC1D_STEPS;
constexpr int kAcross = CC1D_ACROSS;      // threads side by side along the channels
constexpr int kDown = kBlock / kAcross;   // threads below one another along the sequence
constexpr int kHalo = kWidth - 1, kRows = kHalo + kSteps;
constexpr int kResident = CC1D_RESIDENT;  // threads that are to fit on a multiprocessor: bounds the registers
constexpr int kLanes = CC1D_BYTES / sizeof(elem_t);  // channels of a thread
static_assert(kChannelLast, "a thread's channels lie side by side");
static_assert(kAcross % 32 == 0, "32 lanes share their steps");

struct Grid {
    uint32_t across, down;  // tiles of a batch element

    __host__ __device__ Grid(const Params& p, int channels, int steps) : across(ceil_div(p.dim, channels)), down(ceil_div(p.seqlen, steps)) {}
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
template <bool kMasked, typename Enter, typename At, typename Store>
__device__ inline void convolve(const Parameters<kLanes>& parameters, const Sequences<kSteps>& sequences, Enter enter, At at, Store store) {
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
template <typename Enter, typename At, typename Store>
__device__ inline void convolve(const Parameters<kLanes>& parameters, const Sequences<kSteps>& sequences, Enter enter, At at, Store store) {
    if (kSeqIdx && (kStates || !sequences.is_one())) convolve<kSeqIdx>(parameters, sequences, enter, at, store);
    else convolve<false>(parameters, sequences, enter, at, store);
}

template <Channels kHow>
__device__ inline void convolve(const Params& p) {
    using Row = ChannelRow<kHow, kLanes, kAcross>;
    const Grid grid(p, kAcross * kLanes, kDown * kSteps);
    const auto ahead = static_cast<uint32_t>(tail_blocks<kBlock>(p));
    if (kTailBlocks && blockIdx.x < ahead) return write_tail_block<kBlock>(p);
    const uint32_t block = blockIdx.x - ahead, line = block / grid.across, batch = line / grid.down;
    const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
    const OwnChannels<kHow, kLanes, kAcross> own(p, block - line * grid.across, across);
    const Steps steps(p, index_t((line - batch * grid.down) * kDown + down) * kSteps);
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
    parameters.load(p, exists ? own.dim : 0, kHow == Channels::vectors ? kLanes : own.count, own.kStep);

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

extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void fwd_raster(const Params p) { convolve<Channels::vectors>(p); }

extern "C" __global__ __launch_bounds__(kBlock) void scattered(const Params p) { convolve<Channels::scattered>(p); }

// --- rows of channels that begin anywhere --------------------------------------------------------

constexpr int kStagedBlock = 128;             // threads, side by side along the channels
constexpr int kTile = kStagedBlock * kLanes;  // channels of a block: those of a thread lie kStagedBlock apart
using Frame = ChannelFrame<kTile>;
constexpr int kAtOnce = kStagedBlock / Frame::kWhole;  // rows that a block moves at once
// Stores go by shared memory, too, where two of a wave that meet within 32 bytes cost more than that: not for 16-bit elements, whose
// stores are bound by instructions.
constexpr bool kStagesOut = sizeof(elem_t) > 2;
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

extern "C" __global__ CC1D_BOUNDS(kStagedBlock, kStagedResident) void staged(const Params p) {
    constexpr int kPasses = ceil_div(kRows, kAtOnce);
    __shared__ Frame x_frames[kRows], out_frames[kStagesOut ? kSteps : 1];
    const Grid grid(p, kTile, kSteps);
    const auto ahead = static_cast<uint32_t>(tail_blocks<kStagedBlock>(p));
    if (kTailBlocks && blockIdx.x < ahead) return write_tail_block<kStagedBlock>(p);
    const uint32_t block = blockIdx.x - ahead, line = block / grid.across, batch = line / grid.down;
    const int thread = threadIdx.x;
    const index_t dim0 = index_t(block - line * grid.across) * kTile, dim = dim0 + thread;
    const Steps steps(p, index_t(line - batch * grid.down) * kSteps);
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

static Channels how(const Params& p) {
    return channels_of<kLanes, kAcross>(p, {{p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride},
                                           {p.out, p.out_batch_stride, p.out_dim_stride, p.out_seq_stride}});
}

static int64_t workspace_bytes(const Params&) { return 0; }

template <int Block>
static dim3 blocks(const Params& p, const Grid& grid) { return grid_of(tail_blocks<Block>(p) + p.batch * grid.down * grid.across); }

static void launch_stage(int, const Params& p, stream_t stream) {
    const Grid grid(p, kAcross * kLanes, kDown * kSteps);
    const Channels channels = how(p);
    if (channels == Channels::vectors) launch<fwd_raster>(blocks<kBlock>(p, grid), dim3(kBlock), stream, p);
    if (channels == Channels::apart) launch<staged>(blocks<kStagedBlock>(p, Grid(p, kTile, kSteps)), dim3(kStagedBlock), stream, p);
    if (channels == Channels::scattered) launch<scattered>(blocks<kBlock>(p, grid), dim3(kBlock), stream, p);
}

CC1D_EXPORT("conv")
