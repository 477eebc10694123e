// A warp walks stretches of a channel from the end; both halos pass from lane to lane. No barrier in the walk.
//
// The runs (16 bytes) of a channel, all its rows one after the other, are numbered, and dealt to the warps of a block a stretch at a
// time: what a block reads at once lies together. No atomics and no second pass, unless a channel is so long that several blocks
// share it. A turn is `steps` steps of each lane, all loads first. dx needs the gradient g = dout * act'(pre-activation) of
// the width - 1 steps after, so the walk goes down: what lane 0 of the unit above had is what the last lane now needs; the end of a
// stretch computes it. x of the steps before comes from the lane below; the first lane of a turn loads it. Rows at odd
// addresses keep the aligned frame of memory (frame.h); 16-bit ones that fill their units, but for an end, go one after the other.
//
//   runs of a channel   [ batch 0 ........ | batch 1 ........ | ... ]
//   stretches           [ warp 0 <- ][ warp 1 <- ][ warp 0 <- ][ ...  each from its end
//   unit                [ lane 0 | lane 1 | ... | lane 31 ] <- g of lane 0 of the unit above
//     x halo                3>>     3>>             3>>
//     g halo                <<3     <<3             <<3
//   dweight, dbias      registers over the whole walk -> shuffles -> shared, warp after warp -> result
#include "cc1d/config.h"
#include "cc1d/frame.h"
#include "cc1d/sums.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kResident = sizeof(elem_t) == 2 ? 768 : 512;  // threads that are to fit on a multiprocessor: bounds the registers
constexpr int kHalo = kWidth - 1;
constexpr int kShort = kHalo > kVec ? 2 * kVec : kVec;          // elements of a run
constexpr int kLong = sizeof(elem_t) == 2 ? 2 * kVec : kShort;  // where rows are framed
constexpr int kUnits = CC1D_STEPS / kShort;                     // runs of a lane in flight, of x and dout each
constexpr int kLongUnits = sizeof(elem_t) == 2 ? 2 : 4;         // of those
constexpr int kLongResident = sizeof(elem_t) == 2 ? 640 : 768;
template <Rows kRows>  // where registers are few
constexpr bool kFindsAnew = kRows == Rows::scattered || (kRows == Rows::framed && sizeof(elem_t) == 2);
constexpr int kSmallBlock = kBlock < 128 ? kBlock : 128;  // of framed and scattered rows, and where there are few turns
constexpr bool kByRows = sizeof(elem_t) == 2;  // where framed rows fill their units
constexpr index_t kMostUnits = 8;              // of such a row
constexpr index_t kShare = 4096;               // runs of a block, at most
constexpr index_t kEnough = 256;               // blocks that keep a GPU busy
constexpr index_t kMany = 1024;                // blocks that do so with a warp each
constexpr index_t kTurns = 16;                 // of a block, from which on eight warps have two each
static_assert(kHalo <= kShort, "the halo lies in one run");
static_assert(!kChannelLast, "rows run along the sequence");
constexpr int kPerWord = 4 / sizeof(elem_t);
constexpr int kHaloPad = kHalo > 0 ? static_cast<int>(ceil_div(kHalo, kPerWord)) * kPerWord : kPerWord;  // whole words
using tail_t = Packed<elem_t, kHaloPad>;

struct Gradients {  // of one channel
    Channel x, dout, dx;
    int seqlen;

    __device__ Gradients(const Params& p, index_t dim)
        : x(p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride, dim),
          dout(p.dout, p.dout_batch_stride, p.dout_dim_stride, p.dout_seq_stride, dim),
          dx(p.dx, p.dx_batch_stride, p.dx_dim_stride, p.dx_seq_stride, dim),
          seqlen(static_cast<int>(p.seqlen)) {}
};

// Its runs, all rows one after the other.
template <int kRun, Rows kRows>
struct Numbered : Gradients {
    const Divisor& runs;  // of a row

    __device__ Numbered(const Params& p, const Divisor& runs, index_t dim) : Gradients(p, dim), runs(runs) {}

    __device__ Run<kRun, kRows> run(uint32_t number) const {
        const uint32_t batch = runs(number);
        return {x, batch, number - batch * runs.d, seqlen};
    }
};

template <int N>
__device__ inline tail_t tail_of(const Packed<elem_t, N>& run) {
    return run.template part<kHaloPad>(N - kHaloPad);
}

