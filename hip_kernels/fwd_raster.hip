// A small tile a thread, all its loads first; tiles in raster order; the halo is read again from the cache.
//
// With the channels contiguous, no lane needs what another has. A thread takes a few neighbouring channels (8 bytes) of
// `steps` steps, loads those and the `width - 1` before them at once, and never loops: what hides the latency is the
// number of loads in flight and the number of threads, not a walk. The steps before the tile were just read by the
// neighbouring tile, so they come from L1 or L2. Rows of channels that begin off the sectors of memory, but alike in x and out, move in
// aligned vectors, which lanes shift by what their neighbours hold (turned.h); others a block brings to shared memory; both take longer tiles,
// since a row costs them more. Where tiles are long, the last ones, whose arithmetic nothing hides, are short. The first tile of a row takes its
// initial state, and the last one writes the final state.
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
constexpr int kAcross = CC1D_ACROSS;      // threads side by side along the channels
constexpr int kDown = kBlock / kAcross;   // threads below one another along the sequence
constexpr int kHalo = kWidth - 1;
// Of a tile of aligned rows, and threads that are to fit on a multiprocessor, which bounds their registers: many of few steps have the last
// ones done sooner.
constexpr int kSteps = CC1D_STEPS, kResident = CC1D_RESIDENT;
// The same of tiles of other rows, each of which costs more: more steps share the halo.
constexpr int kLongSteps = kWide && sizeof(elem_t) == 2 ? 12 : 8, kLongRows = kHalo + kLongSteps;
constexpr int kMostLong = kWide ? 640 : 896, kLongResident = kResident < kMostLong ? kResident : kMostLong;
// Of the last tiles: kSharePct of what the device runs at once. More of them share too little of the halo.
constexpr int kFewSteps = 4, kSharePct = 40;
constexpr int kShortSteps = kKnowsMultiprocessors && !kWide && kSteps > kFewSteps && kSteps % kFewSteps == 0 ? kFewSteps : kSteps;
constexpr int kLanes = CC1D_BYTES / sizeof(elem_t);  // channels of a thread
// Bytes that the L2 fetches at once: where rows cut lines of memory (128 bytes), what one tile leaves of a line the next one soon wants.
constexpr int kFetchTile = kWide ? 0 : 128, kFetchRows = 256;
using Results = Packed<elem_t, kLanes>;
constexpr bool kTogether = sizeof(elem_t) == 4 && !kStates && !kSeqIdx;  // how weight and bias are loaded; else the compiler's order is worse for it
static_assert(kChannelLast, "a thread's channels lie side by side");
static_assert(kAcross % 32 == 0, "32 lanes share their steps");

// Lines of blocks across the channels. First those of whole tiles, batch by batch, the last of which is the end of the last batch; then what was
// left out before that, in short tiles.
struct Lines {
    Divisor across, down;  // blocks of a line; lines of a batch, if all were whole
    uint32_t whole;
};

// A block's place among all, along the channels first; `kTimes` short tiles are as long as a whole one.
template <int kTimes>
struct Place {
    uint32_t batch, down, across;  // `down` counts whole blocks, or short ones
    bool is_short;

    __device__ Place(uint32_t block, const Lines& lines) {
        const uint32_t line = lines.across(block), end = lines.whole - 1;
        is_short = kTimes > 1 && line > end;
        across = block - line * lines.across.d;
        batch = lines.down(is_short ? end : line);
        down = (is_short ? end : line) - batch * lines.down.d;
        if (kTimes > 1 && line == end) down = lines.down.d - 1;
        if (is_short) down = down * kTimes + line - lines.whole;
    }
};

// The first of `kSteps` steps of a tile, how many of them exist, and of those before it how many do not.
template <int kSteps>
struct Steps {
    index_t first;
    int count, missing;

    template <typename P>  // Params, or what else has seqlen
    __device__ Steps(const P& p, index_t first)
        : first(first), count(clamped<-kHalo, kSteps>(p.seqlen - first)), missing(kHalo - clamped<0, kHalo>(first)) {}
    __device__ bool all() const { return missing == 0 && count == kSteps; }
    __device__ bool has(int row) const { return row >= missing && row < kHalo + count; }
};
using LongSteps = Steps<kLongSteps>;

