// Fibers, rendezvous and launches. Blocks run one after another; within a block a fiber runs until it has to wait.

#include "cuda_emulator.h"
#include "runtime.h"

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {
extern char shared_begin[] __asm__("__start_emulated_shared") __attribute__((weak));
extern char shared_end[] __asm__("__stop_emulated_shared") __attribute__((weak));
uint4* dynamic_shared;

namespace {

constexpr size_t STACK_BYTES = 64 * 1024;
constexpr unsigned MAX_THREADS = 1024;
constexpr size_t MAX_DYNAMIC_BYTES = 48 * 1024, GUARD_BYTES = 1 << 20;

#if defined(__x86_64__)
// 20 times faster than swapcontext, which asks the kernel for the signal mask
extern "C" void emulator_switch(void** save, void* load);
__asm__(R"(
.text
.globl emulator_switch
.hidden emulator_switch
emulator_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
struct Context {
  void* stack_pointer;
  void start(char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES);
    *--top = nullptr;  // entry never returns; keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    stack_pointer = top;
  }
  void switch_to(Context& other) { emulator_switch(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
  ucontext_t context;
  void start(char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context, &other.context); }
};
#endif

struct Fiber {
  Context context;
  uint3 index;
  Collective waiting;
  uint64_t value, result;
  int source;
  bool finished;
};

struct Gathering {  // of a warp, or of the block
  Collective collective = Collective::NONE;
  unsigned mask = 0, arrived = 0;
};

enum Schedule { FORWARD, REVERSE, RANDOM };

Fiber fibers[MAX_THREADS];
Gathering warps[MAX_THREADS / 32], whole_block;
int warp_epochs[MAX_THREADS / 32], block_epoch;
std::vector<int> ready;
size_t next_ready;
unsigned threads, unfinished;
int current, block_number;
Context launcher;
char* stacks;
bool in_launch;
char message[512];
Schedule schedule;
uint64_t random_state;
Kernel* kernels;
const Kernel* kernel;
void** kernel_arguments;

uint64_t random_bits() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

void make_ready(int first, int count, unsigned mask, int except) {
  for (int i = 0; i < count; i++) {
    int n = schedule == REVERSE ? first + count - 1 - i : first + i;
    if (n != except && (mask >> (n - first) & 1 || count > 32)) ready.push_back(n);
  }
}

int take_ready() {
  if (schedule == RANDOM) std::swap(ready[next_ready], ready[next_ready + random_bits() % (ready.size() - next_ready)]);
  int taken = ready[next_ready++];
  if (next_ready == ready.size()) {
    ready.clear();
    next_ready = 0;
  }
  return taken;
}

const char* name_of(Collective collective) {
  const char* names[] = {"nothing", "__ballot_sync", "__shfl_sync", "__syncwarp", "__syncthreads", "__syncthreads_count"};
  return names[(int)collective];
}

void resume(Context& from, int next) {
  current = next;
  threadIdx = fibers[next].index;
  from.switch_to(fibers[next].context);
}

// Leaves the current fiber for one that can run.
void wait() {
  Fiber& self = fibers[current];
  if (next_ready == ready.size()) {
    for (unsigned i = 0; i < threads; i++)
      if (fibers[i].waiting != Collective::NONE)
        fail("deadlock in block %d: thread %u waits in %s for threads that have ended or wait elsewhere", block_number, i,
             name_of(fibers[i].waiting));
    fail("deadlock");
  }
  int next = take_ready();
  if (&fibers[next] != &self) resume(self.context, next);
}

void run_thread() {
  kernel->invoke(kernel_arguments);
  Fiber& self = fibers[current];
  self.finished = true;
  if (--unfinished == 0) self.context.switch_to(launcher);
  wait();
  __builtin_unreachable();
}

void meet_warp(Fiber& self) {
  int warp = current / 32;
  Gathering& gathering = warps[warp];
  if (gathering.arrived != gathering.mask) return wait();
  Fiber* lanes = fibers + warp * 32;
  uint64_t ballot = 0;
  for (int i = 0; i < 32; i++)
    if (gathering.mask >> i & 1) ballot |= (lanes[i].value & 1) << i;
  for (int i = 0; i < 32; i++) {
    if (!(gathering.mask >> i & 1)) continue;
    lanes[i].waiting = Collective::NONE;
    if (gathering.collective == Collective::SHFL) {
      if (!(gathering.mask >> lanes[i].source & 1)) fail("__shfl_sync reads lane %d, which is not in its mask", lanes[i].source);
      lanes[i].result = lanes[lanes[i].source].value;
    } else {
      lanes[i].result = ballot;
    }
  }
  if (gathering.collective == Collective::SYNCWARP) warp_epochs[warp]++;  // only this one orders memory
  unsigned mask = gathering.mask;
  gathering = Gathering();
  // all of them wait their turn, so that no order of lanes is favoured
  make_ready(warp * 32, 32, mask, -1);
  (void)self;
  wait();
}

void meet_block() {
  if (whole_block.arrived != threads) return wait();
  uint64_t sum = 0;
  for (unsigned i = 0; i < threads; i++) sum += fibers[i].value;
  for (unsigned i = 0; i < threads; i++) {
    fibers[i].result = sum;
    fibers[i].waiting = Collective::NONE;
  }
  block_epoch++;
  observe_barrier();
  whole_block = Gathering();
  make_ready(0, (int)threads, 0xffffffffu, -1);
  wait();
}

void run_block(size_t dynamic_bytes) {
  for (auto& warp : warps) warp = Gathering();
  whole_block = Gathering();
  for (auto& epoch : warp_epochs) epoch = 0;
  block_epoch = 0;
  unfinished = threads;
  ready.clear();
  next_ready = 0;
  volatile char* poisoned = shared_begin;
  for (size_t i = 0, n = shared_end - shared_begin; i < n; i++) poisoned[i] = (char)0xff;
  std::memset((void*)dynamic_shared, 0xff, dynamic_bytes);
  observe_block(shared_begin, shared_end - shared_begin, dynamic_shared, dynamic_bytes);
  for (unsigned i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    fiber.waiting = Collective::NONE;
    fiber.finished = false;
    fiber.context.start(stacks + i * STACK_BYTES, run_thread);
  }
  make_ready(0, (int)threads, 0xffffffffu, -1);
  resume(launcher, take_ready());
}

void run_blocks(const unsigned* grid, size_t dynamic_bytes) {
  unsigned blocks = grid[0] * grid[1] * grid[2];
  unsigned offset = schedule == RANDOM ? random_bits() % blocks : 0;
  for (unsigned i = 0; i < blocks && message[0] == 0; i++) {
    block_number = (int)(schedule == REVERSE ? blocks - 1 - i : (i + offset) % blocks);
    blockIdx = {block_number % grid[0], block_number / grid[0] % grid[1], block_number / (grid[0] * grid[1])};
    run_block(dynamic_bytes);
  }
}

// What would end the process ends the launch: faults, abort, and a loop that outlasts its share of processor time.
double limit_seconds;  // 0: nothing is caught
sigjmp_buf way_out;
pthread_t launching;
constexpr int CAUGHT[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGVTALRM};
constexpr int NUM_CAUGHT = sizeof CAUGHT / sizeof *CAUGHT;
struct sigaction others[NUM_CAUGHT];
stack_t other_stack;
itimerval other_timer;
char signal_stack[STACK_BYTES];

void on_signal(int number, siginfo_t* info, void*) {
  if (!pthread_equal(pthread_self(), launching)) {
    if (number == SIGVTALRM) {
      pthread_kill(launching, number);  // the timer is the process's
    } else {
      std::signal(number, SIG_DFL);  // none of ours: it happens again, and is what it always was
    }
    return;
  }
  char what[96];
  if (number == SIGVTALRM)
    std::snprintf(what, sizeof what, "it does not end: stopped after %g s of processor time", limit_seconds);
  else if (number == SIGSEGV || number == SIGBUS)
    std::snprintf(what, sizeof what, "access outside of its buffers, at %p", info->si_addr);
  else
    std::snprintf(what, sizeof what, "%s", strsignal(number));
  std::snprintf(message, sizeof message, "%s: %s (thread %d of block %d)", kernel->name, what, current, block_number);
  siglongjmp(way_out, 1);
}

void begin_catching() {
  launching = pthread_self();
  stack_t stack = {};
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, &other_stack);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < NUM_CAUGHT; i++) sigaction(CAUGHT[i], &action, &others[i]);
  itimerval timer = {};
  timer.it_value.tv_sec = (time_t)limit_seconds;
  timer.it_value.tv_usec = (suseconds_t)((limit_seconds - (double)timer.it_value.tv_sec) * 1e6);
  setitimer(ITIMER_VIRTUAL, &timer, &other_timer);
}

// The end of dynamic shared memory, which lies between addresses that fault: what leaves it must not break the heap, as a launch
// that is ended there may hold malloc's lock.
char* shared_end_before_guard() {
  static char* memory = nullptr;
  if (memory == nullptr) {
    memory = (char*)mmap(nullptr, MAX_DYNAMIC_BYTES + 2 * GUARD_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    mprotect(memory + GUARD_BYTES, MAX_DYNAMIC_BYTES, PROT_READ | PROT_WRITE);
  }
  return memory + GUARD_BYTES + MAX_DYNAMIC_BYTES;
}

void end_catching() {
  setitimer(ITIMER_VIRTUAL, &other_timer, nullptr);
  for (int i = 0; i < NUM_CAUGHT; i++) sigaction(CAUGHT[i], &others[i], nullptr);
  sigaltstack(&other_stack, nullptr);
}

}  // namespace

Kernel::Kernel(const char* name, Invoke invoke, const size_t* parameter_bytes)
    : name(name), invoke(invoke), parameter_bytes(parameter_bytes), next(kernels) {
  kernels = this;
}

const Kernel* find(const char* name) {
  const Kernel* found = kernels;
  while (found != nullptr && std::strcmp(found->name, name) != 0) found = found->next;
  return found;
}

int lane() { return current % 32; }

bool running() { return in_launch; }

Place here() { return {block_number, current, block_epoch, warp_epochs[current / 32]}; }

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int used = std::snprintf(message, sizeof message, "%s: ", kernel->name);
  std::vsnprintf(message + used, sizeof message - used, format, arguments);
  va_end(arguments);
  Context abandoned;
  abandoned.switch_to(launcher);
  std::abort();
}

