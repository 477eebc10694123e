// The last step of a deterministic backward: partial sums of dweight and dbias, added in a fixed order.
//
//   workspace  [part][width + 1][dim]   fp32; the last of the width + 1 is dbias
#pragma once

constexpr int kSums = kWidth + 1;  // dweight and dbias

// Where sum `s` of channel `dim` goes in the end.
__device__ inline void write_sum(const Params& p, int s, index_t dim, acc_t sum) {
    if (s < kWidth) static_cast<weight_t*>(p.dweight)[dim * p.dweight_dim_stride + s * p.dweight_width_stride] = from_float<weight_t>(sum);
    else if (p.dbias) static_cast<weight_t*>(p.dbias)[dim] = from_float<weight_t>(sum);
}

__device__ inline acc_t* partial_sum(const Params& p, index_t part, int s, index_t dim) {
    return static_cast<acc_t*>(p.workspace) + (part * kSums + s) * p.dim + dim;
}

// A block of `Across` channels x `Down` threads, for one of the sums: each thread adds every Down-th part, then one adds those.
template <int Across, int Down>
__device__ inline void add_partial_sums(const Params& p, index_t parts) {
    __shared__ acc_t sums[Down][Across];
    const index_t strips = ceil_div(p.dim, Across);
    const int s = static_cast<int>(blockIdx.x / strips);
    const int across = threadIdx.x % Across, down = threadIdx.x / Across;
    const index_t dim = (blockIdx.x - s * strips) * Across + across;

    acc_t sum = 0;
    if (dim < p.dim)
        for (index_t part = down; part < parts; part += Down) sum += *partial_sum(p, part, s, dim);
    sums[down][across] = sum;
    __syncthreads();
    if (down > 0 || dim >= p.dim) return;
    for (int row = 1; row < Down; ++row) sum += sums[row][across];
    write_sum(p, s, dim, sum);
}

template <int Across>
dim3 grid_of_sums(const Params& p) {
    return grid_of(ceil_div(p.dim, Across) * kSums);
}