// Every step of a tile: `at(row, i)` is channel i, after `enter(row)`, and `store(step, results)` gets its channels. Of 16-bit elements those of one
// word in all steps come before the next ones (kByWords): fewer values and taps at a time, which take a register each, or a conversion again. Not with
// packed sequences, whose masks serve all channels.
template <bool kMasked, bool kByWords, int kSteps, typename Taps, typename Enter, typename At, typename Store>
__device__ inline void convolve(const Taps& parameters, const Sequences<kSteps>& sequences, Enter enter, At at, Store store) {
    constexpr int kAtOnce = kByWords && !kSeqIdx ? Results::kPerWord : kLanes;
    Results results[kSteps];
#pragma unroll
    for (int first = 0; first < kLanes; first += kAtOnce) {
#pragma unroll
        for (int row = 0; row < kHalo + kSteps; ++row) {
            if (first == 0) enter(row);
            const int step = row - kHalo;
            if (step < 0) continue;
            acc_t sums[kAtOnce];
            for (int i = 0; i < kAtOnce; ++i) {
                acc_t sum = parameters.bias(first + i);
                for (int w = 0; w < kWidth; ++w)
                    if (!kMasked || sequences.sees(step, kHalo - w)) sum += parameters.weight(first + i, w) * at(step + w, first + i);
                sums[i] = activate(sum);
            }
            if constexpr (kMasked)  // apart from the sums, which would else wait for one another
                for (int i = 0; i < kAtOnce; ++i) sums[i] = sequences.is_padding(step) ? acc_t(0) : sums[i];
            results[step].template set<kAtOnce>(first, Packed<elem_t, kAtOnce>::from(sums));
            if (kAtOnce == kLanes) store(step, results[step]);
        }
    }
    if (kAtOnce < kLanes)
        for (int step = 0; step < kSteps; ++step) store(step, results[step]);
}

// In most tiles no sequence begins. With states, too, two copies of the loop would spill scalar registers.
template <bool kByWords = sizeof(elem_t) == 2, int kSteps, typename Taps, typename Enter, typename At, typename Store>
__device__ inline void convolve(const Taps& parameters, const Sequences<kSteps>& sequences, Enter enter, At at, Store store) {
    if (kSeqIdx && (kStates || !sequences.is_one())) convolve<kSeqIdx, kByWords>(parameters, sequences, enter, at, store);
    else convolve<false, kByWords>(parameters, sequences, enter, at, store);
}

template <Channels kHow, int kSteps>
__device__ inline void convolve_tile(const Params& p, uint32_t batch, uint32_t block, uint32_t line) {
    constexpr int kRows = kHalo + kSteps;
    using Row = ChannelRow<kHow, kLanes, kAcross, kHow == Channels::vectors ? kFetchTile : 0>;
    const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
    const OwnChannels<kHow, kLanes, kAcross> own(p, block, across);
    const Steps<kSteps> steps(p, index_t(line * kDown + down) * kSteps);
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
    const auto store = [&](int step, const Results& results) {
        Row::store(out + step * p.out_seq_stride, p.out_dim_stride, step < steps.count ? own.count : 0, results);
    };
    convolve(parameters, sequences, [](int) {}, at, store);
    if (kStates && !kTailBlocks && steps.first + kSteps >= p.seqlen) write_final_states(p, batch, own.dim, own.count, own.kStep);
}

// In tiles of `kSteps`, or of `kShort` where they are short.
template <Channels kHow, int kSteps, int kShort>
__device__ inline void convolve_block(const Params& p, const Lines& lines) {
    const auto ahead = static_cast<uint32_t>(tail_blocks<kBlock>(p));
    if (kTailBlocks && blockIdx.x < ahead) return write_tail_block<kBlock>(p);
    const Place<kSteps / kShort> place(blockIdx.x - ahead, lines);
    if (place.is_short) convolve_tile<kHow, kShort>(p, place.batch, place.across, place.down);
    else convolve_tile<kHow, kSteps>(p, place.batch, place.across, place.down);
}

extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void fwd_raster(const Params p, const Lines lines) { convolve_block<Channels::vectors, kSteps, kShortSteps>(p, lines); }

extern "C" __global__ __launch_bounds__(kBlock) void scattered(const Params p, const Lines lines) { convolve_block<Channels::scattered, kLongSteps, kLongSteps>(p, lines); }

// --- rows of channels that begin anywhere --------------------------------------------------------

