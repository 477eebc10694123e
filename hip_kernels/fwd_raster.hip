// A small tile a thread, all its loads first; tiles in raster order; the halo is read again from the cache.
//
// With the channels contiguous, no lane needs what another has. A thread takes a few neighbouring channels (8 bytes) of
// `steps` steps, loads those and the `width - 1` before them at once, and never loops: what hides the latency is the
// number of loads in flight and the number of threads, not a walk. The steps before the tile were just read by the
// neighbouring tile, so they come from L1 or L2. Tiles at an edge, and rows that are not aligned, go element by element; the
// first tile of a row takes its initial state, and the last one writes the final state.
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
constexpr int kResident = CC1D_RESIDENT;  // threads that are to fit on a multiprocessor: bounds the registers
constexpr int kHalo = kWidth - 1;
constexpr int kLanes = CC1D_BYTES / sizeof(elem_t);  // channels of a thread
using lanes_t = Packed<elem_t, kLanes>;
static_assert(kChannelLast, "a thread's channels lie side by side");

struct Grid {
    uint32_t across, down;  // tiles of a batch element

    __host__ __device__ explicit Grid(const Params& p)
        : across(ceil_div(p.dim, kAcross * kLanes)), down(ceil_div(p.seqlen, kDown * kSteps)) {}
};

// The initial state at step `t` below 0.
__device__ inline lanes_t load_initial_states(const Params& p, index_t batch, index_t dim, index_t t) {
    lanes_t v = lanes_t::zero();
    for (int i = 0; i < kLanes; ++i)
        if (dim + i < p.dim) v.put(i, x_at(p, batch, dim + i, t));
    return v;
}

// `kWhole`: all of the tile exists and lies in vectors. Else what exists of it goes element by element.
template <bool kWhole>
__device__ inline void convolve(const Params& p, const elem_t* x, elem_t* out, index_t batch, index_t dim, index_t t0) {
    const index_t channels = p.dim - dim;
    lanes_t rows[kHalo + kSteps];
    for (int r = 0; r < kHalo + kSteps; ++r) {
        const index_t t = t0 + r - kHalo;
        const elem_t* from = x + (r - kHalo) * p.x_seq_stride;
        rows[r] = load_channels<kWhole, kLanes>(from, p.x_dim_stride, t >= 0 && t < p.seqlen ? channels : 0);
        if constexpr (kStates && !kWhole)
            if (t < 0) rows[r] = load_initial_states(p, batch, dim, t);
    }
    SeqIdx<kSteps> seq_idx;
    if constexpr (kSeqIdx) seq_idx.load(p, batch, t0);

    ChannelParameters<kLanes> parameters;
    parameters.load<kWhole>(p, dim, channels);

    Sequences<kSteps> sequences;
    if constexpr (kSeqIdx) sequences.find(seq_idx, t0);
    for (int step = 0; step < kSteps; ++step) {
        acc_t result[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            acc_t sum = parameters.bias[i];
            for (int w = 0; w < kWidth; ++w)
                if (!kSeqIdx || sequences.sees(step, kHalo - w)) sum += parameters.weight[i * kWidth + w] * rows[step + w].at(i);
            result[i] = kSeqIdx && sequences.is_padding(step) ? acc_t(0) : activate(sum);
        }
        if (kWhole || t0 + step < p.seqlen)
            store_channels<kWhole, kLanes>(out + step * p.out_seq_stride, lanes_t::from(result), p.out_dim_stride, channels);
    }
}

extern "C" __global__ CC1D_BOUNDS(kBlock, kResident) void fwd_raster(const Params p) {
    const Grid grid(p);
    const uint32_t line = blockIdx.x / grid.across, batch = line / grid.down;
    const index_t dim = index_t((blockIdx.x - line * grid.across) * kAcross + threadIdx.x % kAcross) * kLanes;
    const index_t t0 = index_t((line - batch * grid.down) * kDown + threadIdx.x / kAcross) * kSteps;
    if (dim >= p.dim || t0 >= p.seqlen) return;

    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim * p.x_dim_stride + t0 * p.x_seq_stride;
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim * p.out_dim_stride + t0 * p.out_seq_stride;
    const bool vectors = p.x_dim_stride == 1 && is_vector_aligned<CC1D_BYTES>(x, p.x_seq_stride) && p.out_dim_stride == 1 &&
                         is_vector_aligned<CC1D_BYTES>(out, p.out_seq_stride);
    const bool whole = dim + kLanes <= p.dim && t0 >= kHalo && t0 + kSteps <= p.seqlen;
    if (vectors && whole) convolve<true>(p, x, out, batch, dim, t0);
    else convolve<false>(p, x, out, batch, dim, t0);
    if (kStates && t0 + kSteps >= p.seqlen) write_final_states(p, batch, dim, static_cast<int>(p.dim - dim < kLanes ? p.dim - dim : kLanes));
}

static int64_t workspace_bytes(const Params&) { return 0; }

static void launch_stage(int, const Params& p, stream_t stream) {
    const Grid grid(p);
    launch<fwd_raster>(grid_of(p.batch * grid.down * grid.across), dim3(kBlock), stream, p);
}

CC1D_EXPORT("conv")
