// A banded 16 x 16 matrix of a channel's taps, times its sequence cut into segments of 16: two matrix products for 256 outputs.
//
// A convolution along the sequence is a product with a Toeplitz matrix. Row j of S holds segment j, the 16 steps from 16 j on,
// so S is the sequence as it lies in memory, with rows of 16, and 256 neighbouring outputs are
//
//     out = S(one segment earlier) x Before + S x Within       16 x 16 each, sums in fp32
//
// where Within[k][i] = tap (width - 1) + k - i, and Before[k][i] the same with k - 16 for k; 0 outside the band. Together they do 32
// multiplications an output, of which `width` are useful: 64 FLOPs issued an output (32 for width 1, which needs no
// Before), in whole tiles of 256 outputs. Beside the parameters, device memory sees x read once and out written once.
//
//   x     [ 8 | 8 | 8 | 8 | ...             ]   a 16-byte vector a lane, `vectors` of them at once
//               |  as it is, with the segment before it
//   S     [ 16 steps ] ...                      shared memory of the wave; both products read it, 16 elements apart
//               x  Before, Within               band of the channel, written while x is on its way
//   sums  [ 16 x 16 ] fp32                      shared memory of the wave
//               |  + bias, activation, rounding
//   out   [ 8 | 8 | 8 | 8 | ...             ]   a 16-byte vector a lane
//
// Waves share nothing, so there is no barrier of a block; a wave keeps to one row. Rows that do not begin on a 16-byte
// boundary keep the aligned frame of memory, as in fwd_register; what is no whole vector at their ends, and up to 24 steps behind the last
// run, takes a lane each, tap by tap: at 1023 steps a second run would bring 6 of them. Few runs are split into those of a vector a lane.
// 0 x Inf is not 0: a product spreads a NaN or Inf over all sums of its segment and of the next one, so a lane that finds a sum that is
// not finite computes its own again, tap by tap.
// channel_first alone: with the channels contiguous, no 16 bytes of memory belong to one product.
#include "cc1d/config.h"
#include "cc1d/frame.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kResident = 1024;  // threads that are to fit on a multiprocessor: bounds the registers
constexpr int kFew = 8;          // waves on a multiprocessor: with so many at most, shorter runs are faster
constexpr int kWaves = kBlock / kWarp;
constexpr int kHalo = kWidth - 1;
constexpr int kSide = 16;                    // of a tile, so also the length of a segment
constexpr int kTile = kSide * kSide;         // outputs
constexpr int kStep = kWarp * kVec;          // outputs of a wave at a vector a lane
constexpr int kPitch = 24;                   // of a row of sums in shared memory: neighbouring rows in other banks
constexpr int kTiles = kStep / kTile;        // tiles in that: 1, or 2 with 64 lanes
constexpr int kLanes = kWarp / kTiles;       // of a tile
constexpr int kTaps = ceil_div(kWidth * kSide, kWarp);  // that a lane writes into the band
constexpr int kHead = kVec, kTail = 32 - kHead;         // lanes for what is no whole vector at the ends of a framed row
static_assert(sizeof(elem_t) == 2 && kTiles * kTile == kStep, "a tile is a vector of each of 32 lanes");
static_assert(kHalo <= kVec, "the halo lies in the vector before the run");
static_assert(!kChannelLast, "segments lie along the sequence");
using vector_t = Packed<elem_t, kVec>;

union Exchange {
    elem_t band[2 * kTile];              // at first: Before, then Within
    float sums[kTiles][kSide * kPitch];  // then: the products
};

__device__ inline void put(elem_t* shared, const vector_t& v) {
    *reinterpret_cast<raw16_t*>(shared) = raw16_t{v.words[0], v.words[1], v.words[2], v.words[3]};
}