// Stores go by shared memory, too, where two of a wave that meet within 32 bytes cost more than that: not for 16-bit elements, whose
// stores are bound by instructions.
constexpr bool kStagesOut = sizeof(elem_t) > 2;
template <int kThreads>
constexpr int kFrameBytes = (kLongRows + (kStagesOut ? kLongSteps : 1)) * sizeof(ChannelFrame<kThreads * kLanes>);
// Threads, side by side along the channels. The wider a block, the fewer ends of its rows: where two of them fit.
constexpr bool kWideBlock = kStagesOut && !kWide && !kStates && !kSeqIdx && 2 * kFrameBytes<256> <= kSharedBytes;
constexpr int kStagedBlock = kWideBlock ? 256 : 128;
constexpr int kTile = kStagedBlock * kLanes;  // channels of a block: those of a thread lie kStagedBlock apart
using Frame = ChannelFrame<kTile>;
constexpr int kAtOnce = kStagedBlock / Frame::kWhole;  // rows that a block moves at once
constexpr int kStagedResident = kWide || kStates || kSeqIdx ? kLongResident - kStagedBlock : 1024;
static_assert(kLongRows <= kStagedBlock && kLongSteps % kAtOnce == 0, "rows are dealt out to threads");

// `frames` of all steps: vectors `v` of every kAtOnce-th one to memory, and ends of rows element by element. Where a block before or behind has
// `advance` channels and a sector more, whole sectors alone: what is left of the ends is the other's.
__device__ inline void store_frames(const Params& p, Frame* frames, elem_t* out, int channels, int steps, int advance, bool begins, bool ends) {
    const int thread = threadIdx.x, v = thread % Frame::kWhole;
    for (int step = thread / Frame::kWhole; step < steps; step += kAtOnce) {
        elem_t* row = out + step * p.out_seq_stride;
        const int c = v * kVec - lead_of(row), first = to_sector(row);  // of the vector, and of the first sector
        if (c >= (begins ? 0 : first) && c + kVec <= (ends ? channels : first + advance)) store_raw(vector_at<raw16_t>(row + v * kVec), frames[step].vectors[v]);
    }
    for (int i = thread; i < kLongSteps * 2 * kVec; i += kStagedBlock) {
        const int step = i / (2 * kVec), at_end = i / kVec % 2;
        elem_t* row = out + step * p.out_seq_stride;
        const int lead = lead_of(row), whole = (lead + channels) / kVec * kVec - lead;  // where the vector begins that the row ends in
        const int c = i % kVec + (at_end ? whole : -lead);
        if (step < steps && c >= 0 && c < channels && (at_end ? ends : begins && lead > 0 && whole > 0)) row[c] = frames[step].first(row)[c];
    }
}

extern "C" __global__ CC1D_BOUNDS(kStagedBlock, kStagedResident) void staged(const Params p, const Lines lines, int advance) {
    constexpr int kPasses = ceil_div(kLongRows, kAtOnce);
    __shared__ Frame x_frames[kLongRows], out_frames[kStagesOut ? kLongSteps : 1];
    const auto ahead = static_cast<uint32_t>(tail_blocks<kStagedBlock>(p));
    if (kTailBlocks && blockIdx.x < ahead) return write_tail_block<kStagedBlock>(p);
    const Place<1> place(blockIdx.x - ahead, lines);
    const uint32_t batch = place.batch;
    const int thread = threadIdx.x;
    const index_t dim0 = index_t(place.across) * advance, dim = dim0 + thread;
    const LongSteps steps(p, index_t(place.down) * kLongSteps);
    const int channels = clamped<0, kTile>(p.dim - dim0), count = clamped<0, kLanes>(ceil_div(channels - thread, kStagedBlock));
    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim0 + (steps.first - kHalo) * p.x_seq_stride;

    // Vector `v` of every kAtOnce-th row. A row that does not begin on a boundary lies in one vector more: `more`.
    const int v = thread % Frame::kWhole, row0 = thread / Frame::kWhole, more = ceil_div(channels, kVec);
    const elem_t *from = x + row0 * p.x_seq_stride + v * kVec, *end = x + thread * p.x_seq_stride + more * kVec;
    raw16_t vectors[kPasses], last{};
    if (steps.all() && channels == kTile) {  // nothing to ask for each
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass, from += kAtOnce * p.x_seq_stride)
            if (row0 + pass * kAtOnce < kLongRows) vectors[pass] = *vector_at<const raw16_t>(from);
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
        if (v < more && row0 + pass * kAtOnce < kLongRows) x_frames[row0 + pass * kAtOnce].vectors[v] = vectors[pass];
    if (thread < kLongRows) x_frames[thread].vectors[more] = last;
    Sequences<kLongSteps> sequences;
    if constexpr (kSeqIdx) sequences.find(marks);
    __syncthreads();

    acc_t values[kLongRows][kLanes];
    const auto enter = [&](int row) {
        const elem_t* first = x_frames[row].first(x + row * p.x_seq_stride) + thread;
        for (int i = 0; i < kLanes; ++i) {
            values[row][i] = to_float(first[i * kStagedBlock]);
            if (kStates && row < steps.missing && i < count) values[row][i] = to_float(x_at(p, batch, dim + i * kStagedBlock, steps.first + row - kHalo));
        }
    };
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim0 + steps.first * p.out_seq_stride;
    const auto store = [&](int step, const Results& results) {
        using Row = ChannelRow<Channels::apart, kLanes, kStagedBlock>;
        elem_t* row = out + step * p.out_seq_stride;
        if (kStagesOut) Row::store(out_frames[step].first(row) + thread, 1, kLanes, results);
        else if (step < steps.count && count == kLanes) Row::store(row + thread, 1, kLanes, results);
        else Row::store(row + thread, 1, step < steps.count ? count : 0, results);
    };
    convolve<!kWide && sizeof(elem_t) == 2>(parameters, sequences, enter, [&](int row, int i) { return values[row][i]; }, store);
    if constexpr (kStagesOut) {
        __syncthreads();
        store_frames(p, out_frames, out, channels, steps.count, advance, place.across == 0 || advance == kTile, place.across == lines.across.d - 1 || advance == kTile);
    }
    if (kStates && !kTailBlocks && steps.first + kLongSteps >= p.seqlen) write_final_states(p, batch, dim, count, kStagedBlock);
}

