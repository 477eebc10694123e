// The C ABI between a compiled kernel and whoever loads it: one plain struct and a few exported functions.
// cc1d_lab/kernel.py mirrors it field by field; a test compares every offset.
#pragma once
#include <stdint.h>

struct Params {
    const void* x;       // (batch, dim, seqlen), any strides
    const void* weight;  // (dim, width)
    const void* bias;    // (dim) or null
    void* out;           // (batch, dim, seqlen), any strides
    void* workspace;     // cc1d_workspace_bytes() bytes, or null

    // All strides are in elements. In the order in which a forward asks for them: a GPU fetches its arguments in lines of 64 bytes, and
    // waits for each (60 cycles on an H100; DECISIONS 56).
    int64_t x_batch_stride, x_dim_stride, x_seq_stride;
    int64_t weight_dim_stride, weight_width_stride;
    int64_t batch, dim, seqlen;
    int64_t out_batch_stride, out_dim_stride, out_seq_stride;

    // Sequences packed in a row, and what comes before and after it. Each may be null. states.h says what they mean.
    const void* seq_idx;         // (batch, seqlen) int32
    const void* initial_states;  // (batch, dim, width - 1)
    void* final_states;          // (batch, dim, width - 1)
    int64_t seq_idx_batch_stride, seq_idx_seq_stride;
    int64_t initial_states_batch_stride, initial_states_dim_stride, initial_states_width_stride;
    int64_t final_states_batch_stride, final_states_dim_stride, final_states_width_stride;

    // Backward. dfinal_states and dinitial_states may be null; dweight is contiguous, dbias is null without a bias.
    const void* dout;           // (batch, dim, seqlen), any strides
    const void* dfinal_states;  // (batch, dim, width - 1)
    void* dx;                   // (batch, dim, seqlen), any strides
    void* dweight;              // (dim, width)
    void* dbias;                // (dim)
    void* dinitial_states;      // (batch, dim, width - 1)
    int64_t dout_batch_stride, dout_dim_stride, dout_seq_stride;
    int64_t dfinal_states_batch_stride, dfinal_states_dim_stride, dfinal_states_width_stride;
    int64_t dx_batch_stride, dx_dim_stride, dx_seq_stride;
    int64_t dweight_dim_stride, dweight_width_stride;
    int64_t dinitial_states_batch_stride, dinitial_states_dim_stride, dinitial_states_width_stride;

    // Update: one or several steps of decoding. x and out are (batch, dim, seqlen).
    void* conv_state;                // (state_count, dim, state_len)
    const void* cache_seqlens;       // (batch) int32: conv_state is circular and holds that many steps; or null: linear
    const void* conv_state_indices;  // (batch) int32: row of conv_state, -1 for padding; or null: row b for batch b
    int64_t conv_state_batch_stride, conv_state_dim_stride, conv_state_seq_stride;
    int64_t state_count, state_len;
};
