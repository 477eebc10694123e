// Rows of channels that begin anywhere, in whole vectors: what is missing at either end of a lane's vector the next lane has.
//
// Memory is moved in vectors of 8 bytes on their own alignment, and stored in whole sectors of 32 bytes: two waves that write parts of
// one cost the L2 more than reading a sector twice. A group of 32 lanes takes its channels from one on where its first row lies on a
// boundary; the next row lies `turn` elements further behind one than the row before it (its stride, modulo those of a vector), which is
// known when the kernel is compiled, so that a row is shifted by a constant. A lane's channels are the same in all rows. Of the four places
// in a sector where a tile's first row may begin, that one is taken by which the most rows leave their group whole sectors (InSectors).
//
//   row 0   |0 1 2 3|4 5 6 7|8 9 . .        of 16 bits: lane 0 has 0 1 2 3, lane 1 has 4 5 6 7, ...
//   row 1   |. 0 1 2|3 4 5 6|7 8 9 .        turn 1: lane 0 takes 3 from lane 1's vector, and gives it back where it is stored
//   row 2   |. . 0 1|2 3 4 5|6 7 8 9
#pragma once
#include "packed.h"

constexpr int kGroup = 32;                     // lanes side by side along the channels
constexpr int kNarrow = 8 / sizeof(elem_t);    // elements of a vector
constexpr int kSector = 32 / sizeof(elem_t);   // elements that are stored together
constexpr int kSpan = kGroup * kNarrow;        // channels of a group
constexpr int kAdvance = kSpan - kSector;      // channels to the next one, which has the others, too: no group needs what another holds
constexpr int kSectorVectors = kSector / kNarrow;
using narrow_t = Packed<elem_t, kNarrow>;

// Elements by which a row's first channel lies behind a boundary. `turn`: 1 to kNarrow, kNarrow where all rows lie alike.
__host__ __device__ constexpr int behind(int turn, int row) { return row * turn % kNarrow; }

// Vectors of a row of which a group has all channels, but for the first where the row lies behind: the last one if no row lies further behind.
__host__ __device__ constexpr int known_vectors(int turn, int row) {
    const int most = turn % 2 ? kNarrow - 1 : turn % kNarrow;
    return behind(turn, row) == most ? kGroup : kGroup - 1;
}

template <int kTurn>
struct TurnedRows {
    static constexpr int kPerWord = narrow_t::kPerWord, kBits = 32 / kPerWord;  // of an element

    // What memory holds, as channels: of the last lane those that its vector holds.
    __device__ static narrow_t channels(int row, const narrow_t& v) {
        const int by = behind(kTurn, row), lane = lane_id() % kGroup, from = lane_id() - lane + (lane + 1) % kGroup;
        narrow_t next = narrow_t::zero();
        for (int w = 0; w < 2; ++w)
            if (kPerWord * w < by) next.words[w] = shuffle(v.words[w], from);
        return shifted(v, next, by / kPerWord, by % kPerWord * kBits);
    }
    // The reverse: what belongs into memory; of the first lane what is its own.
    __device__ static narrow_t in_memory(int row, const narrow_t& v) {
        const int by = behind(kTurn, row), lane = lane_id() % kGroup, from = lane_id() - lane + (lane + kGroup - 1) % kGroup;
        narrow_t previous = narrow_t::zero();
        for (int w = 0; w < 2; ++w)
            if (kPerWord * (2 - w) < by + kPerWord) previous.words[w] = shuffle(v.words[w], from);
        const int word = (kNarrow - 1 - by) / kPerWord;
        return shifted(previous, v, word, (kNarrow - by - word * kPerWord) * kBits);
    }

private:
    // From bit `bits` of word `word` of two vectors on, one behind the other.
    __device__ static narrow_t shifted(const narrow_t& low, const narrow_t& high, int word, int bits) {
        const uint32_t first = word ? low.words[1] : low.words[0], second = word ? high.words[0] : low.words[1], third = word ? high.words[1] : high.words[0];
        return narrow_t{shift_words(first, second, bits), shift_words(second, third, bits)};
    }
};

// What a group stores of a row: the vectors [begin, end), and where the row begins or ends the channels that are no whole vector.
struct Stored {
    int begin, end;
    int rest_begin = 0, rest_end = 0;

    // `in_sector`: where in a sector the group's first vector lies, which begins `behind` elements before its first channel. Whole sectors of
    // the vectors that it knows; where those are one too few, two groups write parts of a sector.
    __host__ __device__ Stored(int in_sector, int behind, int known) {
        const int whole = in_sector ? kSectorVectors - in_sector : behind ? kSectorVectors : 0;
        begin = whole + kAdvance / kNarrow > known ? whole - 1 : whole;
        end = begin + kAdvance / kNarrow;
    }
    // From channel `from` on, where `channel` is the one at `row`, and the first vector known is that or the next.
    __device__ void start(int from, int channel, int known_from) {
        begin = (from - channel + kNarrow - 1) / kNarrow;
        if (begin < known_from) begin = known_from;
        rest_begin = from, rest_end = channel + begin * kNarrow;
    }
    // Not beyond channel `to`. The last group stores what is left, too.
    __device__ void stop(int to, int channel, bool is_last) {
        const int whole = (to - channel) >> (kNarrow == 4 ? 2 : 1);  // rounds down
        if (whole < end) end = whole;
        if (is_last) rest_begin = channel + end * kNarrow, rest_end = to;
    }
    __device__ uint32_t mask() const { return ones_from(begin) & ~ones_from(end); }  // a bit a lane
};

// Elements from `p` on to the next boundary of a sector.
__host__ __device__ inline int to_sector(const elem_t* p) { return static_cast<int>(-(reinterpret_cast<uintptr_t>(p) / sizeof(elem_t)) % kSector); }

// How the rows of a tile lie in the sectors of memory, and what follows from that for all groups that have no end of a row.
struct InSectors {
    static constexpr int kBits = 8;  // of a lane: at most so many steps
    int first = 0;                   // elements into a sector at which the first row begins
    uint32_t stores = 0;             // bit `step` of the kBits of lane `lane % 4`: whether lane 0 to 3 stores that step, and lane 28 to 31 does not

    // `stride`: elements from a row to the next, which turn by `turn`. Of the four ways to lay the rows, that by which the fewest of those
    // that are stored, from `halo` on, are a vector too few for their group.
    InSectors(int64_t stride, int turn, int halo, int steps) {
        int fewest = steps + 1;
        for (int begin = 0; begin < kSector; begin += kNarrow) {
            int cut = 0;
            uint32_t bits = 0;
            for (int step = 0; step < steps; ++step) {
                const int row = step + halo, by = behind(turn, row), in_sector = static_cast<int>((begin + row * stride) % kSector) / kNarrow;
                const Stored stored(in_sector, by, known_vectors(turn, row));
                cut += (stored.begin + in_sector) % kSectorVectors != 0;
                for (int lane = stored.begin; lane < kSectorVectors; ++lane) bits |= uint32_t{1} << (lane * kBits + step);
            }
            if (cut < fewest) fewest = cut, first = begin, stores = bits;
        }
    }
};