// Blocks of a row that lie `advance` channels apart.
static index_t staged_across(const Params& p, int advance) { return p.dim > kTile ? 1 + ceil_div(p.dim - kTile, advance) : 1; }

// Channels from a block to the next: a sector less than it has, so that each sector is stored by one, unless that takes over a tenth more blocks.
static int staged_advance(const Params& p) {
    constexpr int kLess = kTile - kSector;
    return kStagesOut && !kWide && 10 * staged_across(p, kLess) <= 11 * staged_across(p, kTile) ? kLess : kTile;
}

// --- the same where those of x and out lie alike ---------------------------------------------------

// Whether there are such kernels. Beside states or packed sequences they would spill scalar registers.
constexpr bool kTurns = !kWide && kLanes == kNarrow && kLongSteps % kNarrow == 0 && kLongSteps <= InSectors::kBits && !(kFewScalars && (kStates || kSeqIdx));
// 96 is 0.2 to 0.3 % faster from 50 MB on in 16 bits, and up to 10 % slower below 5 us.
constexpr int kTurnedBlock = kWarp == kGroup && sizeof(elem_t) == 2 && !kSeqIdx ? 96 : 128;
// In fp32 more registers pay; in 16 bits what fwd_raster takes with packed sequences would spill.
constexpr int kTurnedResident = kLongResident - (sizeof(elem_t) > 2 ? 128 : 0);
constexpr int kShortTurned = kKnowsMultiprocessors && sizeof(elem_t) == 2 && !kSeqIdx ? kFewSteps : kLongSteps;  // slower elsewhere
constexpr uint32_t kBytes = sizeof(elem_t);
constexpr int kGroups = kTurnedBlock / kGroup, kGroupsSteps = kGroups * kLongSteps;  // of a block, but for short ones

// What a block asks for beside Params, in that order: a GPU waits for each line of 64 bytes (DECISIONS 56), and where a call begins nothing hides
// what a block does before its loads (DECISIONS 57). So it counts channels and steps in 32 bits, which turn_of() sees to; offsets have 64.
struct Turned {
    const elem_t* x;  // kHalo steps before the first
    int64_t x_batch_bytes;
    Lines lines;
    uint32_t x_step_bytes;
    elem_t* out;
    int64_t out_batch_bytes;
    uint32_t out_step_bytes;
    int begin;        // of InSectors
    uint32_t inside;  // lines of a batch between its first one and the last steps
    int dim;
    const void *weight, *bias;
    uint32_t stores;  // of InSectors
    // A vector is stored where the sector that holds it begins in this row, if rows are joined, and else where all of it is in this row: what is to
    // be taken off its address, of these bits, and what its channel is then below.
    uint32_t within, end;
    bool joined;
    int seqlen;
};

// A group of lanes among those of a row: its first channel, whether it has the row's beginning and end, or certainly no channel of another row.
struct Group {
    int dim0;
    bool is_first, is_last, is_plain;
};

