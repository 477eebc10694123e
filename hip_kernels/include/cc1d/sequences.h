// Packed sequences for a thread that holds neighbouring steps: which of them see which, as bits.
//
// One comparison a step gives `differs`; that a step sees the one d before it is then an AND of d shifted copies for all steps at
// once. states.h says what a sequence is. Where the lanes of a wave hold the same steps, each compares one, and they vote. Where
// each has its own, on vectors of seq_idx, it reads them; elsewhere a kernel of its own writes the bits first. A thread that goes
// from step to step carries on what it sees, and needs `follows` alone: whether a step is of the sequence of the one before it.
//
//   seq_idx    . 5 5 5 7 7 8 8 .
//   differs      . 0 0 1 0 1 0            a sequence begins
//   seen by 2    . . 1 0 0 0 0            t - 2 is of the sequence of t
#pragma once
#include "packed.h"

// Of 32 steps, a bit each: whether a sequence begins there, and whether it is padding.
struct alignas(8) Marks {
    uint32_t begins, padding;

    // A row's are preceded and followed by 32 steps that do not exist.
    static int64_t bytes(const Params& p) { return p.batch * of_row(p) * static_cast<int64_t>(sizeof(Marks)); }
    __host__ __device__ static index_t of_row(const Params& p) { return ceil_div(p.seqlen, 32) + 2; }
    __device__ static Marks* row(const Params& p, index_t batch) { return static_cast<Marks*>(p.workspace) + batch * of_row(p); }

    // A quarter of number `place / 4` of all rows: a thread that reads fewer steps is done sooner.
    __device__ static void write(const Params& p, index_t place) {
        constexpr int kSteps = 8;
        const index_t batch = place / (4 * of_row(p)), t0 = (place - batch * 4 * of_row(p)) * kSteps - 32;
        if (batch >= p.batch) return;
        const auto id_at = [&](index_t t) { return t >= 0 && t < p.seqlen ? seq_idx_at(p, batch, t) : 0; };
        int32_t ids[kSteps + 1];
        for (int i = 0; i <= kSteps; ++i) ids[i] = id_at(t0 - 1 + i);
        uint32_t begins = 0, padding = 0;
        for (int i = 0; i < kSteps; ++i) {
            begins |= static_cast<uint32_t>(t0 + i > 0 && ids[i + 1] != ids[i]) << i;
            padding |= static_cast<uint32_t>(ids[i + 1] < 0) << i;
        }
        auto* quarters = reinterpret_cast<uint8_t*>(static_cast<Marks*>(p.workspace) + place / 4) + place % 4;  // least significant first
        quarters[0] = static_cast<uint8_t>(begins);
        quarters[sizeof(begins)] = static_cast<uint8_t>(padding);
    }
};

// Marks of the `width - 1` steps before step `t` of a row, and of the next ones: 32 in all.
struct MarksAt {
    Marks low, high;
    int bit;

    __device__ void load(const Params& p, index_t batch, index_t t) {
        const index_t from = t - (kWidth - 1) + 32;
        const Marks* marks = Marks::row(p, batch) + from / 32;
        low = marks[0];
        high = marks[1];
        bit = from % 32;
    }
};

// Marks of the `width - 1` steps before step `t` and of the next ones, 32 in all, for 32 lanes that share them: each looks at one step.
struct VotedMarks {
    int32_t before, id;
    bool follows;  // whether there is a step before this lane's

    __device__ void load(const Params& p, index_t batch, index_t t) {
        const index_t step = t - (kWidth - 1) + lane_id() % 32;
        follows = step > 0 && step < p.seqlen;
        id = step == 0 || follows ? seq_idx_at(p, batch, step) : 0;
        before = follows ? seq_idx_at(p, batch, step - 1) : 0;
    }
};

// Ids of the `N` steps of a lane, and for the first lane those of the steps before them, where neighbouring lanes hold neighbouring
// steps and these lie on 16 bytes: more to read than marks, but no kernel to wait for.
template <int N>
struct OwnIds {
    static constexpr int kHalo = kWidth - 1, kBefore = kHalo > 4 ? 8 : 4;
    Packed<int32_t, N> own;
    Packed<int32_t, kBefore> before;
    bool starts_row;

    static bool takes(const Params& p) {
        return p.seq_idx_seq_stride == 1 && p.seq_idx_batch_stride % 4 == 0 && reinterpret_cast<uintptr_t>(p.seq_idx) % 16 == 0;
    }
    __device__ void load(const Params& p, index_t batch, int t) {
        static_assert(N >= kBefore, "what is before a run lies in its row, or the run is the first");
        const int32_t* from = static_cast<const int32_t*>(p.seq_idx) + batch * p.seq_idx_batch_stride + t;
        starts_row = t == 0;
        own = Packed<int32_t, N>::load(from);
        before = Packed<int32_t, kBefore>::zero();
        if (!starts_row && lane_id() == 0) before = Packed<int32_t, kBefore>::load(from - kBefore);
    }

    // All lanes, once all is loaded: the first lane keeps what it read before its steps, the others see what the lane below has.
    __device__ void share() {
        for (int i = 1; i <= kHalo; ++i) {
            const uint32_t below = shuffle_up(own.words[N - i], 1);
            before.words[kBefore - i] = lane_id() == 0 ? before.words[kBefore - i] : below;
        }
    }
    // Whether step t + i, from t - (width - 2) on, is of the same sequence as the one before it. In a row's first step that is the initial state.
    __device__ bool follows(int i) const {
        const auto id = [&](int j) { return j < 0 ? before.words[kBefore + j] : own.words[j]; };
        return (i <= 0 && starts_row) || id(i) == id(i - 1);
    }
    __device__ bool is_padding(int i) const { return static_cast<int32_t>(own.words[i]) < 0; }
};

template <int N>
struct Sequences {
    uint32_t same[kWidth];  // bit i of same[d]: step t + i sees the step d before it
    uint32_t padding;       // bit i: step t + i
    uint32_t begins;        // bit i: whether a sequence begins at step t - (width - 1) + i

    __device__ void find(const VotedMarks& marks) {
        static_assert(kWidth - 1 + N <= 32, "a lane for each step");
        find(vote(marks.follows && marks.id != marks.before), vote(marks.id < 0));
    }
    __device__ void find(const MarksAt& marks) {
        static_assert(kWidth - 1 + N <= 32, "a bit for each step");
        find(shift_words(marks.low.begins, marks.high.begins, marks.bit), shift_words(marks.low.padding, marks.high.padding, marks.bit));
    }

    // Bit j of both: step t - halo + j.
    __device__ void find(uint32_t differs, uint32_t negative) {
        constexpr int kHalo = kWidth - 1;
        uint32_t together = ~uint32_t{0};
        for (int d = 0; d < kWidth; ++d) {
            same[d] = together >> kHalo;
            together &= ~(differs << d);
        }
        padding = negative >> kHalo;
        begins = differs;
    }
    // Whether all that the `N` steps could see is of one sequence.
    __device__ bool is_one() const {
        constexpr uint32_t kSteps = N < 32 ? (uint32_t{1} << N) - 1 : ~uint32_t{0};
        return (same[kWidth - 1] & ~padding & kSteps) == kSteps;
    }
    __device__ bool follows(int i) const { return !(begins >> (i + kWidth - 1) & 1); }
    __device__ bool sees(int i, int d) const { return same[d] >> i & 1; }
    __device__ bool is_padding(int i) const { return padding >> i & 1; }
};