uint64_t rendezvous(Collective collective, unsigned mask, uint64_t value, int source) {
  Fiber& self = fibers[current];
  bool of_block = collective == Collective::SYNCTHREADS || collective == Collective::SYNCTHREADS_COUNT;
  Gathering& gathering = of_block ? whole_block : warps[current / 32];
  if (gathering.collective == Collective::NONE) {
    gathering.collective = collective;
    gathering.mask = mask;
  }
  if (gathering.collective != collective || gathering.mask != mask)
    fail("thread %d of block %d is at %s while others are at %s", current, block_number, name_of(collective),
         name_of(gathering.collective));
  if (!of_block && !(mask >> current % 32 & 1)) fail("lane %d is not in the mask of its %s", current % 32, name_of(collective));
  self.value = value;
  self.source = source;
  self.waiting = collective;
  if (of_block) {
    gathering.arrived++;
    meet_block();
  } else {
    gathering.arrived |= 1u << current % 32;
    meet_warp(self);
  }
  return self.result;
}

unsigned atomic_add(unsigned* at, unsigned value) {
  observe_atomic(at, sizeof *at);
  unsigned before = *at;
  *at += value;
  return before;
}

}  // namespace emulator

// Bytes of each parameter, ending with 0; nullptr for a kernel that there is not.
extern "C" const size_t* emulator_parameter_bytes(const char* name) {
  const emulator::Kernel* found = emulator::find(name);
  return found == nullptr ? nullptr : found->parameter_bytes;
}

