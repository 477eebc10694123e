// A few neighbouring channels a thread, where the channels are contiguous.
#pragma once
#include "packed.h"

// `N` channels of one step, of which the first `channels` exist; the rest is 0 when loaded and left alone when stored.
// `kWhole`: all exist and lie side by side in one vector.
template <bool kWhole, int N>
__device__ inline Packed<elem_t, N> load_channels(const elem_t* from, index_t stride, index_t channels) {
    if (kWhole) return Packed<elem_t, N>::load(from);
    auto v = Packed<elem_t, N>::zero();
    for (int i = 0; i < N; ++i)
        if (i < channels) v.put(i, from[i * stride]);
    return v;
}

template <bool kWhole, int N>
__device__ inline void store_channels(elem_t* to, const Packed<elem_t, N>& v, index_t stride, index_t channels) {
    if (kWhole) return v.store(to);
    for (int i = 0; i < N; ++i)
        if (i < channels) to[i * stride] = v.get(i);
}

// Weight and bias of `N` channels from `dim` on; those that do not exist get the first one's.
template <int N>
struct ChannelParameters {
    acc_t weight[N * kWidth], bias[N];  // weight: channel by channel, as in memory

    template <bool kWhole>
    __device__ void load(const Params& p, index_t dim, index_t channels) {
        const weight_t* weights = static_cast<const weight_t*>(p.weight) + dim * p.weight_dim_stride;
        const weight_t* biases = static_cast<const weight_t*>(p.bias) + dim;
        for (int i = 0; i < N; ++i) bias[i] = 0;
        if (kWhole && p.weight_dim_stride == kWidth) {
            load_parameters(weight, weights, p.weight_width_stride);
            if (p.bias) load_parameters(bias, biases, 1);
            return;
        }
        for (int i = 0; i < N; ++i) {
            const int d = i < channels ? i : 0;
            for (int w = 0; w < kWidth; ++w) weight[i * kWidth + w] = to_float(weights[d * p.weight_dim_stride + w * p.weight_width_stride]);
            if (p.bias) bias[i] = to_float(biases[d]);
        }
    }
};
