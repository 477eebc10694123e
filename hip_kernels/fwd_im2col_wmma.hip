// im2col, the depthwise weight expanded to a dense matrix, a matrix-core GEMM, then bias and activation: four kernels.
//
// A convolution as the matrix product that matrix cores want. The dense weight is zero except where the input channel
// is the output channel, so `dim` times the useful work is done; im2col writes and reads `width` times the input.
// What it costs is what this variant is here to show.
//
//   x       (batch, dim, seqlen)
//     |  im2col: padding, `width` shifted copies side by side
//   A       [batch][rows][width x cols]          16-bit, workspace
//           x  B [width x cols][cols]            16-bit, workspace; expand_weight, diagonal blocks
//     |  gemm: a wave per 16 x (16 x tiles) of C, 16x16x16 instructions along width x cols
//   C       [batch][rows][cols]                  fp32, workspace
//     |  bias: + bias, activation, rounding
//   out     (batch, dim, seqlen)
//
// rows and cols are seqlen and dim rounded up to 16; the padding holds zeros.
#include "cc1d/config.h"

constexpr int kBlock = CC1D_BLOCK;
constexpr int kTile = 16;
constexpr int kWaves = kBlock / kWarp;

struct Shape {
    index_t rows, cols, depth;  // of C, and of A and B in between

    __host__ __device__ explicit Shape(const Params& p)
        : rows(ceil_div(p.seqlen, kTile) * kTile), cols(ceil_div(p.dim, kTile) * kTile), depth(kWidth * cols) {}
    __host__ __device__ index_t tiles() const { return rows / kTile * (cols / kTile); }
};

struct Workspace {
    elem_t *a, *b;
    float* c;

    __host__ __device__ explicit Workspace(const Params& p) {
        const Shape s(p);
        a = static_cast<elem_t*>(p.workspace);
        b = a + p.batch * s.rows * s.depth;
        c = reinterpret_cast<float*>(b + s.depth * s.cols);
    }
};

__device__ inline index_t global_thread() { return index_t(blockIdx.x) * kBlock + threadIdx.x; }

extern "C" __global__ __launch_bounds__(kBlock) void im2col(const Params p) {
    const Shape s(p);
    const index_t i = global_thread();  // over A, its columns innermost
    if (i >= p.batch * s.rows * s.depth) return;
    const index_t row = i / s.depth, column = i - row * s.depth;
    const index_t batch = row / s.rows, tap = column / s.cols, dim = column - tap * s.cols;
    const index_t t = row - batch * s.rows - (kWidth - 1) + tap;
    const bool inside = dim < p.dim && t >= 0 && t < p.seqlen;
    const elem_t* x = static_cast<const elem_t*>(p.x);
    Workspace(p).a[i] = inside ? x[batch * p.x_batch_stride + dim * p.x_dim_stride + t * p.x_seq_stride] : from_float<elem_t>(0);
}

extern "C" __global__ __launch_bounds__(kBlock) void expand_weight(const Params p) {
    const Shape s(p);
    const index_t i = global_thread();  // over B, its columns innermost
    if (i >= s.depth * s.cols) return;
    const index_t row = i / s.cols, out_dim = i - row * s.cols;
    const index_t tap = row / s.cols, in_dim = row - tap * s.cols;
    const bool diagonal = in_dim == out_dim && in_dim < p.dim;
    const weight_t* weight = static_cast<const weight_t*>(p.weight);
    Workspace(p).b[i] = from_float<elem_t>(diagonal ? to_float(weight[in_dim * p.weight_dim_stride + tap * p.weight_width_stride]) : 0.0f);
}

extern "C" __global__ __launch_bounds__(kBlock) void gemm(const Params p) {
    const Shape s(p);
    const Workspace w(p);
    const index_t tile = index_t(blockIdx.x) * kWaves + threadIdx.x / kWarp;  // over (batch, rows, cols), cols innermost
    if (tile >= p.batch * s.tiles()) return;                                   // a whole wave goes
    const index_t across = s.cols / kTile, row = tile / across * kTile, col = (tile - tile / across * across) * kTile;

    FragmentC c;
    c.fill(0.0f);
    for (index_t k = 0; k < s.depth; k += kTile) {
        FragmentA<elem_t> a;
        FragmentB<elem_t> b;
        a.load(w.a + row * s.depth + k, s.depth);
        b.load(w.b + k * s.cols + col, s.cols);
        multiply_accumulate(c, a, b);
    }
    c.store(w.c + row * s.cols + col, s.cols);
}

extern "C" __global__ __launch_bounds__(kBlock) void bias(const Params p) {
    const Shape s(p);
    const index_t i = global_thread();  // over out, its contiguous dimension innermost
    const index_t inner = kChannelLast ? p.dim : p.seqlen, outer = kChannelLast ? p.seqlen : p.dim;
    if (i >= p.batch * p.dim * p.seqlen) return;
    const index_t line = i / inner, fast = i - line * inner;
    const index_t batch = line / outer, slow = line - batch * outer;
    const index_t dim = kChannelLast ? fast : slow, t = kChannelLast ? slow : fast;
    float sum = Workspace(p).c[(batch * s.rows + t) * s.cols + dim];
    if (p.bias) sum += to_float(static_cast<const weight_t*>(p.bias)[dim]);
    static_cast<elem_t*>(p.out)[batch * p.out_batch_stride + dim * p.out_dim_stride + t * p.out_seq_stride] = from_float<elem_t>(activate(sum));
}

static int64_t workspace_bytes(const Params& p) {
    const Shape s(p);
    return (p.batch * s.rows * s.depth + s.depth * s.cols) * sizeof(elem_t) + p.batch * s.rows * s.cols * sizeof(float);
}

static void launch_stage(int stage, const Params& p, stream_t stream) {
    const Shape s(p);
    const auto threads = [](index_t n) { return grid_of(ceil_div(n, kBlock)); };
    if (stage == 0) launch<im2col>(threads(p.batch * s.rows * s.depth), dim3(kBlock), stream, p);
    if (stage == 1) launch<expand_weight>(threads(s.depth * s.cols), dim3(kBlock), stream, p);
    if (stage == 2) launch<gemm>(grid_of(ceil_div(p.batch * s.tiles(), kWaves)), dim3(kBlock), stream, p);
    if (stage == 3) launch<bias>(threads(p.batch * p.dim * p.seqlen), dim3(kBlock), stream, p);
}

CC1D_EXPORT("im2col", "expand_weight", "gemm", "bias")