// Channels [begin, end) of a step of a tile one by one, every kLanesAStep-th of them by a lane: what is left at the ends of rows. At most
// 7 of 16 bits, of which a lane loads all of its own at once, but for one row of a batch: that behind the first tiles, up to its first sector.
constexpr int kRestAtOnce = kStates || sizeof(elem_t) > 2 ? 1 : 2;  // with states, two would spill registers
template <int kSteps>
__device__ inline void convolve_rest(const Params& p, index_t batch, const Steps<kSteps>& steps, const Sequences<kSteps>& sequences, int step, index_t begin, index_t end) {
    constexpr int kLanesAStep = kGroup / kSteps;
    const index_t t = steps.first + step;
    for (index_t first = begin + lane_id() % kLanesAStep; first < end; first += kRestAtOnce * kLanesAStep) {
        acc_t values[kRestAtOnce][kWidth];
        Parameters<1> parameters[kRestAtOnce];
        for (int i = 0; i < kRestAtOnce; ++i) {
            const index_t dim = first + i * kLanesAStep < end ? first + i * kLanesAStep : first;
            for (int w = 0; w < kWidth; ++w) values[i][w] = to_float(x_at(p, batch, dim, t - kHalo + w));
            if (kRestAtOnce > 1) parameters[i].load_around(p, dim);
            else parameters[i].load(p, dim);  // 1 % faster in fp32, with the compiler's other choice of registers
        }
        for (int i = 0; i < kRestAtOnce; ++i) {
            const index_t dim = first + i * kLanesAStep;
            acc_t sum = parameters[i].bias(0);
            for (int w = 0; w < kWidth; ++w)
                if (!kSeqIdx || sequences.sees(step, kHalo - w)) sum += parameters[i].weight(0, w) * values[i][w];
            const acc_t result = kSeqIdx && sequences.is_padding(step) ? acc_t(0) : activate(sum);
            if (dim < end) static_cast<elem_t*>(p.out)[batch * p.out_batch_stride + dim * p.out_dim_stride + t * p.out_seq_stride] = from_float<elem_t>(result);
        }
    }
}

__device__ inline uint32_t low_bits(const elem_t* p) { return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p)); }

