// The emulation's runtime: fibres, barriers, wave exchanges, schedules. Compiled once; kernels link against it.
//
// Each OS thread takes blocks off the grid. The threads of a block begin one after the other on one fibre; when one of
// them has to wait (barrier, wave exchange), it stays behind on that fibre and another fibre begins the rest.
// So a kernel that never waits is a plain loop, and nobody has to say which kind it is.
#include "cc1d/emulation.h"

#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

using namespace cc1d_emulation;

namespace {

constexpr size_t kStackBytes = 64 * 1024;  // a guard page below catches an overflow
constexpr size_t kPage = 4096;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxWave = 64;

struct Worker;

struct Fibre {
    jmp_buf resume;
    Worker* worker;
    char* stack;
    dim3 thread;        // of the thread that waits here
    unsigned number;    // its number in the block
    int line;           // the barrier it waits at
};

struct Wave {
    unsigned lanes, arrived;
    WaveFunction leader;
    Fibre* waiting[kMaxWave];
    void* brought[kMaxWave];
};

// All that an OS thread needs to execute blocks. Kept between launches for its fibres.
struct Worker {
    Block block;
    const Launch* launch = nullptr;
    std::vector<std::unique_ptr<Fibre>> fibres;
    std::vector<Fibre*> idle, ready, at_barrier;
    std::vector<unsigned> order;
    std::vector<Wave> waves;
    Fibre* current = nullptr;
    jmp_buf home;
    std::string error;
    std::mt19937 random;

    ~Worker() {
        for (auto& f : fibres) munmap(f->stack - kPage, kStackBytes + kPage);
    }
};

std::mutex pool_mutex;
std::vector<std::unique_ptr<Worker>> pool;
std::atomic<int> schedule_order{0};
std::atomic<unsigned> schedule_seed{0};

unsigned number_of(const Block& b) { return (b.thread.z * b.block_dim.y + b.thread.y) * b.block_dim.x + b.thread.x; }

void fibre_main(unsigned low, unsigned high);

Fibre* new_fibre(Worker& w) {
    auto f = std::make_unique<Fibre>();
    void* memory = mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) {
        perror("cc1d emulation: no memory for a fibre");
        abort();
    }
    mprotect(memory, kPage, PROT_NONE);
    f->worker = &w;
    f->stack = static_cast<char*>(memory) + kPage;
    w.fibres.push_back(std::move(f));
    return w.fibres.back().get();
}

// A context is made once for each fibre; from then on it is left and entered by _setjmp and _longjmp,
// which is four times faster than swapcontext (no system call for the signal mask).
[[noreturn]] void enter_new(Worker& w) {
    Fibre* f = new_fibre(w);
    w.current = f;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = f->stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    const auto p = reinterpret_cast<uintptr_t>(f);
    makecontext(&context, reinterpret_cast<void (*)()>(fibre_main), 2, static_cast<unsigned>(p), static_cast<unsigned>(p >> 32));
    setcontext(&context);
    abort();
}

[[noreturn]] void enter(Worker& w, Fibre* f) {
    w.current = f;
    w.block.thread = f->thread;
    _longjmp(f->resume, 1);
}

void release_barrier(Worker& w) {
    for (Fibre* f : w.at_barrier)
        if (f->line != w.at_barrier[0]->line) {
            char text[200];
            snprintf(text, sizeof text, "divergent barrier: thread %u waits in line %d, thread %u in line %d",
                     w.at_barrier[0]->number, w.at_barrier[0]->line, f->number, f->line);
            w.error = text;
            return;
        }
    w.ready.swap(w.at_barrier);
    std::reverse(w.ready.begin(), w.ready.end());  // taken from the back
    if (schedule_order == 2) std::shuffle(w.ready.begin(), w.ready.end(), w.random);
}

void explain_deadlock(Worker& w) {
    char text[200];
    if (!w.at_barrier.empty())
        snprintf(text, sizeof text, "divergent barrier: %zu of %u threads wait in line %d (thread %u is one), %u have returned, the rest wait elsewhere",
                 w.at_barrier.size(), w.block.count, w.at_barrier[0]->line, w.at_barrier[0]->number, w.block.finished);
    else
        snprintf(text, sizeof text, "divergent wave: some lanes wait for others in a cross-lane operation, %u threads have returned", w.block.finished);
    w.error = text;
}

