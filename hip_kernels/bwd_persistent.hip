// As many warps as fit walk equal runs of steps, a few channels a thread; the windows of x and of the gradient stay in registers.
//
// With the channels contiguous, no lane needs what another has. All steps of all batch elements are one long line, and each
// walker of a slab of channels takes an equal run of it, whatever sequences that crosses. At step t a thread has x of
// the last `width` steps and the gradient g = dout * act'(pre-activation) of the last `width` steps: it adds to dweight
// and dbias, and dx of step t - (width - 1) is complete. A run looks width - 1 steps past its end. A few steps of x and dout are
// loaded at once, those after them before these are used. Rows that lines of memory (128 bytes) are cut by are fetched in whole lines
// (`off_lines`, `apart`).
//
//            channels ->  slab 0 | slab 1 | ...
//   steps    walker 0 |
//     |               v   x, dout: global -> registers, a few rows ahead        dx: registers -> global
//     v      walker 1 |
//                     v   dweight, dbias: registers over the whole walk -> shared, walker after walker -> workspace
//   stage 2: a block per few channels adds the blocks' sums in order: the same bits in every run
#include "cc1d/config.h"
#include "cc1d/channels.h"
#include "cc1d/sums.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kLanes = 4;                 // channels of a thread
constexpr int kAcross = CC1D_ACROSS < kWarp ? kWarp : CC1D_ACROSS;  // threads side by side along the channels: whole waves
// Elements of 32 bits take twice the registers: fewer walkers fit, each with as many bytes on their way.
constexpr bool kNarrow = sizeof(elem_t) == 2;
constexpr int kTogether = kNarrow ? 5 : 4;      // steps loaded at once
constexpr int kResident = kNarrow ? 384 : 256;  // threads that are to fit on a multiprocessor: bounds the registers
constexpr int kWalkers = kNarrow ? CC1D_WALKERS : CC1D_WALKERS * 2 / 3;
constexpr int kHalo = kWidth - 1;
constexpr int kDown = kBlock / kAcross;  // walkers of a block
constexpr index_t kShortest = 8;         // steps of a walker at least
constexpr int kLine = 128 / sizeof(elem_t), kTwoLines = 256;  // of memory: elements of one, bytes of two
static_assert(kChannelLast, "a thread's channels lie side by side");

// What a thread carries from step to step. x and gradient: the last kHalo steps, oldest first. kFetch: of load_raw.
template <Channels kHow, int kFetch>
struct Walker {
    using Row = ChannelRow<kHow, kLanes, kAcross, kFetch>;
    static constexpr Channels how = kHow;
    const Params& p;
    OwnChannels<kHow, kLanes, kAcross> own;
    int64_t x_step, dout_step, dx_step;  // bytes to the next step
    Parameters<kLanes> parameters;
    acc_t x[kHalo + 1][kLanes], gradient[kHalo + 1][kLanes], sums[kSums][kLanes];
};

template <typename W, int kSteps>
struct Rows {
    typename W::Row x[kSteps], dout[kSteps];

    // Steps t to t + kSteps - 1, as zero from `end` on.
    __device__ void load(const W& w, const elem_t* x_at_t, const elem_t* dout_at_t, index_t t, index_t end) {
        if (W::how == Channels::vectors && t + kSteps <= end) {  // the usual way, with nothing to ask
#pragma unroll
            for (int s = 0; s < kSteps; ++s) {
                x[s].load(bytes_on(x_at_t, s * w.x_step), w.p.x_dim_stride, kLanes);
                dout[s].load(bytes_on(dout_at_t, s * w.dout_step), w.p.dout_dim_stride, kLanes);
            }
            return;
        }
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
            const int count = t + s < end ? w.own.count : 0;
            x[s].load(bytes_on(x_at_t, s * w.x_step), w.p.x_dim_stride, count);
            dout[s].load(bytes_on(dout_at_t, s * w.dout_step), w.p.dout_dim_stride, count);
        }
    }
};

// One step: its x and dout join the windows. dx of the step kHalo before. `counts`: it is one of this walker's.
template <typename W>
__device__ inline void advance(W& w, const typename W::Row& x, const typename W::Row& dout, bool counts, acc_t (&dx)[kLanes]) {
    for (int i = 0; i < kLanes; ++i) {
        w.x[kHalo][i] = x.at(i);
        acc_t g = dout.at(i);
        if (kSilu) {
            acc_t sum = w.parameters.bias(i);
            for (int k = 0; k < kWidth; ++k) sum += w.parameters.weight(i, k) * w.x[k][i];
            g *= activate_slope(sum);
        }
        w.gradient[kHalo][i] = g;
        dx[i] = 0;
        for (int k = kWidth; k-- > 0;) dx[i] += w.parameters.weight(i, kHalo - k) * w.gradient[k][i];
        if (counts) {
            for (int k = 0; k < kWidth; ++k) w.sums[k][i] += g * w.x[k][i];
            w.sums[kWidth][i] += g;
        }
        for (int k = 0; k < kHalo; ++k) {
            w.x[k][i] = w.x[k + 1][i];
            w.gradient[k][i] = w.gradient[k + 1][i];
        }
    }
}

