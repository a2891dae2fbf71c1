// Builds without the race detector.

#include "runtime.h"

namespace emulator {
void races_begin_launch(const char*) {}
void races_begin_block(const void*, size_t, const void*, size_t) {}
void races_atomic(void*, size_t) {}
}  // namespace emulator
