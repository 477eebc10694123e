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
// Any order of the columns of S that the rows of the band share gives the same product, and the columns of the band may have any order. So
// both have the order in which a lane that loads neighbouring steps holds the operand, and receives the sums of the same steps
// (Segments in matrix_core.h): nothing goes by shared memory.
//
//   x     [ 4 | 4 | 4 | 4 | 4 | ...         ]   8 bytes a lane (16 on some archs), all of `tiles` tiles at once
//               |  shuffle: the same steps of the segment before
//               x  Before                       a lane's part of the band, taken from the lanes that have those pairs of taps
//               x  Within                       the lane's own steps
//   out   [ 4 | 4 | 4 | 4 | 4 | ...         ]   the lane's own: + bias, activation, rounding
//
// Waves share nothing; a wave keeps to one row. Rows that do not begin on a 32-byte sector keep the sectors of memory, so that
// each is written by one access; what is no whole piece of a lane at their ends, and up to 24 steps behind the last run, takes a lane each,
// tap by tap: at 1023 steps a second run would bring few of them. Where few waves run, and in short rows, a run is a tile or two.
// 0 x Inf is not 0: a product spreads a NaN or Inf over all sums of its segment and of the next one, so lanes that find a sum that is
// not finite compute theirs again, tap by tap.
// channel_first alone: with the channels contiguous, no 16 bytes of memory belong to one product.
#include "cc1d/config.h"
#include "cc1d/frame.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kResident = 1024, kFramedResident = 768;  // threads that are to fit on a multiprocessor: bounds the registers
constexpr int kFew = 8;          // waves on a multiprocessor: with so many at most, shorter runs are faster
constexpr int kWaves = kBlock / kWarp;
constexpr int kHalo = kWidth - 1;
constexpr int kSide = 16;             // of a tile, so also the length of a segment; as many elements are a sector
constexpr int kTile = kSide * kSide;  // outputs
// Tiles of a run, at most. In a frame longer runs: fewer of them have an end of the row.
constexpr int kTiles = CC1D_TILES, kFramedTiles = 2 * kTiles;
constexpr int kPiece = Segments::kPiece, kPieces = Segments::kPieces;
constexpr int kHead = kPiece, kTail = 32 - 8;  // lanes for what is no whole piece at the ends of a framed row
static_assert(sizeof(elem_t) == 2 && kPieces * kPiece * kWarp == kTile, "a tile is what all lanes hold");
static_assert(kHalo <= kSide, "the halo lies in the segment before");
static_assert(kHead + kTail <= 32, "a lane for each step that is left");
static_assert(!kChannelLast, "segments lie along the sequence");
using piece_t = Packed<elem_t, kPiece>;

// A channel's taps in pairs, with a zero beyond either end: lane n has taps n - 1 and n.
struct TapPairs {
    Packed<weight_t, 2> pair = Packed<weight_t, 2>::zero();

    __device__ TapPairs(const weight_t* taps, index_t stride) {
        const int lane = lane_id();
        if (lane < kWidth) pair.put(1, taps[lane * stride]);
        const uint32_t below = shuffle_up(pair.words[0], 1) >> 16;  // a second load would take more instructions before that of x
        if (lane > 0) pair.words[0] |= below;
    }
    // Taps `tap` and tap + 1. All lanes come here.
    __device__ uint32_t at(int tap) const {
        const auto lane = static_cast<uint32_t>(tap + 1);
        return shuffle(pair.words[0], static_cast<int>(lane <= kWidth ? lane : kWidth + 1));
    }
};