using parameters_t = Parameters<1>;

// The gradient before the activation, where x of the last `width` steps is x[0], x[1] ...
__device__ inline acc_t gradient_of(const parameters_t& parameters, const acc_t* x, acc_t dout) {
    if (!kSilu) return dout;
    acc_t sum = parameters.bias(0);
    for (int w = 0; w < kWidth; ++w) sum += parameters.weight(0, w) * x[w];
    return dout * activate_slope(sum);
}

// What the lanes of a unit have below them: `own` are the ends of its runs, `next` those of the unit below.
__device__ inline tail_t tails_below(const tail_t& own, const tail_t& next) {
    tail_t below;
    for (int w = 0; w < tail_t::kWords; ++w) below.words[w] = shuffle(lane_id() == kWarp - 1 ? next.words[w] : own.words[w], (lane_id() + kWarp - 1) % kWarp);
    return below;
}

// dx of a unit, a run a lane, where `halo` is x of the steps before; adds to `sums`. `above`: the gradients of lane 0 in the unit above,
// and then in this one.
template <int kRun>
__device__ inline Packed<elem_t, kRun> unit_of(const parameters_t& parameters, const tail_t& halo, const Packed<elem_t, kRun>& x, const Packed<elem_t, kRun>& dout, bool ends_row,
                                               acc_t (&above)[kHalo + 1], acc_t (&sums)[kSums]) {
    acc_t values[kHalo + kRun], g[kRun + kHalo];
    for (int i = 0; i < kHalo; ++i) values[i] = halo.at(kHaloPad - kHalo + i);
    for (int i = 0; i < kRun; ++i) values[kHalo + i] = x.at(i);
    for (int i = 0; i < kRun; ++i) g[i] = gradient_of(parameters, values + i, dout.at(i));
    for (int i = 0; i < kRun; ++i) {
        for (int w = 0; w < kWidth; ++w) sums[w] += g[i] * values[i + w];
        sums[kWidth] += g[i];
    }

    for (int i = 0; i < kHalo; ++i) {
        const acc_t received = shuffle(lane_id() == 0 ? above[i] : g[i], (lane_id() + 1) % kWarp);
        above[i] = g[i];
        g[kRun + i] = ends_row ? acc_t(0) : received;
    }
    acc_t result[kRun];
    for (int i = 0; i < kRun; ++i) {
        result[i] = 0;
        for (int k = kWidth; k-- > 0;) result[i] += parameters.weight(0, kHalo - k) * g[i + k];
    }
    return Packed<elem_t, kRun>::from(result);
}

// The gradients of the first steps of a run, for the run before it: what a walk that begins there has not seen.
template <int kRun, Rows kRows>
__device__ inline void gradients_above(const Numbered<kRun, kRows>& c, const parameters_t& parameters, uint32_t number, acc_t (&g)[kHalo + 1]) {
    const auto above = c.run(number);
    const auto below = c.run(number - 1);
    auto x = above.load(c.x), dout = above.load(c.dout), before = below.load(c.x);
    x = above.masked(x);
    dout = above.masked(dout);
    const tail_t halo = tail_of(below.masked(before));
    acc_t values[2 * kHalo + 1];
    for (int i = 0; i < kHalo; ++i) values[i] = halo.at(kHaloPad - kHalo + i);
    for (int i = 0; i < kHalo; ++i) values[kHalo + i] = x.at(i);
    for (int i = 0; i < kHalo; ++i) g[i] = gradient_of(parameters, values + i, dout.at(i));
}

// A lane's run, and its place in some tensors. It goes down a wave's runs at a time.
template <int kRun, Rows kRows, int kTensors>
struct Cursor {
    const Numbered<kRun, kRows>& c;
    const Channel* tensors[kTensors];
    int number;
    Run<kRun, kRows> run;
    elem_t* at[kTensors];

    __device__ void find() {
        run = c.run(number > 0 ? number : 0);
        for (int i = 0; i < kTensors; ++i) at[i] = run.place_in(*tensors[i]);
    }
    // Looks for its row where it leaves one, or always.
    __device__ void go_down() {
        number -= kWarp;
        run.t -= kWarp * kRun;
        for (int i = 0; i < kTensors; ++i) at[i] -= kWarp * kRun * run.step(*tensors[i]);
        if (kFindsAnew<kRows> || run.t <= -kVec) find();  // a frame begins less than a vector before its row
    }
};

