// The part of CUDA that the kernels use, for g++: each CUDA thread is a fiber of runtime.cpp. Included before the kernels.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

// An instruction of a GPU, or a few: the steps inside are not the kernels'.
#define EMULATED __attribute__((no_sanitize_coverage))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
EMULATED inline int2 make_int2(int x, int y) { return {x, y}; }
EMULATED inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
EMULATED inline float2 make_float2(float x, float y) { return {x, y}; }
EMULATED inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
EMULATED inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
// one block runs at a time, so that its shared memory can be static; the section lets the runtime poison it
#define __shared__ __attribute__((section("emulated_shared")))

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

extern uint4* dynamic_shared;

enum class Collective { NONE, BALLOT, SHFL, SYNCWARP, SYNCTHREADS, SYNCTHREADS_COUNT };

// Blocks until all lanes of `mask`, or all threads of the block, are there with the same collective. `source` is the
// lane whose value is wanted (SHFL).
uint64_t rendezvous(Collective collective, unsigned mask, uint64_t value, int source);
unsigned atomic_add(unsigned* at, unsigned value);
int lane();

template <class T>
EMULATED inline T shuffle(unsigned mask, T value, int source) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = rendezvous(Collective::SHFL, mask, bits, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

using Invoke = void (*)(void** arguments);
struct Kernel {
  const char* name;
  Invoke invoke;
  const size_t* parameter_bytes;  // ends with 0
  Kernel* next;
  Kernel(const char* name, Invoke invoke, const size_t* parameter_bytes);
};

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(arguments[I])...);
}
template <class... A>
void unpack_and_call(void (*kernel)(A...), void** arguments) {
  call(kernel, arguments, std::index_sequence_for<A...>());
}
template <class... A>
const size_t* bytes_of(void (*)(A...)) {
  static const size_t bytes[] = {sizeof(A)..., 0};
  return bytes;
}

}  // namespace emulator

#define EMULATED_KERNEL(kernel) \
  static emulator::Kernel registered_##kernel( \
      #kernel, [](void** arguments) { emulator::unpack_and_call(kernel, arguments); }, emulator::bytes_of(kernel));

EMULATED inline void __syncthreads() { emulator::rendezvous(emulator::Collective::SYNCTHREADS, 0, 0, 0); }
EMULATED inline int __syncthreads_count(int predicate) {
  return (int)emulator::rendezvous(emulator::Collective::SYNCTHREADS_COUNT, 0, predicate != 0, 0);
}
EMULATED inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::rendezvous(emulator::Collective::SYNCWARP, mask, 0, 0); }
EMULATED inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return (unsigned)emulator::rendezvous(emulator::Collective::BALLOT, mask, predicate != 0, 0);
}
EMULATED inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
EMULATED inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class T> EMULATED T __shfl_sync(unsigned mask, T value, int source) { return emulator::shuffle(mask, value, source & 31); }
template <class T> EMULATED T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return emulator::shuffle(mask, value, (emulator::lane() ^ lane_mask) & 31);
}
template <class T> EMULATED T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  int lane = emulator::lane();
  return emulator::shuffle(mask, value, lane >= (int)delta ? lane - (int)delta : lane);
}
EMULATED inline unsigned atomicAdd(unsigned* at, unsigned value) { return emulator::atomic_add(at, value); }

EMULATED inline void __nanosleep(unsigned) {}

EMULATED inline int __popc(unsigned x) { return __builtin_popcount(x); }
EMULATED inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
EMULATED inline int __ffs(int x) { return __builtin_ffs(x); }
EMULATED inline unsigned __float_as_uint(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
EMULATED inline int __float_as_int(float x) { int bits; std::memcpy(&bits, &x, 4); return bits; }
EMULATED inline float __int_as_float(int bits) { float x; std::memcpy(&x, &bits, 4); return x; }
EMULATED inline double __longlong_as_double(long long bits) { double x; std::memcpy(&x, &bits, 8); return x; }

template <class T> EMULATED inline T min(T a, T b) { return b < a ? b : a; }
template <class T> EMULATED inline T max(T a, T b) { return a < b ? b : a; }
EMULATED inline float emulated_fmin(float a, float b) { return a != a ? b : b < a ? b : a; }
EMULATED inline float emulated_fmax(float a, float b) { return a != a ? b : a < b ? b : a; }
#define fminf emulated_fmin
#define fmaxf emulated_fmax

EMULATED inline float half_to_float(unsigned short bits) { _Float16 h; std::memcpy(&h, &bits, 2); return (float)h; }
EMULATED inline unsigned short float_to_half(float x) { _Float16 h = (_Float16)x; unsigned short bits; std::memcpy(&bits, &h, 2); return bits; }