// Leaves the current fibre for whatever can run next. Does not come back; who waits has done its _setjmp before.
[[noreturn]] void run_next(Worker& w) {
    if (w.ready.empty() && w.block.started == w.block.count && w.block.finished < w.block.count) {
        if (w.at_barrier.size() == w.block.count) release_barrier(w);
        else explain_deadlock(w);
    }
    if (!w.error.empty()) _longjmp(w.home, 1);
    if (!w.ready.empty()) {
        Fibre* f = w.ready.back();
        w.ready.pop_back();
        enter(w, f);
    }
    if (w.block.started < w.block.count) {
        if (w.idle.empty()) enter_new(w);
        Fibre* f = w.idle.back();
        w.idle.pop_back();
        enter(w, f);
    }
    _longjmp(w.home, 1);
}

void fibre_main(unsigned low, unsigned high) {
    Fibre* f = reinterpret_cast<Fibre*>((static_cast<uintptr_t>(high) << 32) | low);
    Worker& w = *f->worker;
    for (;;) {
        w.launch->run_threads(*w.launch, w.block);
        w.idle.push_back(f);
        if (_setjmp(f->resume) == 0) run_next(w);
    }
}

Worker& this_worker() { return *reinterpret_cast<Worker*>(cc1d_block); }  // a Worker begins with its Block

Fibre* leave_thread(Worker& w) {
    Fibre* f = w.current;
    f->thread = w.block.thread;
    f->number = number_of(w.block);
    return f;
}

// The shared arrays of a kernel are the thread-local block of its library. Filled with NaN before each block,
// so that a kernel that reads what it never wrote gives itself away.
struct SharedArrays {
    const void* inside;  // an address in that library
    char* begin = nullptr;
    size_t bytes = 0;
};

int find_shared(dl_phdr_info* info, size_t, void* data) {
    auto& shared = *static_cast<SharedArrays*>(data);
    const auto address = reinterpret_cast<uintptr_t>(shared.inside);
    bool mine = false;
    size_t bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& header = info->dlpi_phdr[i];
        const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
        if (header.p_type == PT_LOAD && address >= begin && address < begin + header.p_memsz) mine = true;
        if (header.p_type == PT_TLS) bytes = header.p_memsz;
    }
    if (!mine) return 0;
    shared.begin = static_cast<char*>(info->dlpi_tls_data);
    shared.bytes = shared.begin ? bytes : 0;
    return 1;
}

void run_block(Worker& w, unsigned x, unsigned y, unsigned z) {
    w.block.block = dim3(x, y, z);
    w.block.thread = dim3(0, 0, 0);
    w.block.started = 0;
    w.block.finished = 0;
    for (Wave& wave : w.waves) wave.arrived = 0;
    if (schedule_order == 2) {
        w.random.seed(schedule_seed + x * 7919u);
        std::shuffle(w.order.begin(), w.order.end(), w.random);
    }
    if (_setjmp(w.home) == 0) run_next(w);
}

void prepare(Worker& w, const Launch& launch) {
    const unsigned count = launch.block.x * launch.block.y * launch.block.z;
    w.launch = &launch;
    w.error.clear();
    w.ready.clear();
    w.at_barrier.clear();
    w.block.block_dim = launch.block;
    w.block.grid_dim = launch.grid;
    w.block.count = count;
    w.waves.assign((count + launch.wave - 1) / launch.wave, Wave{});
    for (unsigned i = 0; i < w.waves.size(); ++i) w.waves[i].lanes = std::min(launch.wave, count - i * launch.wave);
    w.order.resize(count);
    std::iota(w.order.begin(), w.order.end(), 0u);
    if (schedule_order == 1) std::reverse(w.order.begin(), w.order.end());
    w.block.order = schedule_order ? w.order.data() : nullptr;
}

std::unique_ptr<Worker> take_worker() {
    std::lock_guard<std::mutex> lock(pool_mutex);
    if (pool.empty()) return std::make_unique<Worker>();
    auto w = std::move(pool.back());
    pool.pop_back();
    return w;
}

// A worker whose block went wrong is thrown away: some of its fibres still stand in the middle of a thread.
void give_back(std::unique_ptr<Worker> w) {
    if (!w->error.empty()) return;
    std::lock_guard<std::mutex> lock(pool_mutex);
    pool.push_back(std::move(w));
}