// Runs begin to end - 1 of a channel, from the end. Adds to `sums`.
template <int kUnits, int kRun, Rows kRows>
__device__ inline void walk(const Numbered<kRun, kRows>& c, const parameters_t& parameters, int begin, int end, int count, acc_t (&sums)[kSums]) {
    using run_t = Packed<elem_t, kRun>;
    const int lane = lane_id(), highest = end - kWarp + lane;
    const int needed = begin > 0 ? begin - 1 : 0;  // of x, the run before the stretch, too
    Cursor<kRun, kRows, 2> front{c, {&c.x, &c.dout}, highest, c.run(0), {}};
    Cursor<kRun, kRows, 1> own{c, {&c.dx}, highest, c.run(0), {}};
    constexpr bool kKeeps = kFindsAnew<kRows> && kRows == Rows::framed;  // the places of a turn, found once for loads, masks and stores
    front.find();
    if (!kKeeps) own.find();
    acc_t above[kHalo + 1] = {};  // gradients of lane 0 in the unit before

    // Beside the first loads, so that none waits for the other; before them where that would spill scalar registers.
    constexpr bool kBeside = kRows == Rows::aligned || (kRows == Rows::framed && !kFewScalars);
    const auto asks = [&] { return lane == 0 && end < count && !c.run(end).starts_row(); };
    if (!kBeside && asks()) gradients_above(c, parameters, end, above);
    for (int top = end; top > begin; top -= kUnits * kWarp) {
        run_t x[kUnits], dout[kUnits];
        Run<kRun, kRows> kept[kUnits];
        tail_t lowest = tail_t::zero();
        const bool all = top - kUnits * kWarp >= begin;
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
            x[u] = dout[u] = run_t::zero();
            if (all || front.number >= needed) x[u] = front.run.load(front.at[0], front.run.step(c.x));
            if (all || front.number >= begin) dout[u] = front.run.load(front.at[1], front.run.step(c.dout));
            if (u == kUnits - 1 && lane == 0 && front.number >= begin && front.run.goes_on())  // the first lane has nobody below
                lowest = front.run.template load_before<kHaloPad>(front.at[0], front.run.step(c.x));
            kept[u] = front.run;
            front.go_down();
        }
        if (kBeside && top == end && asks()) gradients_above(c, parameters, end, above);
        if (kRows == Rows::framed) {
#pragma unroll
            for (int u = 0; u < kUnits; ++u) {
                const int number = top - (u + 1) * kWarp + lane;
                const auto run = kKeeps ? kept[u] : c.run(number > needed ? number : needed);
                if (run.whole()) continue;
                const run_t mask = run.mask();
                x[u] &= mask;
                dout[u] &= mask;
            }
        }

#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
            if (top - u * kWarp <= begin) continue;
            const auto& run = kKeeps ? kept[u] : own.run;
            const tail_t own_tail = tail_of(x[u]);
            tail_t halo = tails_below(own_tail, u + 1 < kUnits ? tail_of(x[u + 1 < kUnits ? u + 1 : u]) : own_tail);
            for (int w = 0; w < tail_t::kWords; ++w) {
                const uint32_t known = u + 1 == kUnits && lane == 0 ? lowest.words[w] : halo.words[w];
                halo.words[w] = run.starts_row() ? 0 : known;
            }
            if (kRows == Rows::framed && kRun < kVec - 1 + kHalo) halo = run.template before<kHaloPad>().masked(halo);  // may begin before its row
            const run_t dx = unit_of(parameters, halo, x[u], dout[u], run.ends_row(), above, sums);
            if constexpr (kKeeps) {
                run.store_together(c.dx, run.place_in(c.dx), dx, top - (u + 1) * kWarp + lane >= begin);
            } else {
                run.store_together(c.dx, own.at[0], dx, own.number >= begin);
                own.go_down();
            }
        }
    }
}

// What a framed row has beyond its units, an element a lane; the last lanes have the steps before it.
struct Beyond {
    const Gradients& c;
    Run<kLong, Rows::framed> run;
    int i;  // the lane's element of the run
    bool exists;
    elem_t x, dout;

    __device__ Beyond(const Gradients& c, uint32_t row, int units)
        : c(c), run(c.x, row, units * kWarp, c.seqlen), i(lane_id() < kWarp - kHalo ? lane_id() : lane_id() - kWarp), x(from_float<elem_t>(0)), dout(x) {
        exists = i >= 0 && run.t + i < c.seqlen;
        if (run.t + i < c.seqlen) x = run.place_in(c.x)[i];
        if (exists) dout = run.place_in(c.dout)[i];
    }

