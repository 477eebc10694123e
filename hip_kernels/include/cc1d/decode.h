// Decoding of one channel, in all its forms.
#pragma once

// The state of batch element `batch`, or -1 for padding, which has none.
__device__ inline index_t state_of(const Params& p, index_t batch) {
    const index_t row = p.conv_state_indices ? static_cast<const int32_t*>(p.conv_state_indices)[batch] : batch;
    return row < p.state_count ? row : -1;
}

// The outputs of the new steps of one channel, then its state moved on in place.
__device__ inline void decode_channel(const Params& p, index_t batch, index_t dim) {
    const elem_t* x = static_cast<const elem_t*>(p.x) + batch * p.x_batch_stride + dim * p.x_dim_stride;
    elem_t* out = static_cast<elem_t*>(p.out) + batch * p.out_batch_stride + dim * p.out_dim_stride;
    const index_t row = state_of(p, batch);
    if (row < 0) {
        for (index_t t = 0; t < p.seqlen; ++t) out[t * p.out_seq_stride] = from_float<elem_t>(0);
        return;
    }
    elem_t* state = static_cast<elem_t*>(p.conv_state) + row * p.conv_state_batch_stride + dim * p.conv_state_dim_stride;
    const bool circular = p.cache_seqlens;
    index_t next = circular ? static_cast<const int32_t*>(p.cache_seqlens)[batch] % p.state_len : 0;
    if (next < 0) next += p.state_len;  // where step 0 goes; in a linear state, step 0 follows its end

    const weight_t* weight = static_cast<const weight_t*>(p.weight) + dim * p.weight_dim_stride;
    const acc_t bias = p.bias ? to_float(static_cast<const weight_t*>(p.bias)[dim]) : acc_t(0);
    for (index_t t = 0; t < p.seqlen; ++t) {
        acc_t sum = bias;
        for (int w = 0; w < kWidth; ++w) {
            const index_t from = t - (kWidth - 1) + w;  // below 0: in the state, at most width - 1 <= state_len back
            index_t place = next + from;
            if (place < 0) place += p.state_len;
            const elem_t value = from >= 0 ? x[from * p.x_seq_stride] : state[place * p.conv_state_seq_stride];
            sum += to_float(weight[w * p.weight_width_stride]) * to_float(value);
        }
        out[t * p.out_seq_stride] = from_float<elem_t>(activate(sum));
    }
    if (circular) {
        for (index_t t = 0; t < p.seqlen; ++t) {
            state[next * p.conv_state_seq_stride] = x[t * p.x_seq_stride];
            next = next + 1 == p.state_len ? 0 : next + 1;
        }
    } else {
        for (index_t s = 0; s < p.state_len; ++s) {
            const index_t from = s + p.seqlen;  // of the state and x side by side
            state[s * p.conv_state_seq_stride] = from < p.state_len ? state[from * p.conv_state_seq_stride] : x[(from - p.state_len) * p.x_seq_stride];
        }
    }
}
