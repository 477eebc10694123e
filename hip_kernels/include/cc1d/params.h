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

    int64_t batch, dim, seqlen;

    // All strides are in elements.
    int64_t x_batch_stride, x_dim_stride, x_seq_stride;
    int64_t out_batch_stride, out_dim_stride, out_seq_stride;
    int64_t weight_dim_stride, weight_width_stride;
};
