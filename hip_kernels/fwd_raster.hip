// A small tile a thread, all its loads first; tiles in raster order; the halo is read again from the cache.
//
// With the channels contiguous, no lane needs what another has. A thread takes a few neighbouring channels (8 bytes) of
// `steps` steps, loads those and the `width - 1` before them at once, and never loops: what hides the latency is the
// number of loads in flight and the number of threads, not a walk. The steps before the tile were just read by the
// neighbouring tile, so they come from L1 or L2. Rows of channels that are not aligned are shifted into place
// (channels.h). The first tile of a row takes its initial state, and the last one writes the final state.
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
constexpr int kSteps = CC1D_STEPS;
constexpr int kAcross = CC1D_ACROSS;      // threads side by side along the channels
constexpr int kDown = kBlock / kAcross;   // threads below one another along the sequence
constexpr int kHalo = kWidth - 1;
constexpr int kResident = kWidth > 4 ? 640 : CC1D_RESIDENT;  // threads that are to fit on a multiprocessor: bounds the registers
constexpr int kLanes = CC1D_BYTES / sizeof(elem_t);  // channels of a thread
using lanes_t = Packed<elem_t, kLanes>;
static_assert(kChannelLast, "a thread's channels lie side by side");

struct Grid {
    uint32_t across, down;  // tiles of a batch element

    __host__ __device__ explicit Grid(const Params& p)
        : across(ceil_div(p.dim, kAcross * kLanes)), down(ceil_div(p.seqlen, kDown * kSteps)) {}
};

// The initial state at step `t` below 0.
__device__ inline void load_initial_states(const Params& p, index_t batch, index_t dim, index_t t, lanes_t& v) {
    for (int i = 0; i < kLanes; ++i)
        if (dim + i < p.dim) v.put(i, x_at(p, batch, dim + i, t));
}

template <Channels kHow>
__device__ inline void convolve(const Params& p) {
    const Grid grid(p);
    const uint32_t line = blockIdx.x / grid.across, batch = line / grid.down;
    const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
    const index_t dim = index_t((blockIdx.x - line * grid.across) * kAcross + across) * kLanes;
    const index_t t0 = index_t((line - batch * grid.down) * kDown + down) * kSteps;
    // Of those from dim and t0 on, how many exist, and of the steps before, how many do not. With shifts all lanes stay.
    const int channels = clamped<-kLanes, kLanes>(p.dim - dim), steps = clamped<-kHalo, kSteps>(p.seqlen - t0);
    const int missing = kHalo - clamped<0, kHalo>(t0);
    if (kHow != Channels::shifted && (channels <= 0 || steps <= 0)) return;

    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim * p.x_dim_stride + t0 * p.x_seq_stride;
    ChannelLoad<kHow, kLanes> loads[kHalo + kSteps];
    for (int r = 0; r < kHalo + kSteps; ++r) {
        loads[r].load(x + (r - kHalo) * p.x_seq_stride, p.x_dim_stride, r >= missing && r < kHalo + steps ? channels : 0);
    }
    SeqIdx<kSteps> seq_idx;
    if constexpr (kSeqIdx) seq_idx.load(p, batch, t0);
    Parameters<kLanes> parameters;
    if (kHow == Channels::vectors) parameters.load(p, dim);
    else parameters.load(p, channels > 0 ? dim : 0, channels > 0 ? channels : 1);

    lanes_t rows[kHalo + kSteps];
    for (int r = 0; r < kHalo + kSteps; ++r) {
        rows[r] = loads[r].value(x + (r - kHalo) * p.x_seq_stride);
        if constexpr (kStates)
            if (r < missing) load_initial_states(p, batch, dim, t0 + r - kHalo, rows[r]);
    }
    Sequences<kSteps> sequences;
    if constexpr (kSeqIdx) sequences.find(seq_idx, t0);
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim * p.out_dim_stride + t0 * p.out_seq_stride;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        acc_t result[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            acc_t sum = parameters.bias(i);
            for (int w = 0; w < kWidth; ++w)
                if (!kSeqIdx || sequences.sees(step, kHalo - w)) sum += parameters.weight(i, w) * rows[step + w].at(i);
            result[i] = kSeqIdx && sequences.is_padding(step) ? acc_t(0) : activate(sum);
        }
        store_channels<kHow, kLanes>(out + step * p.out_seq_stride, lanes_t::from(result), p.out_dim_stride, step < steps ? channels : -kLanes,
                                     across == 0 || lane_id() == 0, across == kAcross - 1 || lane_id() == kWarp - 1);
    }
    if (kStates && channels > 0 && steps > 0 && t0 + kSteps >= p.seqlen) write_final_states(p, batch, dim, channels);
}

extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void fwd_raster(const Params p) { convolve<Channels::vectors>(p); }

constexpr int kFewer = kResident / 6 * 5;  // with registers for what a shift takes

extern "C" __global__ CC1D_BOUNDS(kBlock, kFewer) void shifted(const Params p) { convolve<Channels::shifted>(p); }

extern "C" __global__ CC1D_BOUNDS(kBlock, kFewer) void scattered(const Params p) { convolve<Channels::scattered>(p); }

static Channels how(const Params& p) {
    return channels_of<kLanes>(p, {{p.x, p.x_batch_stride, p.x_dim_stride, p.x_seq_stride}, {p.out, p.out_batch_stride, p.out_dim_stride, p.out_seq_stride}});
}

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int, const Params& p, stream_t stream) {
    const Grid grid(p);
    const dim3 blocks = grid_of(p.batch * grid.down * grid.across);
    const Channels channels = how(p);
    if (channels == Channels::vectors) launch<fwd_raster>(blocks, dim3(kBlock), stream, p);
    if (channels == Channels::shifted) launch<shifted>(blocks, dim3(kBlock), stream, p);
    if (channels == Channels::scattered) launch<scattered>(blocks, dim3(kBlock), stream, p);
}

CC1D_EXPORT("conv")