// A group's tile. kInside: with all its steps and those around them, so that rows go on in memory beyond both ends. `from`: channel 0, kHalo
// steps before the tile's first.
template <int kTurn, bool kInside, int kSteps>
__device__ inline void convolve_turned(const Params& p, const Turned& turned, uint32_t batch, uint32_t first, const Group& group, const elem_t* from) {
    constexpr int kRows = kHalo + kSteps;
    const Steps<kSteps> steps(turned, first);
    const bool is_plain = kInside && group.is_plain;
    using Rows = TurnedRows<kTurn>;
    const int lane = lane_id() % kGroup, lane0 = lane_id() - lane, dim = group.dim0 + lane * kNarrow;
    from += dim;
    const int64_t x_step = opaque(static_cast<int64_t>(turned.x_step_bytes));
    narrow_t vectors[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r, from = bytes_on(from, x_step)) vectors[r] = kInside || steps.has(r) ? narrow_t::load<kFetchRows>(from - behind(kTurn, r)) : narrow_t::zero();
    VotedMarks marks;
    if constexpr (kSeqIdx) marks.load(p, batch, steps.first);
    Parameters<kNarrow> parameters;
    if (is_plain) parameters.load_pairs(turned, dim);
    else parameters.load_around(turned, dim);
    Sequences<kSteps> sequences;
    if constexpr (kSeqIdx) sequences.find(marks);

    elem_t* out = bytes_on(bytes_on(turned.out, batch * turned.out_batch_bytes), first, turned.out_step_bytes) + group.dim0;
    const auto stored_of = [&](int step) {
        const int by = behind(kTurn, step + kHalo), known = known_vectors(kTurn, step + kHalo), channel = group.dim0 - by;
        const elem_t *row = bytes_on(out, step, turned.out_step_bytes) - by, *row0 = row - channel;
        Stored stored(static_cast<int>(reinterpret_cast<uintptr_t>(row) / sizeof(narrow_t) % kSectorVectors), by, known);
        if (group.is_first) {
            const uint32_t t = first + step;  // the row before may have stored its own end and this one's beginning
            const bool is_begun = turned.joined && t > kGroupsSteps && (kInside || t % kGroupsSteps == 0);
            stored.start(turned.joined && (kInside || is_begun) ? to_sector(row0) : 0, channel, by > 0);
            if (!is_begun) stored.rest_begin = 0;
        }
        if (!kInside && group.is_last) stored.end = known;
        stored.stop(turned.dim, channel, group.is_last);
        return stored;
    };
    elem_t* to = out + lane * kNarrow;
    uint32_t mine = 0;  // a bit a step
    if (kInside) {
        const uint32_t bits = turned.stores >> (lane % kSectorVectors * InSectors::kBits);
        mine = lane < kSectorVectors && !group.is_first ? bits : lane < kGroup - kSectorVectors ? ~uint32_t{0} : ~bits;
        if (!is_plain)
            for (int step = 0; step < kSteps; ++step) {
                const uint32_t by = behind(kTurn, step + kHalo), within = (low_bits(to) + step * turned.out_step_bytes - by * kBytes) & turned.within;
                if (dim - by - within / kBytes >= turned.end) mine &= ~(uint32_t{1} << step);
            }
    } else {
        const uint32_t of_step = lane < steps.count ? stored_of(lane).mask() : 0;  // of step `lane`, a bit a lane
        for (int step = 0; step < kSteps; ++step) mine |= (shuffle(of_step, lane0 + step) >> lane & 1) << step;
    }

    const auto enter = [&](int row) {
        vectors[row] = Rows::channels(row, vectors[row]);
        if (kStates && !kInside && row < steps.missing)
            for (int i = 0; i < kNarrow; ++i) vectors[row].replace(i, x_at(p, batch, dim + i, steps.first + row - kHalo));
    };
    const auto store = [&](int step, const Results& results) {
        const narrow_t v = Rows::in_memory(step + kHalo, results.template part<kNarrow>(0));
        // Each address by itself: from one to the next they wait for one another.
        if (mine >> step & 1) v.store(bytes_on(to, opaque(step), turned.out_step_bytes) - behind(kTurn, step + kHalo));
    };
    convolve(parameters, sequences, enter, [&](int row, int i) { return vectors[row].at(i); }, store);
    if (is_plain || (kInside && turned.joined && (group.is_last || first > kGroupsSteps))) return;  // nothing is left
    const int own_step = lane / (kGroup / kSteps);
    if ((group.is_first || group.is_last) && (kInside || own_step < steps.count)) {
        const Stored stored = stored_of(own_step);
        convolve_rest(p, batch, steps, sequences, own_step, stored.rest_begin, stored.rest_end);
    }
    if (kStates && !kTailBlocks && (kWarp == kGroup || steps.count > 0) && steps.first + kSteps >= turned.seqlen) {
        write_final_states(p, batch, dim, kNarrow);
        if (group.is_first && lane < group.dim0) write_final_states(p, batch, lane);
        if (group.is_last && group.dim0 + kSpan + lane < turned.dim) write_final_states(p, batch, group.dim0 + kSpan + lane);
    }
}

template <int kTurn>
__device__ inline void convolve_turned(const Params& p, const Turned& turned) {
    if constexpr (kTurns && kTurn <= kNarrow) {
        const auto ahead = static_cast<uint32_t>(tail_blocks<kTurnedBlock>(p));
        if (kTailBlocks && blockIdx.x < ahead) return write_tail_block<kTurnedBlock>(p);
        const Place<kLongSteps / kShortTurned> place(blockIdx.x - ahead, turned.lines);
        const int tile = place.is_short ? kShortTurned : kLongSteps;
        const uint32_t first = place.down * (kGroups * tile) + threadIdx.x / kGroup * tile;
        const elem_t* from = bytes_on(bytes_on(turned.x, place.batch * turned.x_batch_bytes), first, turned.x_step_bytes);
        const uint32_t row0 = low_bits(turned.out) + place.batch * static_cast<uint32_t>(turned.out_batch_bytes) + (first - kHalo) * turned.out_step_bytes;
        const int to_sector = -(row0 / kBytes) % kSector;  // to_sector() asks for all bits of an address
        const int dim0 = place.across * kAdvance;
        Group group{dim0, place.across == 0, place.across == turned.lines.across.d - 1, false};
        group.is_plain = !group.is_first && dim0 + kSpan <= turned.dim;
        // Asked of the block: a compiler that cannot see that all lanes of a wave go one way makes each shuffle fit for two.
        if (place.is_short || place.down - 1 < turned.inside) {
            // Begins `begin` elements into a sector, 3 to 18 (of 16 bits) before the row: then it knows the row's first vector, wherever that begins.
            group.dim0 -= kNarrow - 1 + static_cast<uint32_t>(2 * kSector - to_sector - turned.begin - (kNarrow - 1)) % kSector;
            if (place.is_short) convolve_turned<kTurn, true, kShortTurned>(p, turned, place.batch, first, group, from);
            else convolve_turned<kTurn, true, kLongSteps>(p, turned, place.batch, first, group, from);
        } else if (first - lane_id() / kGroup * tile < static_cast<uint32_t>(turned.seqlen)) {  // of a wave's first group: the others wait with it
            // Begins on the row's first boundary; the last group reaches back to be whole.
            const int aligned = to_sector % kNarrow, last = turned.dim - kSpan - (turned.dim - kSpan - aligned) % kNarrow;
            group.dim0 = dim0 + aligned < last ? dim0 + aligned : last;
            convolve_turned<kTurn, false, kLongSteps>(p, turned, place.batch, first, group, from);
        }
    }
}