// From now on, launches catch what would end the process, and a kernel may take so much processor time.
extern "C" void emulator_catch(double seconds) { emulator::limit_seconds = seconds; }

// Runs a kernel to its end. `schedule_seed`: 0 forward, 1 reverse, else random. Returns nullptr, or what went wrong.
extern "C" const char* emulator_launch(const char* name, const unsigned* grid, const unsigned* block, size_t dynamic_bytes,
                                       void** arguments, uint64_t schedule_seed) {
  using namespace emulator;
  kernel = find(name);
  if (kernel == nullptr) return "no such kernel";
  threads = block[0] * block[1] * block[2];
  if (threads == 0 || threads > MAX_THREADS) return "a block must have 1 to 1024 threads";
  if (dynamic_bytes > MAX_DYNAMIC_BYTES) return "a block must have 48 KiB of dynamic shared memory at most";
  if (stacks == nullptr)
    stacks = (char*)mmap(nullptr, MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  kernel_arguments = arguments;
  schedule = schedule_seed == 0 ? FORWARD : schedule_seed == 1 ? REVERSE : RANDOM;
  random_state = schedule_seed * 0x9e3779b97f4a7c15ull | 1;
  message[0] = 0;
  size_t rounded = (dynamic_bytes + 15) / 16 * 16;
  dynamic_shared = (uint4*)(limit_seconds == 0 ? std::aligned_alloc(16, rounded) : shared_end_before_guard() - rounded);
  observe_launch(name);
  ready.reserve(2 * MAX_THREADS);  // a launch that is left in its midst must hold no lock of malloc
  in_launch = true;
  if (limit_seconds == 0) {
    run_blocks(grid, dynamic_bytes);
  } else {
    if (sigsetjmp(way_out, 1) == 0) {
      begin_catching();
      run_blocks(grid, dynamic_bytes);
    }
    end_catching();
  }
  observe_end();
  in_launch = false;
  if (limit_seconds == 0) std::free((void*)dynamic_shared);  // the sanitizer's
  return message[0] != 0 ? message : nullptr;
}
