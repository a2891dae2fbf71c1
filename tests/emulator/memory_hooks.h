// What the compiler calls at every access to memory (-fsanitize=thread), handed to `on_access`, which whoever includes this defines
// beforehand.
#pragma once

#include <cstddef>

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
#define ACCESS(bytes)                                                       \
  void __tsan_read##bytes(void* at) { on_access(at, bytes, false); }        \
  void __tsan_write##bytes(void* at) { on_access(at, bytes, true); }        \
  void __tsan_unaligned_read##bytes(void* at) { on_access(at, bytes, false); } \
  void __tsan_unaligned_write##bytes(void* at) { on_access(at, bytes, true); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* at, size_t bytes) { on_access(at, bytes, false); }
void __tsan_write_range(void* at, size_t bytes) { on_access(at, bytes, true); }
}
