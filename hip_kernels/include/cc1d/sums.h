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

// The same for all of the sums, with two parts on their way at once.
template <int Across, int Down>
__device__ inline void add_all_partial_sums(const Params& p, index_t parts) {
    static_assert(Down >= kSums, "a row of threads for each sum");
    __shared__ acc_t sums[kSums][Down][Across];
    const int across = threadIdx.x % Across, down = threadIdx.x / Across;
    const index_t dim = index_t(blockIdx.x) * Across + across;

    acc_t mine[kSums] = {};
    for (index_t part = down; part < parts && dim < p.dim; part += 2 * Down) {
        const index_t second = part + Down;
        acc_t more[2][kSums];
        for (int s = 0; s < kSums; ++s) {
            more[0][s] = *partial_sum(p, part, s, dim);
            more[1][s] = second < parts ? *partial_sum(p, second, s, dim) : acc_t(0);
        }
        for (int s = 0; s < kSums; ++s) mine[s] += more[0][s] + more[1][s];
    }
    for (int s = 0; s < kSums; ++s) sums[s][down][across] = mine[s];
    __syncthreads();
    if (down >= kSums || dim >= p.dim) return;
    acc_t sum = 0;
    for (int row = 0; row < Down; ++row) sum += sums[down][row][across];
    write_sum(p, down, dim, sum);
}

template <int Across>
dim3 grid_of_sums(const Params& p) {
    return grid_of(ceil_div(p.dim, Across) * kSums);
}
