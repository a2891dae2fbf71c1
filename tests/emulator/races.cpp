// A race detector that knows CUDA: the entry points that g++ -fsanitize=thread calls at every access. Two accesses to a
// byte, one of them a write, need a barrier between them: __syncthreads within a block, __syncwarp within a warp, nothing
// helps between blocks. A byte of a buffer must be written, in this launch or before, when it is read. libtsan itself would take fibers for one thread, or drown in them.

#include "runtime.h"

#include <cstdint>
#include <vector>

namespace emulator {
namespace {

struct Access {
  Place place;
  bool atomic = false;
};
struct Shadow {
  Access write, read, other_read;  // other_read: the last read by another thread than `read`
};
struct Memory {
  uintptr_t begin, end;
  const char* what;
  int number;
  std::vector<Shadow> shadow;
  unsigned char* written;  // of every byte, kept by the tests from launch to launch; null: all are
};
std::vector<Memory> globals, shared;

bool ordered(const Place& before, const Place& now) {
  if (before.block < 0) return true;
  if (before.block != now.block) return false;
  if (before.thread == now.thread || before.block_epoch < now.block_epoch) return true;
  return before.thread / 32 == now.thread / 32 && before.warp_epoch < now.warp_epoch;
}

void check(const Memory& memory, uintptr_t at, const Access& before, const Place& now, bool atomic, const char* kinds) {
  if (ordered(before.place, now) || (atomic && before.atomic)) return;
  fail("race (%s) at byte %zu of %s %d: thread %d of block %d and thread %d of block %d, no barrier between them", kinds,
       (size_t)(at - memory.begin), memory.what, memory.number, before.place.thread, before.place.block, now.thread, now.block);
}

void access(void* address, size_t bytes, bool write, bool atomic) {
  if (!running()) return;
  uintptr_t begin = (uintptr_t)address;
  for (auto* memories : {&shared, &globals})
    for (Memory& memory : *memories) {
      if (begin < memory.begin || begin >= memory.end) continue;
      Place now = here();
      for (uintptr_t at = begin; at < begin + bytes && at < memory.end; at++) {
        Shadow& shadow = memory.shadow[at - memory.begin];
        if (memory.written != nullptr) {
          unsigned char& written = memory.written[at - memory.begin];
          if (!written && (atomic || !write))
            fail("byte %zu of %s %d is read by thread %d of block %d, but nobody wrote it", (size_t)(at - memory.begin), memory.what,
                 memory.number, now.thread, now.block);
          written = 1;
        }
        check(memory, at, shadow.write, now, atomic, write ? "write after write" : "read after write");
        if (write) {
          check(memory, at, shadow.read, now, atomic, "write after read");
          check(memory, at, shadow.other_read, now, atomic, "write after read");
          shadow.write = {now, atomic};
        } else {
          if (shadow.read.place.thread != now.thread || shadow.read.place.block != now.block) shadow.other_read = shadow.read;
          shadow.read = {now, atomic};
        }
      }
      return;
    }
}

void watch(std::vector<Memory>& memories, const void* begin, size_t bytes, const char* what, unsigned char* written = nullptr) {
  if (bytes > 0)
    memories.push_back({(uintptr_t)begin, (uintptr_t)begin + bytes, what, (int)memories.size(), std::vector<Shadow>(bytes), written});
}

}  // namespace

void observe_launch(const char*) {
  for (Memory& memory : globals) memory.shadow.assign(memory.shadow.size(), Shadow());
}

void observe_block(const void* fixed, size_t fixed_bytes, const void* dynamic, size_t dynamic_bytes) {
  shared.clear();
  watch(shared, fixed, fixed_bytes, "shared memory");
  watch(shared, dynamic, dynamic_bytes, "dynamic shared memory");
}

void observe_atomic(void* at, size_t bytes) { access(at, bytes, true, true); }
void observe_barrier() {}
void observe_end() {}

}  // namespace emulator

extern "C" {
void emulator_watch(const void* begin, size_t bytes, unsigned char* written) {
  emulator::watch(emulator::globals, begin, bytes, "buffer", written);
}
void emulator_forget_all() { emulator::globals.clear(); }
}

static void on_access(void* at, size_t bytes, bool write) { emulator::access(at, bytes, write, false); }
#include "memory_hooks.h"
