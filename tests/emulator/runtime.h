// Between runtime.cpp and what observes a launch: races.cpp, costs.cpp, or nothing.
#pragma once

#include <cstddef>

namespace emulator {

struct Place {  // of a memory access: who, and after which barriers
  int block = -1, thread = -1, block_epoch = 0, warp_epoch = 0;
};
Place here();
bool running();
[[noreturn]] void fail(const char* format, ...);

// Implemented by the observer.
void observe_launch(const char* kernel);
void observe_block(const void* shared, size_t shared_bytes, const void* dynamic, size_t dynamic_bytes);
void observe_atomic(void* at, size_t bytes);
void observe_barrier();  // that all threads of a block have reached
void observe_end();      // of a launch

}  // namespace emulator