// A kernel each: one that asks for the turn is 1 % slower.
extern "C" __global__ CC1D_BOUNDS(kTurnedBlock, kTurnedResident) void turned1(const Turned turned, const Params p) { convolve_turned<1>(p, turned); }
extern "C" __global__ CC1D_BOUNDS(kTurnedBlock, kTurnedResident) void turned2(const Turned turned, const Params p) { convolve_turned<2>(p, turned); }
extern "C" __global__ CC1D_BOUNDS(kTurnedBlock, kTurnedResident) void turned3(const Turned turned, const Params p) { convolve_turned<3>(p, turned); }
extern "C" __global__ CC1D_BOUNDS(kTurnedBlock, kTurnedResident) void turned4(const Turned turned, const Params p) { convolve_turned<4>(p, turned); }

// Whether one row of channels begins where the other ends: then the last group goes on into the next row, up to a whole sector. Packed
// sequences have other marks there.
static bool are_joined(const Params& p) { return !kSeqIdx && p.x_seq_stride == p.dim && p.out_seq_stride == p.dim; }

// Groups of a row: so many that the last one reaches the next row's first whole sector.
static index_t groups_of(const Params& p) {
    const index_t inside = ceil_div((p.dim + 2 * kSector + kNarrow - 1) / kSector * kSector, kAdvance), outside = 1 + ceil_div(p.dim - kSpan, kAdvance);
    return inside > outside ? inside : outside;
}

// By how much the rows of both tensors turn, where they lie alike; else 0.
static uint32_t turn_of(const Params& p) {
    const index_t strides = p.x_seq_stride - p.out_seq_stride, batches = p.x_batch_stride - p.out_batch_stride;
    const auto apart = (reinterpret_cast<uintptr_t>(p.x) - reinterpret_cast<uintptr_t>(p.out)) / sizeof(elem_t);
    constexpr index_t kMost = 1 << 30;  // of what is counted in 32 bits, and bytes from a step to the next
    if (!kTurns || p.dim < 2 * kSpan || p.x_seq_stride < p.dim || p.out_seq_stride < p.dim || strides % kNarrow || batches % kNarrow || apart % kNarrow || !Parameters<kLanes>::are_together(p)) return 0;
    if (p.seqlen >= kMost || p.x_seq_stride >= kMost || p.out_seq_stride >= kMost) return 0;
    return kNarrow - static_cast<uint32_t>(-static_cast<uint64_t>(p.x_seq_stride)) % kNarrow;
}

// Whether sectors that two waves write cost more than what the ends of rows take by turned1 to turned4: of 16 bits only where there is much to do.
static bool are_cut(const Params& p) {
    const bool on_sectors = p.out_seq_stride % kSector == 0 && p.out_batch_stride % kSector == 0 && to_sector(static_cast<const elem_t*>(p.out)) == 0;
    return !on_sectors && (sizeof(elem_t) > 2 || p.batch * p.dim * p.seqlen >= (1 << 23));
}

static Channels how(const Params& p) {
    const Channels channels = channels_of<kLanes, kAcross>(p, {{p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride},
                                                               {p.out, p.out_batch_stride, p.out_dim_stride, p.out_seq_stride}});
    if (channels == Channels::vectors && are_cut(p) && turn_of(p)) return Channels::apart;
    if (channels != Channels::vectors || !kTogether || Parameters<kLanes>::are_together(p)) return channels;
    return p.dim >= kAcross * kLanes ? Channels::apart : Channels::scattered;
}