struct Grid {
    const Launch& launch;
    uint64_t blocks, chunk;
    std::atomic<uint64_t> next{0};
    std::mutex mutex;
    std::string error;
};

void run_blocks(Grid& grid) {
    auto w = take_worker();
    Block* const before = cc1d_block;
    cc1d_block = &w->block;
    prepare(*w, grid.launch);
    grid.launch.touch_shared();
    SharedArrays shared{grid.launch.name};
    dl_iterate_phdr(find_shared, &shared);
    const bool descending = schedule_order == 1;
    for (uint64_t begin; w->error.empty() && (begin = grid.next.fetch_add(grid.chunk)) < grid.blocks;)
        for (uint64_t i = begin; i < std::min(begin + grid.chunk, grid.blocks) && w->error.empty(); ++i) {
            const uint64_t b = descending ? grid.blocks - 1 - i : i;
            const dim3 g = grid.launch.grid;
            if (shared.bytes) memset(shared.begin, 0xff, shared.bytes);
            run_block(*w, b % g.x, b / g.x % g.y, b / g.x / g.y);
        }
    if (!w->error.empty()) {
        std::lock_guard<std::mutex> lock(grid.mutex);
        grid.error = w->error;
        grid.next = grid.blocks;
    }
    cc1d_block = before;
    give_back(std::move(w));
}

unsigned cores() {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

const char* keep(const std::string& text) {
    static thread_local std::string kept;
    kept = text;
    return kept.c_str();
}

}  // namespace

__thread Block* cc1d_block = nullptr;
static __thread LaunchHook on_launch = nullptr;

extern "C" void cc1d_on_launch(LaunchHook hook) { on_launch = hook; }

extern "C" const char* cc1d_emulate(const Launch* launch) {
    if (on_launch) {
        on_launch(launch);
        return nullptr;
    }
    const uint64_t threads = uint64_t{launch->block.x} * launch->block.y * launch->block.z;
    const uint64_t blocks = uint64_t{launch->grid.x} * launch->grid.y * launch->grid.z;
    if (threads == 0 || threads > kMaxThreads) return keep("invalid block: " + std::to_string(threads) + " threads, allowed 1 to 1024");
    if (blocks == 0) return keep("invalid grid: 0 blocks");
    // A few blocks at once keep the counter cheap; starting an OS thread is not worth it for a small grid.
    Grid grid{*launch, blocks, std::max<uint64_t>(1, blocks / (8 * cores()))};
    const unsigned helpers = blocks * threads < 8192 ? 0 : std::min<uint64_t>(cores(), blocks) - 1;
    std::vector<std::thread> team;
    for (unsigned i = 0; i < helpers; ++i) team.emplace_back([&] { run_blocks(grid); });
    run_blocks(grid);
    for (auto& t : team) t.join();
    return grid.error.empty() ? nullptr : keep(grid.error);
}

extern "C" void cc1d_block_barrier(int line) {
    Worker& w = this_worker();
    Fibre* f = leave_thread(w);
    f->line = line;
    w.at_barrier.push_back(f);
    if (_setjmp(f->resume) == 0) run_next(w);
}

extern "C" void cc1d_wave_exchange(void* mine, WaveFunction leader, void* argument) {
    Worker& w = this_worker();
    Fibre* f = leave_thread(w);
    Wave& wave = w.waves[f->number / w.launch->wave];
    if (wave.arrived == 0) wave.leader = leader;
    if (wave.leader != leader) {
        w.error = "divergent wave: lanes of one wave are in different cross-lane operations";
        _longjmp(w.home, 1);
    }
    const unsigned lane = f->number % w.launch->wave;
    wave.waiting[lane] = f;
    wave.brought[lane] = mine;
    if (++wave.arrived < wave.lanes) {
        if (_setjmp(f->resume) == 0) run_next(w);
        return;
    }
    wave.arrived = 0;
    leader(wave.brought, wave.lanes, argument);
    for (unsigned l = wave.lanes; l-- > 0;)
        if (l != lane) w.ready.push_back(wave.waiting[l]);
}

extern "C" unsigned cc1d_lane() {
    const Worker& w = this_worker();
    return number_of(w.block) % w.launch->wave;
}

extern "C" void cc1d_schedule(int order, unsigned seed) {
    schedule_order = order;
    schedule_seed = seed;
}