template <Rows kRows, int kVectors>
__device__ inline void convolve(const Params& p, const Divisor& runs, const Divisor& dims) {
    constexpr int kRun = kStep * kVectors;  // neighbouring outputs of a wave
    constexpr bool kFramed = kRows == Rows::framed;
    // The segment before the run, the run, and what lies behind the last one, in whole segments.
    alignas(32) __shared__ elem_t segments[kWaves][kSide + kRun + (kFramed ? 2 * kSide : 0)];
    alignas(32) __shared__ Exchange exchanges[kWaves];
    const uint32_t number = blockIdx.x * kWaves + threadIdx.x / kWarp;
    const uint32_t row = runs(number), batch = dims(row), dim = row - batch * dims.d;
    const int lane = lane_id();
    elem_t* segment = segments[threadIdx.x / kWarp];
    Exchange& exchange = exchanges[threadIdx.x / kWarp];
    if (batch >= p.batch) return;  // a whole wave goes

    const Channel x(p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride, dim);
    const Channel out(p.out, p.out_batch_stride, p.out_dim_stride, p.out_seq_stride, dim);
    const uint32_t place = number - row * runs.d;
    const Run<kVec, kRows> run(x, batch, place * (kRun / kVec), static_cast<int>(p.seqlen));  // its first vector
    const auto vector_at = [&](int v) { return run.after(v * kStep + lane * kVec); };

    vector_t own[kVectors];
    for (int v = 0; v < kVectors; ++v) own[v] = vector_at(v).load(x);
    // Of the segment before, the second half is the halo. The first meets zeros of the band, so it must be finite.
    const auto earlier = run.after(-kVec);
    vector_t halo = vector_t::zero(), later = vector_t::zero();
    const bool loads_halo = lane == 1 && !run.starts_row();
    if (loads_halo) halo = earlier.load(x);
    const bool is_last = place == runs.d - 1, loads_later = kFramed && is_last && lane < kTail / kVec;
    if (loads_later) later = run.after(kRun + lane * kVec).load(x);

    // The band: row k of Before and Within, one above the other, has tap kHalo - n in column k - kSide + n.
    const weight_t* taps = static_cast<const weight_t*>(p.weight) + dim * p.weight_dim_stride;
    const weight_t shift = p.bias ? static_cast<const weight_t*>(p.bias)[dim] : from_float<weight_t>(0);
    weight_t tap[kTaps];
    for (int i = 0; i < kTaps; ++i) {
        const int n = lane / kSide + i * (kWarp / kSide);
        if (n < kWidth) tap[i] = taps[(kHalo - n) * p.weight_width_stride];
    }
    for (int i = 0; i < 2 * kTile; i += kStep) put(exchange.band + i + lane * kVec, vector_t::zero());
    sync_wave();
    for (int i = 0; i < kTaps; ++i) {
        const int n = lane / kSide + i * (kWarp / kSide), column = lane % kSide;
        if (n < kWidth) exchange.band[(column + kSide - n) * kSide + column] = tap[i];
    }
    sync_wave();
    FragmentB<elem_t> before, within;
    if constexpr (kHalo > 0) before.load_shared(exchange.band, kSide);
    within.load_shared(exchange.band + kTile, kSide);

    if (lane < 2) put(segment + lane * kVec, loads_halo ? earlier.masked(halo) : halo);
    for (int v = 0; v < kVectors; ++v) put(segment + kSide + v * kStep + lane * kVec, vector_at(v).masked(own[v]));
    if (loads_later) put(segment + kSide + kRun + lane * kVec, later);

    // Half a row of sums a lane. Odd lanes begin with their second four, so that eight lanes read from all banks.
    const int part = lane % kLanes, swap = part % 2 * 4;
    const float* half = exchange.sums[lane / kLanes] + part / 2 * kPitch + part % 2 * kVec;

#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
        if (kRows != Rows::aligned && run.t + v * kStep >= run.seqlen) break;
        sync_wave();
        for (int tile = 0; tile < kTiles; ++tile) {
            const elem_t* from = segment + v * kStep + tile * kTile;
            FragmentA<elem_t> a;
            FragmentC c;
            c.fill(0.0f);
            if constexpr (kHalo > 0) {
                a.load_shared(from, kSide);
                multiply_accumulate(c, a, before);
            }
            a.load_shared(from + kSide, kSide);
            multiply_accumulate(c, a, within);
            c.store(exchange.sums[tile], kPitch);
        }
        sync_wave();

        acc_t sum[kVec];
        for (int i = 0; i < 4; ++i) sum[i] = half[swap + i];
        for (int i = 0; i < 4; ++i) sum[4 + i] = half[4 - swap + i];
        if (sum[0] - sum[0] != 0.0f) {  // not finite; then none of its row is
            const elem_t* steps = segment + kSide + v * kStep + lane * kVec - kHalo;
            for (int i = 0; i < kVec; ++i) sum[i] = 0.0f;
#pragma unroll 1
            for (int w = 0; w < kWidth; ++w)
                for (int i = 0; i < kVec; ++i) sum[i] += to_float(taps[w * p.weight_width_stride]) * to_float(steps[w + (i ^ swap)]);
        }

        for (int i = 0; i < kVec; ++i) sum[i] = activate(sum[i] + to_float(shift));
        const vector_t swapped = vector_t::from(sum);
        vector_t result;
        for (int w = 0; w < vector_t::kWords; ++w) result.words[w] = swap ? swapped.words[w ^ 2] : swapped.words[w];
        const auto own_run = vector_at(v);
        if constexpr (!kFramed) own_run.store(out, result);
        else if (own_run.whole()) result.store(own_run.place_in(out));
    }
    if (!kFramed || (run.t >= 0 && !is_last)) return;

    // What is no whole vector: kHead lanes for the steps before the first one of the row, kTail for those behind the last.
    const int left = (run.seqlen - run.t) & -kVec, end = left < kRun ? left : kRun;  // of whole vectors
    const int i = lane < kHead ? lane : end + lane - kHead, t = run.t + i;
    const bool is_own = lane < kHead ? run.t < 0 && i < end : is_last && lane < kHead + kTail;
    if (!is_own || t < 0 || t >= run.seqlen) return;
    acc_t sum = 0;
    for (int w = 0; w < kWidth; ++w) sum += to_float(taps[w * p.weight_width_stride]) * to_float(segment[kSide + i - kHalo + w]);
    run.place_in(out)[i] = from_float<elem_t>(activate(sum + to_float(shift)));
}

extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void fwd_toeplitz_wmma(const Params p, const Divisor runs, const Divisor dims) { convolve<Rows::aligned, CC1D_VECTORS>(p, runs, dims); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void framed(const Params p, const Divisor runs, const Divisor dims) { convolve<Rows::framed, CC1D_VECTORS>(p, runs, dims); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void scattered(const Params p, const Divisor runs, const Divisor dims) { convolve<Rows::scattered, CC1D_VECTORS>(p, runs, dims); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void aligned_few(const Params p, const Divisor runs, const Divisor dims) { convolve<Rows::aligned, 1>(p, runs, dims); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void framed_few(const Params p, const Divisor runs, const Divisor dims) { convolve<Rows::framed, 1>(p, runs, dims); }

static int64_t workspace_bytes(const Params&) { return 0; }

// In runs of `vectors` a lane.
static RowPlan plan_of(const Params& p, int vectors) {
    const index_t run = kStep * vectors, at_most = p.seqlen + kVec - 1 - kTail;  // steps of a frame, without what lies behind its last run
    RowPlan plan = rows_of<kStep>(p, {{p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride}, {p.out, p.out_batch_stride, p.out_dim_stride, p.out_seq_stride}});
    if (plan.rows == Rows::aligned && p.seqlen % run) plan.rows = Rows::framed;
    plan.runs = plan.rows == Rows::framed ? (at_most > 0 ? ceil_div(at_most, run) : 1) : ceil_div(p.seqlen, run);
    return plan;
}

template <auto Kernel>
static void launch_runs(const Params& p, index_t runs, stream_t stream) {
    launch<Kernel>(grid_of(ceil_div(p.batch * p.dim * runs, kWaves)), dim3(kBlock), stream, p, Divisor(runs), Divisor(p.dim));
}

static void launch_stage(int, const Params& p, stream_t stream) {
    RowPlan plan = plan_of(p, CC1D_VECTORS);
    const bool are_few = plan.rows != Rows::scattered && p.batch * p.dim * plan.runs <= kFew * multiprocessors();
    if (are_few) plan = plan_of(p, 1);
    if (plan.rows == Rows::aligned && are_few) launch_runs<aligned_few>(p, plan.runs, stream);
    if (plan.rows == Rows::framed && are_few) launch_runs<framed_few>(p, plan.runs, stream);
    if (plan.rows == Rows::aligned && !are_few) launch_runs<fwd_toeplitz_wmma>(p, plan.runs, stream);
    if (plan.rows == Rows::framed && !are_few) launch_runs<framed>(p, plan.runs, stream);
    if (plan.rows == Rows::scattered) launch_runs<scattered>(p, plan.runs, stream);
}

CC1D_EXPORT("conv")