static int64_t workspace_bytes(const Params&) { return 0; }

// `down` lines of blocks a batch; `resident` threads fit on a multiprocessor, and `shorter` short tiles are as long as a whole one. Neither the
// first line of a batch nor the last one comes in short tiles, nor do tiles that the device runs all at once.
struct Tiling {
    Lines lines;
    index_t blocks;

    Tiling(const Params& p, index_t across, index_t down, int resident, int block, int shorter) : lines{Divisor(across), Divisor(down), 0} {
        const index_t at_once = multiprocessors() * (resident / block);
        index_t left_out = shorter > 1 && p.batch * down * across > at_once ? ceil_div(kSharePct * at_once, 100 * across) : 0;
        if (left_out > down - 2) left_out = down > 2 ? down - 2 : 0;
        const index_t whole = p.batch * down - left_out;
        lines.whole = static_cast<uint32_t>(whole);
        blocks = (whole + left_out * shorter) * across;
    }
};

template <auto Kernel, int Block, typename... More>
static void launch_tiles(const Params& p, const Tiling& tiles, stream_t stream, More... more) {
    const index_t ahead = tail_blocks<Block>(p);
    launch<Kernel>(grid_of(ahead + tiles.blocks, 1, 1, ahead + Divisor::kLimit), dim3(Block), stream, more...);
}

static void launch_turned(const Params& p, int turn, stream_t stream) {
    const Tiling tiles(p, groups_of(p), ceil_div(p.seqlen, kGroupsSteps), kTurnedResident, kTurnedBlock, kLongSteps / kShortTurned);
    const InSectors in_sectors(p.out_seq_stride, turn, kHalo, kLongSteps);
    const auto bytes = [](index_t elements) { return elements * static_cast<int64_t>(kBytes); };
    const index_t inside = ceil_div(p.seqlen, kGroupsSteps) - 2;
    const bool joined = are_joined(p);
    const Turned turned{bytes_on(static_cast<const elem_t*>(p.x), -kHalo * bytes(p.x_seq_stride)),
                        bytes(p.x_batch_stride),
                        tiles.lines,
                        static_cast<uint32_t>(bytes(p.x_seq_stride)),
                        static_cast<elem_t*>(p.out),
                        bytes(p.out_batch_stride),
                        static_cast<uint32_t>(bytes(p.out_seq_stride)),
                        in_sectors.first,
                        static_cast<uint32_t>(inside > 0 ? inside : 0),
                        static_cast<int>(p.dim),
                        p.weight,
                        p.bias,
                        in_sectors.stores,
                        joined ? (kSector - kNarrow) * kBytes : 0,
                        static_cast<uint32_t>(joined ? p.dim : p.dim - kNarrow + 1),
                        joined,
                        static_cast<int>(p.seqlen)};
    if (turn == 1) launch_tiles<turned1, kTurnedBlock>(p, tiles, stream, turned, p);
    if (turn == 2) launch_tiles<turned2, kTurnedBlock>(p, tiles, stream, turned, p);
    if (turn == 3) launch_tiles<turned3, kTurnedBlock>(p, tiles, stream, turned, p);
    if (turn == 4) launch_tiles<turned4, kTurnedBlock>(p, tiles, stream, turned, p);
}

static void launch_stage(int, const Params& p, stream_t stream) {
    const index_t across = ceil_div(p.dim, kAcross * kLanes);
    const Channels channels = how(p);
    const int turn = channels == Channels::apart ? static_cast<int>(turn_of(p)) : 0;
    if (turn > 0) return launch_turned(p, turn, stream);
    if (channels == Channels::vectors) {
        const Tiling tiles(p, across, ceil_div(p.seqlen, kDown * kSteps), kResident, kBlock, kSteps / kShortSteps);
        launch_tiles<fwd_raster, kBlock>(p, tiles, stream, p, tiles.lines);
    }
    if (channels == Channels::apart) {
        const int advance = staged_advance(p);
        const Tiling tiles(p, staged_across(p, advance), ceil_div(p.seqlen, kLongSteps), 0, kStagedBlock, 1);
        launch_tiles<staged, kStagedBlock>(p, tiles, stream, p, tiles.lines, advance);
    }
    if (channels == Channels::scattered) {
        const Tiling tiles(p, across, ceil_div(p.seqlen, kDown * kLongSteps), 0, kBlock, 1);
        launch_tiles<scattered, kBlock>(p, tiles, stream, p, tiles.lines);
    }
}

CC1D_EXPORT("conv")