// Steps begin to end - 1 of one batch element.
template <typename W>
__device__ inline void walk(W& w, index_t batch, index_t begin, index_t end) {
    using Row = typename W::Row;
    const Params& p = w.p;
    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + w.own.dim * p.x_dim_stride + begin * p.x_seq_stride;
    const elem_t* dout = static_cast<const elem_t*>(p.dout) + batch * p.dout_batch_stride + w.own.dim * p.dout_dim_stride + begin * p.dout_seq_stride;
    elem_t* dx = static_cast<elem_t*>(p.dx) + batch * p.dx_batch_stride + w.own.dim * p.dx_dim_stride + (begin - kHalo) * p.dx_seq_stride;
    const index_t seen = end + kHalo < p.seqlen ? end + kHalo : p.seqlen;  // past it there is nothing, and no gradient
    constexpr int kSteps = W::how == Channels::scattered ? 1 : W::how == Channels::apart ? 3 : kTogether;
    Row before[kHalo + 1];
    for (int k = 0; k < kHalo; ++k) before[k].load(x + (k - kHalo) * p.x_seq_stride, p.x_dim_stride, begin - kHalo + k >= 0 ? w.own.count : 0);
    Rows<W, kSteps> rows;
    rows.load(w, x, dout, begin, seen);
    for (int k = 0; k < kHalo; ++k)
        for (int i = 0; i < kLanes; ++i) {
            w.x[k][i] = before[k].at(i);
            w.gradient[k][i] = 0;
        }

    const auto step = [&](int s, bool counts, bool stores) {
        acc_t dx_before[kLanes];
        advance(w, rows.x[s], rows.dout[s], counts, dx_before);
        if (stores) Row::store(bytes_on(dx, s * w.dx_step), p.dx_dim_stride, w.own.count, Row::vector_t::from(dx_before));
    };
    for (index_t t = begin; t < end + kHalo; t += kSteps) {
        Rows<W, kSteps> next;
        next.load(w, bytes_on(x, kSteps * w.x_step), bytes_on(dout, kSteps * w.dout_step), t + kSteps, seen);
        if (t - kHalo >= begin && t + kSteps <= end) {  // all in the middle
#pragma unroll
            for (int s = 0; s < kSteps; ++s) step(s, true, true);
        } else {
#pragma unroll
            for (int s = 0; s < kSteps; ++s) step(s, t + s < end, t + s - kHalo >= begin && t + s - kHalo < end);
        }
        x = bytes_on(x, kSteps * w.x_step);
        dout = bytes_on(dout, kSteps * w.dout_step);
        dx = bytes_on(dx, kSteps * w.dx_step);
        rows = next;
    }
}

// Steps first to last - 1 of the line of all batch elements.
template <typename W>
__device__ inline void walk_all(W& w, index_t first, index_t last) {
    while (first < last) {
        const index_t batch = first / w.p.seqlen, begin = first - batch * w.p.seqlen;
        const index_t end = begin + (last - first) < w.p.seqlen ? begin + (last - first) : w.p.seqlen;
        walk(w, batch, begin, end);
        first += end - begin;
    }
}

// `share`: steps of a walker.
template <Channels kHow, int kFetch = 0>
__device__ inline void backward(const Params& p, uint32_t slabs, index_t share) {
    __shared__ acc_t sums[kDown][kAcross * kLanes];
    // The blocks of the second stage that wait on a multiprocessor slow the walk; only one that is shorter than a launch goes on beside them.
    const bool is_long = share > 2 * kShortest;
    if (!is_long) start_next();
    const uint32_t part = blockIdx.x / slabs, slab = blockIdx.x - part * slabs;
    const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
    const index_t lines = p.batch * p.seqlen;
    const index_t first = (index_t(part) * kDown + down) * share, last = first + share < lines ? first + share : lines;

    Walker<kHow, kFetch> w{p, {p, slab, across}, step_bytes(p.x_seq_stride), step_bytes(p.dout_seq_stride), step_bytes(p.dx_seq_stride)};
    for (int s = 0; s < kSums; ++s)
        for (int i = 0; i < kLanes; ++i) w.sums[s][i] = 0;
    if (w.own.count > 0) {
        w.parameters.load(p, w.own.dim, kHow == Channels::scattered ? w.own.count : kLanes, w.own.kStep);
        walk_all(w, first, last);
    }
    if (is_long) start_next();

#pragma unroll
    for (int s = 0; s < kSums; ++s) {
        if (kDown > 1) {
            for (int i = 0; i < kLanes; ++i) sums[down][across * kLanes + i] = w.sums[s][i];
            __syncthreads();
        }
        if (down == 0)
            for (int i = 0; i < kLanes; ++i) {
                if (i >= w.own.count) continue;
                acc_t sum = w.sums[s][i];
                for (int row = 1; row < kDown; ++row) sum += sums[row][across * kLanes + i];
                *partial_sum(p, part, s, w.own.dim + i * w.own.kStep) = sum;
            }
        if (kDown > 1) __syncthreads();
    }
}

extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void bwd_persistent(const Params p, uint32_t slabs, index_t share) {
    backward<Channels::vectors>(p, slabs, share);
}
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void off_lines(const Params p, uint32_t slabs, index_t share) {
    backward<Channels::vectors, kTwoLines>(p, slabs, share);
}
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void apart(const Params p, uint32_t slabs, index_t share) {
    backward<Channels::apart, kTwoLines>(p, slabs, share);
}
extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void scattered(const Params p, uint32_t slabs, index_t share) {
    backward<Channels::scattered>(p, slabs, share);
}

constexpr int kReduceBlock = 256, kReduceAcross = 32, kReduceAcrossAll = 16;
constexpr index_t kManyChannels = 2048;

extern "C" __global__ __launch_bounds__(kReduceBlock) void reduce(const Params p, index_t parts) {
    wait_for_previous();
    add_partial_sums<kReduceAcross, kReduceBlock / kReduceAcross>(p, parts);
}
// Where channels are many: fewer blocks, and more loads at once.
extern "C" __global__ __launch_bounds__(kReduceBlock) void reduce_all(const Params p, index_t parts) {
    wait_for_previous();
    add_all_partial_sums<kReduceAcrossAll, kReduceBlock / kReduceAcrossAll>(p, parts);
}

struct Plan {
    index_t slabs, share, parts;  // share: steps of a walker; parts: blocks of a slab

    explicit Plan(const Params& p) : slabs(ceil_div(p.dim, kAcross * kLanes)) {
        const index_t lines = p.batch * p.seqlen, wanted = kWalkers / kDown / slabs, most = ceil_div(lines, kShortest * kDown);
        parts = wanted < 1 ? 1 : wanted < most ? wanted : most;
        share = ceil_div(lines, parts * kDown);
    }
};

// How the rows of all tensors lie in memory.
struct Placement {
    Channels channels;
    bool on_lines = true;  // all rows begin on a line of memory

    explicit Placement(const Params& p) {
        const Strided tensors[] = {{p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride},
                                   {p.dout, p.dout_batch_stride, p.dout_dim_stride, p.dout_seq_stride},
                                   {p.dx, p.dx_batch_stride, p.dx_dim_stride, p.dx_seq_stride}};
        channels = channels_of<kLanes, kAcross>(p, tensors);
        for (const Strided& tensor : tensors) on_lines = on_lines && tensor.aligned_along_channels(kLine);
    }
};

static int64_t workspace_bytes(const Params& p) { return Plan(p).parts * kSums * p.dim * sizeof(acc_t); }

static void launch_stage(int stage, const Params& p, stream_t stream) {
    const Plan plan(p);
    const dim3 grid = grid_of(plan.parts * plan.slabs);
    const auto slabs = static_cast<uint32_t>(plan.slabs);
    const Placement placed(p);
    const Channels channels = placed.channels;
    if (stage == 0 && channels == Channels::vectors && !placed.on_lines) launch<off_lines>(grid, dim3(kBlock), stream, p, slabs, plan.share);
    if (stage == 0 && channels == Channels::vectors && placed.on_lines) launch<bwd_persistent>(grid, dim3(kBlock), stream, p, slabs, plan.share);
    if (stage == 0 && channels == Channels::apart) launch<apart>(grid, dim3(kBlock), stream, p, slabs, plan.share);
    if (stage == 0 && channels == Channels::scattered) launch<scattered>(grid, dim3(kBlock), stream, p, slabs, plan.share);
    const bool many = p.dim >= kManyChannels;
    if (stage == 1 && !many) launch_behind<reduce>(grid_of_sums<kReduceAcross>(p), dim3(kReduceBlock), stream, p, plan.parts);
    if (stage == 1 && many) launch_behind<reduce_all>(grid_of(ceil_div(p.dim, kReduceAcrossAll)), dim3(kReduceBlock), stream, p, plan.parts);
}

CC1D_EXPORT("walk", "reduce")