    // Stores its dx and adds to `sums`. `above`: becomes the gradients of its first steps.
    __device__ void add(const parameters_t& parameters, acc_t (&above)[kHalo + 1], acc_t (&sums)[kSums]) const {
        acc_t values[kWidth];
        for (int w = 0; w < kWidth; ++w) values[w] = shuffle(to_float(x), (lane_id() + w + kWarp - kHalo) % kWarp);
        const acc_t g = gradient_of(parameters, values, to_float(dout));
        for (int w = 0; w < kWidth; ++w) sums[w] += g * values[w];
        sums[kWidth] += g;
        acc_t result = 0;
        for (int k = kWidth; k-- > 0;) result += parameters.weight(0, kHalo - k) * shuffle(g, (lane_id() + k) % kWarp);
        if (exists) run.place_in(c.dx)[i] = from_float<elem_t>(result);
        for (int k = 0; k < kHalo; ++k) above[k] = shuffle(g, k);
    }
};

// A framed row of `units` units and what lies beyond: its lanes' places follow from one another, and no lane is in another row.
__device__ inline void walk_row(const Gradients& c, const parameters_t& parameters, uint32_t row, int units, acc_t (&sums)[kSums]) {
    using run_t = Packed<elem_t, kLong>;
    constexpr int kUnit = kWarp * kLong;
    const Beyond beyond(c, row, units);
    Run<kLong, Rows::framed> highest(c.x, row, (units - 1) * kWarp + lane_id(), c.seqlen);
    const elem_t *x_at = highest.place_in(c.x), *dout_at = highest.place_in(c.dout);
    elem_t* dx_at = highest.place_in(c.dx);
    acc_t above[kHalo + 1];
    for (int left = units; left > 0; left -= kLongUnits) {
        run_t x[kLongUnits], dout[kLongUnits];
        tail_t lowest = tail_t::zero();
#pragma unroll
        for (int u = 0; u < kLongUnits; ++u) {
            const auto run = highest.after(-u * kUnit);
            x[u] = dout[u] = run_t::zero();
            if (u >= left) continue;
            x[u] = run.load(x_at - u * kUnit, 1);
            dout[u] = run.load(dout_at - u * kUnit, 1);
            if (u == kLongUnits - 1 && lane_id() == 0 && run.goes_on()) lowest = run.template load_before<kHaloPad>(x_at - u * kUnit, 1);
        }
        if (left == units) beyond.add(parameters, above, sums);
#pragma unroll
        for (int u = 0; u < kLongUnits; ++u) {
            const auto run = highest.after(-u * kUnit);
            if (run.whole()) continue;
            const run_t mask = run.mask();
            x[u] &= mask;
            dout[u] &= mask;
        }
#pragma unroll
        for (int u = 0; u < kLongUnits; ++u) {
            if (u >= left) continue;
            tail_t halo = tails_below(tail_of(x[u]), u + 1 < kLongUnits ? tail_of(x[u + 1 < kLongUnits ? u + 1 : u]) : tail_t::zero());
            if (u == kLongUnits - 1 && lane_id() == 0) halo = lowest;
            const run_t dx = unit_of(parameters, halo, x[u], dout[u], false, above, sums);  // its end is beyond
            highest.after(-u * kUnit).store_together(c.dx, dx_at - u * kUnit, dx, true);
        }
        highest = highest.after(-kLongUnits * kUnit);
        x_at -= kLongUnits * kUnit, dout_at -= kLongUnits * kUnit, dx_at -= kLongUnits * kUnit;
    }
}

// dweight and dbias of a block, which has `kWarps`, from those of its lanes: to their place, or as part `split` of `splits`.
template <int kWarps>
__device__ inline void add_warps(const Params& p, uint32_t warp, index_t dim, index_t split, index_t splits, acc_t (&mine)[kSums]) {
    __shared__ acc_t sums[kWarps][kSums];
    for (int s = 0; s < kSums; ++s) {
        for (int half = kWarp / 2; half > 0; half /= 2) mine[s] += shuffle_down(mine[s], half);
        if (lane_id() == 0) sums[warp][s] = mine[s];
    }
    __syncthreads();
    const int s = threadIdx.x;
    if (s >= kSums) return;
    acc_t sum = sums[0][s];
    for (int w = 1; w < kWarps; ++w) sum += sums[w][s];
    if (splits == 1) write_sum(p, s, dim, sum);
    else *partial_sum(p, split, s, dim) = sum;
}

