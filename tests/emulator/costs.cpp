// Counts what a launch does, as a proxy of what it costs where no GPU is at hand: blocks, bytes of global memory, barriers, and
// steps, which are the basic blocks that a thread enters. The compiler calls the hooks below (-fsanitize=thread,
// -fsanitize-coverage=trace-pc).

#include "runtime.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace emulator {
namespace {

struct Costs {
  uint64_t blocks, blocks_without_work, bytes_read, bytes_written, barriers, longest_thread_steps, steps;
};
struct Memory {
  uintptr_t begin, end;
};
Costs costs;
std::vector<Memory> memories;
std::vector<uint64_t> thread_steps;  // of the block
uint64_t written_before;             // by earlier blocks

void end_block() {
  if (thread_steps.empty()) return;
  costs.blocks++;
  costs.blocks_without_work += costs.bytes_written == written_before;
  written_before = costs.bytes_written;
  for (uint64_t steps : thread_steps) {
    costs.longest_thread_steps = std::max(costs.longest_thread_steps, steps);
    costs.steps += steps;
  }
  thread_steps.clear();
}

void access(void* at, size_t bytes, bool write) {
  if (!running()) return;
  for (const Memory& memory : memories)
    if ((uintptr_t)at >= memory.begin && (uintptr_t)at < memory.end) {
      (write ? costs.bytes_written : costs.bytes_read) += bytes;
      return;
    }
}

}  // namespace

void observe_launch(const char*) {
  costs = Costs();
  thread_steps.clear();
  written_before = 0;
}
void observe_block(const void*, size_t, const void*, size_t) {
  end_block();
  thread_steps.assign(1024, 0);
}
void observe_atomic(void* at, size_t bytes) {
  access(at, bytes, false);
  access(at, bytes, true);
}
void observe_barrier() { costs.barriers++; }
void observe_end() { end_block(); }

}  // namespace emulator

extern "C" {
void emulator_watch(const void* begin, size_t bytes, unsigned char*) {
  emulator::memories.push_back({(uintptr_t)begin, (uintptr_t)begin + bytes});
}
void emulator_forget_all() { emulator::memories.clear(); }
void emulator_costs(uint64_t* into) { *reinterpret_cast<emulator::Costs*>(into) = emulator::costs; }

void __sanitizer_cov_trace_pc() {
  if (emulator::running()) emulator::thread_steps[emulator::here().thread]++;
}
}

static void on_access(void* at, size_t bytes, bool write) { emulator::access(at, bytes, write); }
#include "memory_hooks.h"