template <Rows kRows, int kTiles>
__device__ inline void convolve(const Params& p, const Divisor& runs, const Divisor& dims) {
    constexpr int kRun = kTile * kTiles;  // neighbouring outputs of a wave
    constexpr bool kFramed = kRows == Rows::framed;
    const uint32_t number = blockIdx.x * kWaves + threadIdx.x / kWarp;
    const uint32_t row = runs(number), batch = dims(row), dim = row - batch * dims.d, place = number - row * runs.d;
    const int lane = lane_id();
    if (batch >= static_cast<uint32_t>(p.batch)) return;  // a whole wave goes

    const Channel x(p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride, dim);
    const Channel out(p.out, p.out_batch_stride, p.out_dim_stride, p.out_seq_stride, dim);
    const int seqlen = static_cast<int>(p.seqlen), lead = kFramed ? lead_of<32>(out.first + batch * out.batch_stride) : 0;  // of the frame
    const Run<kPiece, kRows> run(batch, static_cast<int>(place) * kRun - lead, seqlen);  // its first piece
    const bool is_last = place == runs.d - 1;

    // The lane's pieces lie at constant distances from its first one.
    const int segment = Segments::segment(lane), first = Segments::first(lane);
    const auto own = run.after(segment * kSide + first);
    const elem_t* from = own.place_in(x);
    elem_t* to = own.place_in(out);
    const index_t step = run.step(x), out_step = run.step(out);
    const auto distance = [](int tile, int i) { return tile * kTile + i * Segments::kApart * kSide; };

    piece_t pieces[kTiles][kPieces];
    for (int tile = 0; tile < kTiles; ++tile)
        for (int i = 0; i < kPieces; ++i) pieces[tile][i] = own.after(distance(tile, i)).load(from + distance(tile, i) * step, step);
    // Of the segment before the run, what is seen from it.
    const auto earlier = own.after(-kSide);
    piece_t halo = piece_t::zero();
    if (segment == 0 && first + kPiece > kSide - kHalo && !run.starts_row()) halo = earlier.load(from - kSide * step, step);

    // A step that is in no whole piece, and what it sees.
    const int left = (seqlen - run.t) & -kPiece, whole = -lead & (kPiece - 1);  // of the run, up to the last whole piece; of the row, before the first
    const int rest = lane < kHead ? lane : run.t + (left < kRun ? left : kRun) + lane - kHead;
    const bool has_rest = kFramed && rest < seqlen && (lane < kHead ? run.t < 0 && rest < whole : is_last && rest >= whole && lane < kHead + kTail);
    elem_t seen[kWidth];
    if (kFramed)
        for (int w = 0; w < kWidth; ++w) seen[w] = has_rest && rest - kHalo + w >= 0 ? x.first[batch * x.batch_stride + rest - kHalo + w] : from_float<elem_t>(0);

    const weight_t* weight = static_cast<const weight_t*>(p.weight) + dim * p.weight_dim_stride;
    const TapPairs taps(weight, p.weight_width_stride);
    const acc_t bias = p.bias ? to_float(static_cast<const weight_t*>(p.bias)[dim]) : acc_t(0);
    Segments::Band before, within;
    for (int i = 0; i < Segments::kOutputs; ++i)
        for (int k = 0; k < Segments::kInputs; k += 2) {
            const int tap = kHalo + Segments::input(lane, k) - Segments::output(lane, i);
            within[i][k / 2] = taps.at(tap);
            before[i][k / 2] = kHalo > 0 ? taps.at(tap - kSide) : 0;
        }

    if (kFramed) halo = earlier.masked(halo);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        if (kRows != Rows::aligned && run.t + tile * kTile >= seqlen) break;
        if (kFramed)
            for (int i = 0; i < kPieces; ++i) pieces[tile][i] = own.after(distance(tile, i)).masked(pieces[tile][i]);
        acc_t sums[kPieces][kPiece];
        for (int i = 0; i < kPieces; ++i)
            for (int j = 0; j < kPiece; ++j) sums[i][j] = bias;
        if constexpr (kHalo > 0) {  // first, so that taps are added in their order wherever a step lies
            piece_t previous[kPieces];
            for (int i = 0; i < kPieces; ++i) {  // segments 0, 8, ... follow the last one of the pieces before
                previous[i] = halo;
                for (int w = 0; w < piece_t::kWords; ++w) halo.words[w] = shuffle(pieces[tile][i].words[w], Segments::lane_before(lane));
                if (segment > 0) previous[i] = halo;
            }
            Segments::add_products<elem_t>(sums, previous, before);
        }
        Segments::add_products<elem_t>(sums, pieces[tile], within);

        acc_t spread = 0;  // not 0 where a sum is not finite; then no other one of its segment is
        for (int i = 0; i < kPieces; ++i) spread += sums[i][kPiece - 1] - sums[i][kPiece - 1];
        piece_t results[kPieces];
        const auto finish = [&] {
            for (int i = 0; i < kPieces; ++i) {
                for (int j = 0; j < kPiece; ++j) sums[i][j] = activate(sums[i][j]);
                results[i] = piece_t::from(sums[i]);
            }
        };
        finish();                 // while the vote is on its way
        if (vote(spread != 0)) {  // asked of all: the usual way has no lanes to wait for
            for (int i = 0; i < kPieces; ++i)
                for (int j = 0; j < kPiece; ++j) sums[i][j] = bias;
#pragma unroll 1
            for (int w = 0; w < kWidth; ++w)
                for (int i = 0; i < kPieces; ++i)
                    for (int j = 0; j < kPiece; ++j) {
                        const int on = distance(tile, i) + j - kHalo + w, t = own.t + on;
                        if (t >= 0 && t < seqlen) sums[i][j] += to_float(weight[w * p.weight_width_stride]) * to_float(from[on * step]);
                    }
            finish();
        }

        for (int i = 0; i < kPieces; ++i) {
            const auto piece = own.after(distance(tile, i));
            if constexpr (!kFramed) piece.store(to + distance(tile, i) * out_step, out_step, results[i]);
            else if (piece.whole()) results[i].store(to + distance(tile, i));
        }
    }
    if (!kFramed || (run.t >= 0 && !is_last)) return;

    acc_t sum = bias;
    for (int w = 0; w < kWidth; ++w) sum += to_float(Packed<weight_t, 2>{taps.at(w)}.get(0)) * to_float(seen[w]);
    if (has_rest) out.first[batch * out.batch_stride + rest] = from_float<elem_t>(activate(sum));
}

extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void fwd_toeplitz_wmma(const Divisor runs, const Divisor dims, const Params p) { convolve<Rows::aligned, kTiles>(p, runs, dims); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kFramedResident) void framed(const Divisor runs, const Divisor dims, const Params p) { convolve<Rows::framed, kFramedTiles>(p, runs, dims); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kFramedResident) void scattered(const Divisor runs, const Divisor dims, const Params p) { convolve<Rows::scattered, kTiles>(p, runs, dims); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void framed_short(const Divisor runs, const Divisor dims, const Params p) { convolve<Rows::framed, kTiles>(p, runs, dims); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void aligned_single(const Divisor runs, const Divisor dims, const Params p) { convolve<Rows::aligned, 1>(p, runs, dims); }
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void framed_single(const Divisor runs, const Divisor dims, const Params p) { convolve<Rows::framed, 1>(p, runs, dims); }

static int64_t workspace_bytes(const Params&) { return 0; }

template <auto Kernel>
static void launch_runs(const Params& p, index_t runs, stream_t stream) {
    launch<Kernel>(grid_of(ceil_div(p.batch * p.dim * runs, kWaves)), dim3(kBlock), stream, Divisor(runs), Divisor(p.dim), p);
}

// Rows that begin within a sector, or end within a tile, keep a frame. No run is longer than a row is.
static void launch_stage(int, const Params& p, stream_t stream) {
    const Strided x{p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride}, out{p.out, p.out_batch_stride, p.out_dim_stride, p.out_seq_stride};
    const auto are_few = [&](index_t runs) { return p.batch * p.dim * runs <= kFew * multiprocessors(); };
    if (!x.alike(out)) return launch_runs<scattered>(p, ceil_div(p.seqlen, kTile * kTiles), stream);
    if (out.aligned(kSide) && p.seqlen % kTile == 0) {
        const index_t tiles = p.seqlen / kTile;
        if (tiles % kTiles || are_few(tiles / kTiles)) return launch_runs<aligned_single>(p, tiles, stream);
        return launch_runs<fwd_toeplitz_wmma>(p, tiles / kTiles, stream);
    }
    const index_t steps = p.seqlen + kSide - 1 - kTail;  // of a frame, without what lies behind its last run
    const index_t tiles = steps > 0 ? ceil_div(steps, kTile) : 1, runs = ceil_div(tiles, kFramedTiles);
    if (tiles == 1 || are_few(runs)) return launch_runs<framed_single>(p, tiles, stream);
    if (tiles <= kTiles) return launch_runs<framed_short>(p, 1, stream);
    launch_runs<framed>(p, runs, stream);
}

CC1D_EXPORT("conv")