// `share`: runs of a block, which has `kWarps`; `stretch`: those that a warp walks at once.
template <int kUnits, int kRun, Rows kRows, int kWarps>
__device__ inline void backward(const Params& p, const Divisor& runs, const Divisor& splits, uint32_t share, uint32_t stretch) {
    const uint32_t dim = splits(blockIdx.x), split = blockIdx.x - dim * splits.d;
    const uint32_t warp = shuffle(static_cast<int>(threadIdx.x / kWarp), 0);  // so that the compiler knows it to be one for all lanes
    start_next();
    const uint32_t count = static_cast<uint32_t>(p.batch) * runs.d, from = split * share, first = from < count ? from : count;
    const uint32_t last = share < count - first ? first + share : count;

    acc_t mine[kSums] = {};
    parameters_t parameters;
    parameters.load(p, dim);
    for (uint32_t begin = first + warp * stretch; begin < last; begin += kWarps * stretch)
        walk<kUnits>(Numbered<kRun, kRows>(p, runs, dim), parameters, begin, stretch < last - begin ? begin + stretch : last, count, mine);

    add_warps<kWarps>(p, warp, dim, split, splits.d, mine);
}

// A channel a block, and its framed rows dealt to the warps.
template <int kWarps>
__device__ inline void backward_by_rows(const Params& p, int units) {
    if constexpr (kByRows) {
        const uint32_t dim = blockIdx.x, warp = shuffle(static_cast<int>(threadIdx.x / kWarp), 0);
        start_next();
        acc_t mine[kSums] = {};
        parameters_t parameters;
        parameters.load(p, dim);
        for (uint32_t row = warp; row < p.batch; row += kWarps) walk_row(Gradients(p, dim), parameters, row, units, mine);
        add_warps<kWarps>(p, warp, dim, 0, 1, mine);
    }
}

extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void bwd_warp_walk(const Params p, const Divisor runs, const Divisor splits, uint32_t share, uint32_t stretch) {
    backward<kUnits, kShort, Rows::aligned, kBlock / kWarp>(p, runs, splits, share, stretch);
}
extern "C" __global__ CC1D_BOUNDS(kSmallBlock, kResident) void few_turns(const Params p, const Divisor runs, const Divisor splits, uint32_t share, uint32_t stretch) {
    backward<kUnits, kShort, Rows::aligned, kSmallBlock / kWarp>(p, runs, splits, share, stretch);
}

// Masks and places cost instructions: long runs have fewer of them.
extern "C" __global__ CC1D_BOUNDS(kSmallBlock, kLongResident) void framed(const Params p, const Divisor runs, const Divisor splits, uint32_t share, uint32_t stretch) {
    backward<kLongUnits, kLong, Rows::framed, kSmallBlock / kWarp>(p, runs, splits, share, stretch);
}
extern "C" __global__ CC1D_BOUNDS(kWarp, kLongResident) void framed_alone(const Params p, const Divisor runs, const Divisor splits, uint32_t share, uint32_t stretch) {
    backward<kLongUnits, kLong, Rows::framed, 1>(p, runs, splits, share, stretch);
}
extern "C" __global__ CC1D_BOUNDS(kSmallBlock, kLongResident) void by_rows(const Params p, int units) { backward_by_rows<kSmallBlock / kWarp>(p, units); }
extern "C" __global__ CC1D_BOUNDS(kWarp, kLongResident) void by_rows_alone(const Params p, int units) { backward_by_rows<1>(p, units); }
extern "C" __global__ __launch_bounds__(kSmallBlock) void scattered(const Params p, const Divisor runs, const Divisor splits, uint32_t share, uint32_t stretch) {
    backward<1, kShort, Rows::scattered, kSmallBlock / kWarp>(p, runs, splits, share, stretch);
}

constexpr int kReduceAcross = 32;

extern "C" __global__ __launch_bounds__(kBlock) void reduce(const Params p, index_t splits) {
    wait_for_previous();
    add_partial_sums<kReduceAcross, kBlock / kReduceAcross>(p, splits);
}

struct Plan : RowPlan {
    index_t splits, share, stretch;  // blocks that share a channel; runs of a block; those that a warp walks at once
    int warps;                       // of a block

