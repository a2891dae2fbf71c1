// Contexts, memory, streams and captures of the stand-in libcuda.cpp.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>
#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

namespace {

enum Result {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
  INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
  ILLEGAL_ADDRESS = 700, CONTEXT_IS_DESTROYED = 709, ALREADY_REGISTERED = 712, NOT_REGISTERED = 713,
  LAUNCH_FAILED = 719, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901, CAPTURE_UNJOINED = 904, CAPTURED_EVENT = 907, UNKNOWN = 999,
};
struct Description { int code; const char *name, *text; };
const Description DESCRIPTIONS[] = {
  {SUCCESS, "CUDA_SUCCESS", "no error"},
  {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
  {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
  {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
  {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
  {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
  {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
  {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
  {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
  {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
  {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
  {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
  {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
  {CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
  {ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
  {NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
  {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
  {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
  {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
  {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
  {CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
  {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
  {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

constexpr unsigned char POISON = 0xA5, GUARD = 0xE7;
constexpr size_t GUARD_BYTES = 256;

struct Node {
  std::function<Result()> run;
  std::function<void()> announce;  // when it is enqueued: what it will write is garbage from then on
};
struct Graph { std::vector<Node> nodes; };
struct Stream;
struct Capture {
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();
  Stream* origin;
  bool invalid = false;
  std::set<Stream*> forks, unjoined;
};
struct Stream {
  std::deque<std::pair<uint64_t, Node>> queue;
  uint64_t enqueued = 0;
  std::shared_ptr<Capture> capture;
};
struct Event {
  Stream* stream = nullptr;  // null before the first record, and once that stream is gone
  uint64_t sequence = 0;
  std::shared_ptr<Capture> capture;
  bool timing = true, done = true;
  std::chrono::steady_clock::time_point at;
};
struct Module { void* library; };
struct Function { Module* module; std::string name; };
struct Memory { size_t bytes; bool pinned; bool registered = false; };
struct Context {
  int retained = 0, device = 0;
  bool active = false;  // false after a reset, until it is retained again
  std::map<uintptr_t, Memory> memory;
  std::set<Stream*> streams;
  std::set<Event*> events;
  std::set<Module*> modules;
  std::set<Function*> functions;
  std::set<Graph*> graphs;  // executable ones
  std::map<Graph*, std::shared_ptr<Graph>> graph_owners;
  Stream default_stream;
};

std::recursive_mutex mutex;
Context contexts[16];
thread_local std::vector<Context*> stack;
thread_local std::set<Stream*> captured_here;
bool initialized;
Result sticky = SUCCESS;
std::map<std::string, std::pair<int, Result>> failures;  // function -> calls until it fails, and how

long setting(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != 0 ? std::atol(text) : otherwise;
}
int device_count() { return (int)setting("STANDIN_CUDA_DEVICES", 1); }
size_t memory_bytes() { return (size_t)setting("STANDIN_CUDA_MEMORY_MB", 4096) << 20; }

Result injected(const char* function) {
  auto found = failures.find(function);
  if (found == failures.end() || --found->second.first > 0) return SUCCESS;
  Result result = found->second.second;
  failures.erase(found);
  if (result >= ILLEGAL_ADDRESS && result < 720 && result != CONTEXT_IS_DESTROYED) sticky = result;
  return result;
}

// Begins each function: one at a time, initialized, no earlier fatal error, and a living context where one is needed.
#define ENTER_ANY \
  std::lock_guard<std::recursive_mutex> lock(mutex); \
  if (!initialized) return NOT_INITIALIZED; \
  if (sticky != SUCCESS) return sticky; \
  if (Result failure = injected(__func__)) return failure
#define ENTER \
  ENTER_ANY; \
  if (stack.empty()) return INVALID_CONTEXT; \
  Context& context = *stack.back(); \
  if (!context.active) return CONTEXT_IS_DESTROYED
// What must not be called in a thread that captures: it breaks the capture.
#define NOT_WHILE_CAPTURING \
  if (!captured_here.empty()) { \
    for (Stream* captured : captured_here) captured->capture->invalid = true; \
    return CAPTURE_UNSUPPORTED; \
  }

Stream* find(Context& context, void* handle) {
  if (handle == nullptr || handle == (void*)1 || handle == (void*)2) return &context.default_stream;
  return context.streams.count((Stream*)handle) ? (Stream*)handle : nullptr;
}

Result drain(Stream& stream, uint64_t until) {
  while (!stream.queue.empty() && stream.queue.front().first <= until) {
    Node node = std::move(stream.queue.front().second);
    stream.queue.pop_front();
    if (Result failed = node.run()) {
      sticky = failed;
      return failed;
    }
  }
  return SUCCESS;
}
Result drain_all(Context& context) {
  if (Result failed = drain(context.default_stream, UINT64_MAX)) return failed;
  for (Stream* stream : context.streams)
    if (Result failed = drain(*stream, UINT64_MAX)) return failed;
  return SUCCESS;
}

Result enqueue(Stream& stream, Node node) {
  if (stream.capture) {
    if (stream.capture->invalid) return CAPTURE_INVALIDATED;
    stream.capture->graph->nodes.push_back(std::move(node));
    if (&stream != stream.capture->origin) stream.capture->unjoined.insert(&stream);
    return SUCCESS;
  }
  if (node.announce) node.announce();
  stream.queue.emplace_back(++stream.enqueued, std::move(node));
  return setting("STANDIN_CUDA_EAGER", 0) ? drain(stream, UINT64_MAX) : SUCCESS;
}

// The allocation that a range lies in; null where it starts in none, `beyond` where it ends outside.
const Memory* within(Context& context, uintptr_t address, size_t bytes, bool* beyond) {
  *beyond = false;
  auto next = context.memory.upper_bound(address);
  if (next == context.memory.begin()) return nullptr;
  auto found = std::prev(next);
  size_t offset = address - found->first;
  if (offset >= found->second.bytes) return nullptr;
  *beyond = bytes > found->second.bytes - offset;
  return &found->second;
}
bool is_memory(Context& context, uintptr_t address, size_t bytes, bool pinned) {
  bool beyond;
  const Memory* found = within(context, address, bytes, &beyond);
  return found != nullptr && found->pinned == pinned && !beyond;
}

Result allocate(Context& context, size_t bytes, bool pinned, void** result) {
  if (bytes == 0) return INVALID_VALUE;
  size_t used = bytes;
  for (auto& entry : context.memory)
    if (entry.second.pinned == pinned) used += entry.second.bytes;
  if (used > memory_bytes()) return OUT_OF_MEMORY;
  char* memory = (char*)std::aligned_alloc(256, (bytes + GUARD_BYTES + 255) / 256 * 256);
  if (memory == nullptr) return OUT_OF_MEMORY;
  std::memset(memory, POISON, bytes);
  std::memset(memory + bytes, GUARD, GUARD_BYTES);
  context.memory[(uintptr_t)memory] = {bytes, pinned};
  *result = memory;
  return SUCCESS;
}

void release(std::map<uintptr_t, Memory>::value_type& entry) {
  if (entry.second.registered) return;  // its owner's
  const unsigned char* guard = (const unsigned char*)(entry.first + entry.second.bytes);
  for (size_t i = 0; i < GUARD_BYTES; i++)
    if (guard[i] != GUARD) {
      std::fprintf(stderr, "standin: written %zu bytes beyond an allocation of %zu bytes\n", i, entry.second.bytes);
      std::abort();
    }
  std::memset((void*)entry.first, POISON, entry.second.bytes);
  std::free((void*)entry.first);
}

Result deallocate(Context& context, uintptr_t address, bool pinned) {
  auto found = context.memory.find(address);
  if (found == context.memory.end() || found->second.pinned != pinned || found->second.registered) return INVALID_VALUE;
  if (Result failed = drain_all(context)) return failed;
  release(*found);
  context.memory.erase(found);
  return SUCCESS;
}

Result register_host(Context& context, uintptr_t address, size_t bytes) {
  size_t used = bytes;
  for (auto& entry : context.memory) {
    if (entry.second.pinned) used += entry.second.bytes;
    if (entry.first < address + bytes && address < entry.first + entry.second.bytes) return ALREADY_REGISTERED;
  }
  if (bytes == 0) return INVALID_VALUE;
  if (used > memory_bytes()) return OUT_OF_MEMORY;
  context.memory[address] = {bytes, true, true};
  return SUCCESS;
}

Result unregister_host(Context& context, uintptr_t address) {
  auto found = context.memory.find(address);
  if (found == context.memory.end() || !found->second.registered) return NOT_REGISTERED;
  if (Result failed = drain_all(context)) return failed;
  context.memory.erase(found);
  return SUCCESS;
}

void unload(Context& context, Module* module) {
  for (auto i = context.functions.begin(); i != context.functions.end();) {
    if ((*i)->module == module) {
      delete *i;
      i = context.functions.erase(i);
    } else {
      ++i;
    }
  }
  dlclose(module->library);
  delete module;
}

// Addresses and handles may come again, as they do on a GPU; who retained it still does.
void destroy(Context& context) {
  for (auto& entry : context.memory) release(entry);
  context.memory.clear();
  for (Module* module : context.modules) unload(context, module);
  context.modules.clear();
  context.streams.clear();
  context.events.clear();
  context.graphs.clear();
  context.graph_owners.clear();
  context.default_stream.queue.clear();
  context.active = false;
}

Result load(Context& context, const void* image, void** result) {
  const Elf64_Ehdr* header = (const Elf64_Ehdr*)image;
  if (std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return INVALID_IMAGE;
  if (header->e_machine != EM_X86_64 && header->e_machine != EM_AARCH64) return NO_BINARY_FOR_GPU;
  size_t bytes = header->e_shoff + (size_t)header->e_shentsize * header->e_shnum;
  const char* folder = std::getenv("TMPDIR");
  std::string path = std::string(folder != nullptr ? folder : "/tmp") + "/standin-kernels-XXXXXX";
  int file = mkstemp(&path[0]);
  bool written = file >= 0 && write(file, image, bytes) == (ssize_t)bytes;
  if (file >= 0) close(file);
  void* library = written ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
  unlink(path.c_str());
  if (library == nullptr) return INVALID_IMAGE;
  Module* module = new Module{library};
  context.modules.insert(module);
  *result = module;
  return SUCCESS;
}

Result copy(Context& context, uintptr_t target, uintptr_t source, size_t bytes, void* stream_handle, bool to_host, bool from_host) {
  Stream* stream = find(context, stream_handle);
  if (stream == nullptr) return INVALID_HANDLE;
  if (!to_host && !is_memory(context, target, bytes, false)) return INVALID_VALUE;
  if (!from_host && !is_memory(context, source, bytes, false)) return INVALID_VALUE;
  bool pageable = false;
  if (to_host || from_host) {
    bool beyond;
    const Memory* host = within(context, to_host ? target : source, bytes, &beyond);
    if (beyond || (host != nullptr && !host->pinned)) return INVALID_VALUE;
    pageable = host == nullptr;
  }
  if (pageable && stream->capture) {
    stream->capture->invalid = true;
    return CAPTURE_UNSUPPORTED;
  }
  auto run = [=] { std::memmove((void*)target, (void*)source, bytes); return SUCCESS; };
  if (pageable && from_host) {  // staged at the call
    auto staged = std::make_shared<std::vector<char>>((char*)source, (char*)source + bytes);
    return enqueue(*stream, {[=] { std::memcpy((void*)target, staged->data(), bytes); return SUCCESS; }, {}});
  }
  Result result = enqueue(*stream, {run, to_host ? std::function<void()>([=] { std::memset((void*)target, POISON, bytes); }) : nullptr});
  return result == SUCCESS && pageable ? drain(*stream, UINT64_MAX) : result;
}

Result synchronize(Context& context, Stream* stream) {
  NOT_WHILE_CAPTURING;
  if (stream->capture) return CAPTURE_UNSUPPORTED;
  (void)context;
  return drain(*stream, UINT64_MAX);
}

}  // namespace
