// Packed sequences for a thread that holds neighbouring steps: which of them see which, as bits.
//
// seq_idx is read in aligned 16-byte vectors, whatever its alignment: the frame starts a few steps early, and the bits are
// shifted into place, not the indices. One comparison a step gives `differs`; that a step sees the one d before it is then
// an AND of d shifted copies for all steps at once. states.h says what a sequence is.
//
//   seq_idx    . 5 5 5 7 7 8 8 .          frame of whole vectors
//   differs      . 0 0 1 0 1 0            a sequence begins
//   seen by 2    . . 1 0 0 0 0            t - 2 is of the sequence of t
#pragma once

// seq_idx of the `width - 1` steps before a thread's `N` steps, and of these. Loaded apart from its use, so that the load
// can go together with others.
template <int N>
struct SeqIdx {
    static constexpr int kHalo = kWidth - 1;
    static constexpr int kSize = ceil_div(kHalo + N + 3, 4) * 4;  // whole vectors, wherever the first one begins
    static_assert(kSize <= 32, "a bit for each step of the frame");
    int32_t ids[kSize];
    int lead;  // steps by which the frame begins early

    // For the steps from `t` on. What the frame holds of other rows, or beyond the tensor (as 0), is never asked for.
    __device__ void load(const Params& p, index_t batch, index_t t) {
        lead = 0;
        if (p.seq_idx_seq_stride != 1) {
            for (int j = 0; j < kHalo + N; ++j) {
                const index_t step = t - kHalo + j;
                ids[j] = step >= 0 && step < p.seqlen && batch < p.batch ? seq_idx_at(p, batch, step) : 0;
            }
            for (int j = kHalo + N; j < kSize; ++j) ids[j] = 0;
            return;
        }
        const int32_t* first = static_cast<const int32_t*>(p.seq_idx);
        const int32_t* end = first + (p.batch - 1) * p.seq_idx_batch_stride + p.seqlen;
        const int32_t* from = first + batch * p.seq_idx_batch_stride + t - kHalo;
        lead = reinterpret_cast<uintptr_t>(from) % 16 / sizeof(int32_t);
        from -= lead;
        for (int j = 0; j < kSize; j += 4) {
            if (j < lead + kHalo + N && from + j >= first && from + j + 4 <= end) {
                const raw16_t raw = *reinterpret_cast<const raw16_t*>(from + j);
                __builtin_memcpy(ids + j, &raw, sizeof(raw));
            } else {
                for (int i = j; i < j + 4; ++i) ids[i] = from + i >= first && from + i < end ? from[i] : 0;
            }
        }
    }
};

template <int N>
struct Sequences {
    uint32_t same[kWidth];  // bit i of same[d]: step t + i sees the step d before it
    uint32_t padding;       // bit i: step t + i

    __device__ void find(const SeqIdx<N>& seq_idx, index_t t) {
        constexpr int kHalo = kWidth - 1, kSize = SeqIdx<N>::kSize;
        uint32_t differs = 0, negative = 0;
        for (int j = 1; j < kSize; ++j) differs |= static_cast<uint32_t>(seq_idx.ids[j] != seq_idx.ids[j - 1]) << j;
        for (int j = 0; j < kSize; ++j) negative |= static_cast<uint32_t>(seq_idx.ids[j]) >> 31 << j;
        differs >>= seq_idx.lead;  // bit j: step t - halo + j
        negative >>= seq_idx.lead;
        if (t <= kHalo) differs &= ~uint32_t{0} << static_cast<int>(kHalo + 1 - t);  // at step 0 and before it, nothing begins
        uint32_t together = ~uint32_t{0};
        for (int d = 0; d < kWidth; ++d) {
            same[d] = together >> kHalo;
            together &= ~(differs << d);
        }
        padding = negative >> kHalo;
    }
    __device__ bool sees(int i, int d) const { return same[d] >> i & 1; }
    __device__ bool is_padding(int i) const { return padding >> i & 1; }
};