    explicit Plan(const Params& p) {
        const Strided tensors[] = {{p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride},
                                   {p.dout, p.dout_batch_stride, p.dout_dim_stride, p.dout_seq_stride},
                                   {p.dx, p.dx_batch_stride, p.dx_dim_stride, p.dx_seq_stride}};
        static_cast<RowPlan&>(*this) = rows_of<kShort, kLong>(p, tensors);
        const index_t count = p.batch * runs, needed = ceil_div(kEnough, p.dim), possible = ceil_div(count, kSmallBlock * kUnits);
        splits = ceil_div(count, kShare);
        if (splits < needed) splits = needed < possible ? needed : possible;
        share = ceil_div(count, splits);

        const bool framed = rows == Rows::framed, aligned = rows == Rows::aligned;
        const index_t turn = kWarp * (framed ? kLongUnits : kUnits), turns = ceil_div(share, turn);
        warps = (aligned && turns >= kTurns ? kBlock : kSmallBlock) / kWarp;
        // Where framed rows are many and short, one for all: the last turn of each costs as much as a whole one.
        if (framed && turns <= kTurns && p.dim * splits >= kMany) warps = 1;
        // A turn at a time. Of framed rows two, and of scattered ones all: an end costs more there.
        const index_t even = ceil_div(ceil_div(share, warps), kWarp) * kWarp, most = aligned ? turn : framed ? 2 * turn : even;
        stretch = warps > 1 && even > most ? most : even;
    }
};

// Units of a framed row that fills them but for a sixteenth and has no more than a run beyond them; else 0.
static int units_of(const Params& p, const Plan& plan) {
    constexpr index_t kUnit = kWarp * kLong;
    const index_t units = ceil_div(p.seqlen + kVec - 1 - kLong, kUnit);
    const bool by_rows = kByRows && plan.rows == Rows::framed && plan.splits == 1 && units >= kLongUnits && units <= kMostUnits;
    return by_rows && 16 * (units * kUnit - p.seqlen) <= units * kUnit ? static_cast<int>(units) : 0;
}

// Whether a warp walks all rows of a channel, and not a block's: where these are fewer than its warps, or where such warps, which take
// long, fill three quarters of the device in the last round, too.
static bool is_alone(const Params& p) {
    const index_t at_once = multiprocessors() * (kLongResident / kWarp);
    return p.batch < kSmallBlock / kWarp || (at_once > 0 && 4 * ((p.dim - 1) % at_once + 1) >= 3 * at_once);
}

static int64_t workspace_bytes(const Params& p) {
    const Plan plan(p);
    return plan.splits > 1 ? plan.splits * kSums * p.dim * sizeof(acc_t) : 0;
}

template <auto Kernel>
static void launch_walk(const Params& p, const Plan& plan, stream_t stream) {
    launch<Kernel>(grid_of(p.dim * plan.splits), dim3(plan.warps * kWarp), stream, p, Divisor(plan.runs), Divisor(plan.splits), static_cast<uint32_t>(plan.share),
                   static_cast<uint32_t>(plan.stretch));
}

static void launch_stage(int stage, const Params& p, stream_t stream) {
    const Plan plan(p);
    const auto has = [&](Rows rows, int block) { return stage == 0 && plan.rows == rows && plan.warps == block / kWarp; };
    const int units = units_of(p, plan);
    if (stage == 0 && units > 0) {
        if (is_alone(p)) launch<by_rows_alone>(grid_of(p.dim), dim3(kWarp), stream, p, units);
        else launch<by_rows>(grid_of(p.dim), dim3(kSmallBlock), stream, p, units);
    } else if (has(Rows::aligned, kBlock)) launch_walk<bwd_warp_walk>(p, plan, stream);
    else if (has(Rows::aligned, kSmallBlock)) launch_walk<few_turns>(p, plan, stream);
    else if (has(Rows::framed, kSmallBlock)) launch_walk<framed>(p, plan, stream);
    else if (has(Rows::framed, kWarp)) launch_walk<framed_alone>(p, plan, stream);
    else if (has(Rows::scattered, kSmallBlock)) launch_walk<scattered>(p, plan, stream);
    if (stage == 1 && plan.splits > 1) launch_behind<reduce>(grid_of_sums<kReduceAcross>(p), dim3(kBlock), stream, p, plan.splits);
}

CC1D_EXPORT("walk", "reduce")
