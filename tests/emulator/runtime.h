// Between runtime.cpp and races.cpp.
#pragma once

#include <cstddef>

namespace emulator {

struct Place {  // of a memory access: who, and after which barriers
  int block = -1, thread = -1, block_epoch = 0, warp_epoch = 0;
};
Place here();
bool running();
[[noreturn]] void fail(const char* format, ...);

// Implemented by races.cpp, or empty.
void races_begin_launch(const char* kernel);
void races_begin_block(const void* shared, size_t shared_bytes, const void* dynamic, size_t dynamic_bytes);
void races_atomic(void* at, size_t bytes);

}  // namespace emulator
