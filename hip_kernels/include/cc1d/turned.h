// Rows of 16-bit channels that begin anywhere, in whole vectors: what is missing at either end of a lane's vector the next lane has.
//
// Memory is moved in vectors of four elements on their own alignment, and stored in whole sectors of 32 bytes: two waves that write parts of
// one cost the L2 more than reading a sector twice. A group of 32 lanes takes its channels from one on where its first row lies on a
// boundary; the next row lies `turn` elements further behind one than the row before it (its stride, modulo 4), which is known when the
// kernel is compiled, so that a row is shifted by a constant. A lane's channels are the same in all rows.
//
//   row 0   |0 1 2 3|4 5 6 7|8 9 . .        lane 0 has 0 1 2 3, lane 1 has 4 5 6 7, ...
//   row 1   |. 0 1 2|3 4 5 6|7 8 9 .        turn 1: lane 0 takes 3 from lane 1's vector, and gives it back where it is stored
//   row 2   |. . 0 1|2 3 4 5|6 7 8 9
#pragma once
#include "packed.h"

constexpr int kGroup = 32;                     // lanes side by side along the channels
constexpr int kFour = 4;                       // elements of a vector
constexpr int kSector = 16;                    // elements that are stored together
constexpr int kSpan = kGroup * kFour;          // channels of a group
constexpr int kAdvance = kSpan - kSector;      // channels to the next one, which has the others, too: no group needs what another holds
constexpr int kKnown = kGroup - 1;             // vectors of a row of which a group has all channels, wherever the row begins
using four_t = Packed<elem_t, kFour>;

// `kTurn`: 1 to 4, 4 where all rows lie alike; or 0: `turn` says it.
template <int kTurn>
struct TurnedRows {
    uint32_t turn;

    // Elements by which the group's first channel lies behind a boundary.
    __device__ int behind(int row) const { return static_cast<int>(row * (kTurn ? kTurn : turn) % kFour); }

    // What memory holds, as channels: of the last lane those that its vector holds.
    __device__ four_t channels(int row, const four_t& v) const {
        const int by = behind(row), lane = lane_id() % kGroup, from = lane_id() - lane + (lane + 1) % kGroup;
        four_t next = four_t::zero();
        for (int w = 0; w < 2; ++w)
            if (!kTurn || 2 * w < by) next.words[w] = shuffle(v.words[w], from);
        return shifted(v, next, by / 2, by % 2 * 16);
    }
    // The reverse: what belongs into memory; of the first lane what is its own.
    __device__ four_t in_memory(int row, const four_t& v) const {
        const int by = behind(row), lane = lane_id() % kGroup, from = lane_id() - lane + (lane + kGroup - 1) % kGroup;
        four_t previous = four_t::zero();
        for (int w = 0; w < 2; ++w)
            if (!kTurn || 2 * (2 - w) < by + 2) previous.words[w] = shuffle(v.words[w], from);
        return shifted(previous, v, (kFour - 1 - by) / 2, by % 2 ? 16 : 32);
    }

private:
    // From bit `bits` of word `word` of two vectors on, one behind the other.
    __device__ static four_t shifted(const four_t& low, const four_t& high, int word, int bits) {
        const uint32_t first = word ? low.words[1] : low.words[0], second = word ? high.words[0] : low.words[1], third = word ? high.words[1] : high.words[0];
        return four_t{shift_words(first, second, bits), shift_words(second, third, bits)};
    }
};

// Which of a row's vectors a group stores.
struct Stored {
    int begin, end;

    // `row`: the first of them, in memory, `behind` elements before the group's first channel. Whole sectors, and what is known beside
    // them where no other group comes: at the ends of the row.
    __device__ Stored(const elem_t* row, int behind, bool starts, bool ends) {
        const auto in_sector = static_cast<int>(reinterpret_cast<uintptr_t>(row) / sizeof(four_t) % (kSector / kFour));
        const int whole = in_sector ? kSector / kFour - in_sector : behind ? kSector / kFour - 1 : 0;  // 4 would ask for a vector too many
        begin = starts ? behind > 0 : whole;
        end = ends ? kKnown : whole + kAdvance / kFour;
    }
    __device__ uint32_t mask() const { return (~uint32_t{0} << begin) & ~(~uint32_t{0} << end); }  // a bit a lane
};
