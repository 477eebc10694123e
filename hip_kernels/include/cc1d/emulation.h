// What the CPU platform and the emulation's runtime (hip_kernels/emulation/runtime.cpp) know of each other.
#pragma once
#include <stdint.h>

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cc1d_emulation {

// The block that this OS thread executes. Kernels read their indices from it.
struct Block {
    dim3 thread, block, block_dim, grid_dim;
    unsigned started, finished, count;  // threads begun so far; ended so far; threads of the block
    const unsigned* order;              // the order in which they begin, or null for ascending

    bool start_next() {
        if (started == count) return false;
        const unsigned i = order ? order[started] : started;
        ++started;
        if (block_dim.y == 1 && block_dim.z == 1) thread = dim3(i, 0, 0);
        else thread = dim3(i % block_dim.x, i / block_dim.x % block_dim.y, i / block_dim.x / block_dim.y);
        return true;
    }
};

// An argument of a kernel, by value.
struct Argument {
    const void* value;
    unsigned bytes;
    char kind;  // i: integer, f: floating point, p: pointer, s: struct
};

struct Launch {
    dim3 grid, block;
    unsigned wave;                                        // lanes of a wave
    void (*run_threads)(const Launch&, Block&);           // begins threads of the block until none is left
    void (*touch_shared)();                               // makes this OS thread's copy of the shared arrays exist
    const char* name;  // of the kernel, as in its symbol; it lies in the kernel's library
    const Argument* arguments;
    unsigned argument_count;
};

using LaunchHook = void (*)(const Launch*);

using WaveFunction = void (*)(void* const* lanes, unsigned count, void* argument);

}  // namespace cc1d_emulation

extern "C" {
extern __thread cc1d_emulation::Block* cc1d_block;

// Runs every block of the grid on all cores. Returns null, or what the kernel did wrong.
const char* cc1d_emulate(const cc1d_emulation::Launch*);

// From now on this OS thread's launches are told to `hook` and not executed; null: executed again.
void cc1d_on_launch(cc1d_emulation::LaunchHook hook);

// Waits until every thread of the block has come to the same barrier (the line in the source names it).
void cc1d_block_barrier(int line);

// Waits until every lane of the wave has come here; the last one calls `leader` with what each lane brought.
void cc1d_wave_exchange(void* mine, cc1d_emulation::WaveFunction leader, void* argument);

// Order in which threads and blocks run: 0 ascending, 1 descending, 2 random from `seed`.
void cc1d_schedule(int order, unsigned seed);
unsigned cc1d_lane();
}
