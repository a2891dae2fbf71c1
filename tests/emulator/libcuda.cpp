// A libcuda.so.1 over the emulator: device memory is host memory, a cubin is the emulator's shared object of the kernels.
//
// It holds the host code to what a GPU would: work on a stream runs when something waits for it and no sooner, what is not
// yet copied is poison, addresses must lie within what was allocated, handles must be alive, a context must be current.
// The environment says what there is: STANDIN_CUDA_DEVICES, _CAPABILITY ("90"), _DRIVER ("13000"), _MEMORY_MB, _INIT (what
// cuInit gives), _EAGER=1 (work runs at once, the other extreme of what a GPU may do). The tests call standin_live and
// standin_fail.

#include "libcuda_device.h"

extern "C" {

// For the tests: how many there are of "memory", "pinned", "stream", "event", "module", "graph" or "context" (retentions).
size_t standin_live(const char* kind) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  size_t count = 0;
  std::string k = kind;
  for (Context& context : contexts) {
    for (auto& entry : context.memory) count += k == (entry.second.pinned ? "pinned" : "memory");
    count += k == "stream" ? context.streams.size() : k == "event" ? context.events.size() : k == "module" ? context.modules.size()
           : k == "graph" ? context.graphs.size() : k == "context" ? (size_t)context.retained : 0;
  }
  return count;
}

// For the tests: the n-th call of a function from now fails so. Errors that a GPU does not recover from stay.
void standin_fail(const char* function, int nth, int code) { failures[function] = {nth, (Result)code}; }

int cuInit(unsigned) {
  if (int failure = (int)setting("STANDIN_CUDA_INIT", 0)) return failure;
  initialized = true;
  return device_count() == 0 ? NO_DEVICE : SUCCESS;
}
int cuDriverGetVersion(int* version) { *version = (int)setting("STANDIN_CUDA_DRIVER", 13000); return SUCCESS; }
int cuGetErrorName(int code, const char** name) {
  *name = nullptr;
  for (auto& d : DESCRIPTIONS) if (d.code == code) *name = d.name;
  return *name == nullptr ? INVALID_VALUE : SUCCESS;
}
int cuGetErrorString(int code, const char** text) {
  *text = nullptr;
  for (auto& d : DESCRIPTIONS) if (d.code == code) *text = d.text;
  return *text == nullptr ? INVALID_VALUE : SUCCESS;
}
int cuDeviceGetCount(int* count) { *count = device_count(); return SUCCESS; }
int cuDeviceGet(int* device, int index) {
  ENTER_ANY;
  *device = index;
  return index >= 0 && index < device_count() ? SUCCESS : INVALID_DEVICE;
}
int cuDeviceGetName(char* name, int bytes, int device) { std::snprintf(name, bytes, "Emulated GPU %d", device); return SUCCESS; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = memory_bytes(); return SUCCESS; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  long capability = setting("STANDIN_CUDA_CAPABILITY", 90);
  *value = attribute == 75 ? (int)capability / 10 : attribute == 76 ? (int)capability % 10 : attribute == 16 ? 2 : 1;
  return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  ENTER_ANY;
  contexts[device].retained++;
  contexts[device].active = true;
  contexts[device].device = device;
  *context = &contexts[device];
  return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
  ENTER_ANY;
  if (contexts[device].retained == 0) return INVALID_CONTEXT;
  if (--contexts[device].retained == 0) destroy(contexts[device]);
  return SUCCESS;
}
int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  *flags = 0;
  *active = contexts[device].active;
  return SUCCESS;
}
int cuDevicePrimaryCtxReset_v2(int device) { ENTER_ANY; destroy(contexts[device]); return SUCCESS; }
int cuCtxPushCurrent_v2(void* context) {
  ENTER_ANY;
  if (context == nullptr) return INVALID_CONTEXT;
  if (!((Context*)context)->active) return CONTEXT_IS_DESTROYED;
  stack.push_back((Context*)context);
  return SUCCESS;
}
int cuCtxPopCurrent_v2(void** context) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (Result failure = injected(__func__)) return failure;
  if (stack.empty()) return INVALID_CONTEXT;
  *context = stack.back();
  stack.pop_back();
  return SUCCESS;
}
int cuCtxGetCurrent(void** context) { *context = stack.empty() ? nullptr : stack.back(); return initialized ? SUCCESS : NOT_INITIALIZED; }
int cuCtxSetCurrent(void* context) {
  ENTER_ANY;
  if (!stack.empty()) stack.pop_back();
  if (context != nullptr) stack.push_back((Context*)context);
  return SUCCESS;
}
int cuCtxGetDevice(int* device) { ENTER; *device = context.device; return SUCCESS; }
int cuCtxSynchronize() { ENTER; NOT_WHILE_CAPTURING; return drain_all(context); }

int cuMemAlloc_v2(void** address, size_t bytes) { ENTER; NOT_WHILE_CAPTURING; return allocate(context, bytes, false, address); }
int cuMemFree_v2(uintptr_t address) { ENTER; NOT_WHILE_CAPTURING; return deallocate(context, address, false); }
int cuMemHostAlloc(void** address, size_t bytes, unsigned) { ENTER; NOT_WHILE_CAPTURING; return allocate(context, bytes, true, address); }
int cuMemFreeHost(void* address) { ENTER; NOT_WHILE_CAPTURING; return deallocate(context, (uintptr_t)address, true); }
int cuMemHostRegister_v2(void* address, size_t bytes, unsigned) { ENTER; NOT_WHILE_CAPTURING; return register_host(context, (uintptr_t)address, bytes); }
int cuMemHostUnregister(void* address) { ENTER; NOT_WHILE_CAPTURING; return unregister_host(context, (uintptr_t)address); }
int cuMemGetInfo_v2(size_t* free, size_t* total) {
  ENTER;
  *total = *free = memory_bytes();
  for (auto& entry : context.memory) if (!entry.second.pinned) *free -= entry.second.bytes;
  return SUCCESS;
}
int cuPointerGetAttribute(void* value, int attribute, uintptr_t address) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (attribute != 2 && attribute != 9) return NOT_SUPPORTED;  // memory type and device ordinal
  bool beyond;
  for (int i = 0; i < device_count(); i++)
    if (const Memory* found = within(contexts[i], address, 1, &beyond)) {
      *(int*)value = attribute == 9 ? i : found->pinned ? 1 : 2;
      return SUCCESS;
    }
  return INVALID_VALUE;
}
int cuMemcpyHtoDAsync_v2(uintptr_t target, uintptr_t source, size_t bytes, void* stream) {
  ENTER;
  return copy(context, target, source, bytes, stream, false, true);
}
int cuMemcpyDtoHAsync_v2(uintptr_t target, uintptr_t source, size_t bytes, void* stream) {
  ENTER;
  return copy(context, target, source, bytes, stream, true, false);
}
int cuMemcpyDtoDAsync_v2(uintptr_t target, uintptr_t source, size_t bytes, void* stream) {
  ENTER;
  return copy(context, target, source, bytes, stream, false, false);
}

int cuStreamCreate(void** stream, unsigned) {
  ENTER;
  Stream* made = new Stream;
  context.streams.insert(made);
  *stream = made;
  return SUCCESS;
}
int cuStreamDestroy_v2(void* stream) {
  ENTER;
  if (!context.streams.count((Stream*)stream)) return INVALID_HANDLE;
  Result result = drain(*(Stream*)stream, UINT64_MAX);
  for (Event* event : context.events) if (event->stream == stream) event->stream = nullptr;
  context.streams.erase((Stream*)stream);
  return result;
}
int cuStreamSynchronize(void* handle) {
  ENTER;
  Stream* stream = find(context, handle);
  return stream == nullptr ? INVALID_HANDLE : synchronize(context, stream);
}
int cuStreamQuery(void* handle) {
  ENTER;
  Stream* stream = find(context, handle);
  return stream == nullptr ? INVALID_HANDLE : synchronize(context, stream);
}
int cuStreamWaitEvent(void* stream_handle, void* event_handle, unsigned) {
  ENTER;
  Stream* stream = find(context, stream_handle);
  Event* event = (Event*)event_handle;
  if (stream == nullptr || !context.events.count(event)) return INVALID_HANDLE;
  if (event->capture && event->capture->graph) {
    if (stream->capture && stream->capture != event->capture) return CAPTURE_UNSUPPORTED;
    if (!stream->capture) {  // forks
      if (!stream->queue.empty()) drain(*stream, UINT64_MAX);
      stream->capture = event->capture;
      stream->capture->forks.insert(stream);
      captured_here.insert(stream);
    } else {  // joins
      stream->capture->unjoined.erase(event->stream);
    }
    return SUCCESS;
  }
  Stream* recorded = event->stream;
  uint64_t sequence = event->sequence;
  if (recorded == nullptr) return SUCCESS;
  Context* home = &context;
  return enqueue(*stream, {[=] { return home->streams.count(recorded) || recorded == &home->default_stream ? drain(*recorded, sequence) : SUCCESS; }, {}});
}
int cuStreamBeginCapture_v2(void* handle, int) {
  ENTER;
  Stream* stream = find(context, handle);
  if (stream == nullptr) return INVALID_HANDLE;
  if (stream->capture || stream == &context.default_stream) return CAPTURE_UNSUPPORTED;
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  captured_here.insert(stream);
  return SUCCESS;
}
int cuStreamEndCapture(void* handle, void** graph) {
  ENTER;
  Stream* stream = find(context, handle);
  if (stream == nullptr || !stream->capture || stream->capture->origin != stream) return INVALID_VALUE;
  std::shared_ptr<Capture> capture = stream->capture;
  for (Stream* fork : capture->forks) {
    fork->capture = nullptr;
    captured_here.erase(fork);
  }
  stream->capture = nullptr;
  captured_here.erase(stream);
  *graph = nullptr;
  if (capture->invalid) return CAPTURE_INVALIDATED;
  if (!capture->unjoined.empty()) return CAPTURE_UNJOINED;
  std::shared_ptr<Graph> recorded = capture->graph;
  capture->graph = nullptr;
  context.graph_owners[recorded.get()] = recorded;
  *graph = recorded.get();
  return SUCCESS;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  ENTER;
  if (!context.graph_owners.count((Graph*)graph)) return INVALID_VALUE;
  Graph* made = new Graph(*(Graph*)graph);
  context.graphs.insert(made);
  *executable = made;
  return SUCCESS;
}
int cuGraphDestroy(void* graph) { ENTER; return context.graph_owners.erase((Graph*)graph) ? SUCCESS : INVALID_VALUE; }
int cuGraphExecDestroy(void* graph) {
  ENTER;
  if (!context.graphs.erase((Graph*)graph)) return INVALID_VALUE;
  Result result = drain_all(context);
  delete (Graph*)graph;
  return result;
}
int cuGraphLaunch(void* handle, void* stream_handle) {
  ENTER;
  Stream* stream = find(context, stream_handle);
  Graph* graph = (Graph*)handle;
  if (stream == nullptr || !context.graphs.count(graph)) return INVALID_HANDLE;
  auto run = [graph] {
    for (Node& node : graph->nodes)
      if (Result failed = node.run()) return failed;
    return SUCCESS;
  };
  auto announce = [graph] {
    for (Node& node : graph->nodes)
      if (node.announce) node.announce();
  };
  return enqueue(*stream, {run, announce});
}

int cuEventCreate(void** handle, unsigned flags) {
  ENTER;
  Event* event = new Event;
  event->timing = (flags & 2) == 0;
  context.events.insert(event);
  *handle = event;
  return SUCCESS;
}
int cuEventDestroy_v2(void* event) { ENTER; return context.events.erase((Event*)event) ? SUCCESS : INVALID_HANDLE; }
int cuEventRecord(void* handle, void* stream_handle) {
  ENTER;
  Stream* stream = find(context, stream_handle);
  Event* event = (Event*)handle;
  if (stream == nullptr || !context.events.count(event)) return INVALID_HANDLE;
  event->stream = stream;
  event->capture = stream->capture;
  if (stream->capture) return SUCCESS;
  event->done = false;
  event->sequence = stream->enqueued + 1;
  return enqueue(*stream, {[event] { event->done = true; event->at = std::chrono::steady_clock::now(); return SUCCESS; }, {}});
}
int cuEventSynchronize(void* handle) {
  ENTER;
  Event* event = (Event*)handle;
  if (!context.events.count(event)) return INVALID_HANDLE;
  if (event->capture && event->capture->graph) return CAPTURED_EVENT;
  return event->stream == nullptr ? SUCCESS : drain(*event->stream, event->sequence);
}
int cuEventQuery(void* event) { return cuEventSynchronize(event); }
int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  ENTER;
  Event *first = (Event*)start, *last = (Event*)end;
  if (!context.events.count(first) || !context.events.count(last) || !first->timing || !last->timing) return INVALID_HANDLE;
  if (!first->done || !last->done) return NOT_READY;
  *milliseconds = std::chrono::duration<float, std::milli>(last->at - first->at).count();
  return SUCCESS;
}
int cuEventElapsedTime(float* milliseconds, void* start, void* end) { return cuEventElapsedTime_v2(milliseconds, start, end); }

int cuModuleLoadData(void** module, const void* image) { ENTER; NOT_WHILE_CAPTURING; return load(context, image, module); }
int cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) { return cuModuleLoadData(module, image); }
int cuModuleUnload(void* module) {
  ENTER;
  if (!context.modules.count((Module*)module)) return INVALID_HANDLE;
  Result result = drain_all(context);
  context.modules.erase((Module*)module);
  unload(context, (Module*)module);
  return result;
}
int cuModuleGetFunction(void** function, void* handle, const char* name) {
  ENTER;
  Module* module = (Module*)handle;
  if (!context.modules.count(module)) return INVALID_HANDLE;
  auto parameters = (const size_t* (*)(const char*))dlsym(module->library, "emulator_parameter_bytes");
  if (parameters == nullptr || parameters(name) == nullptr) return NOT_FOUND;
  Function* made = new Function{module, name};
  context.functions.insert(made);
  *function = made;
  return SUCCESS;
}
int cuFuncSetBlockShape(void*, int, int, int) { return SUCCESS; }  // pycuda does so before each launch, which says it again
int cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned shared_bytes, void* stream_handle, void** arguments, void** extra) {
  ENTER;
  Stream* stream = find(context, stream_handle);
  Function* function = (Function*)handle;
  if (stream == nullptr || !context.functions.count(function)) return INVALID_HANDLE;
  if (grid_x * grid_y * grid_z == 0 || block_x * block_y * block_z == 0 || block_x * block_y * block_z > 1024) return INVALID_VALUE;
  auto parameters = (const size_t* (*)(const char*))dlsym(function->module->library, "emulator_parameter_bytes");
  auto launch = (const char* (*)(const char*, const unsigned*, const unsigned*, size_t, void**, uint64_t))dlsym(function->module->library, "emulator_launch");
  const char* packed = extra != nullptr ? (const char*)extra[1] : nullptr;  // {POINTER, buffer, SIZE, &bytes, END}
  std::vector<uint64_t> values;
  size_t offset = 0;
  for (const size_t* bytes = parameters(function->name.c_str()); *bytes != 0; bytes++) {
    values.push_back(0);
    offset = (offset + *bytes - 1) / *bytes * *bytes;
    std::memcpy(&values.back(), packed != nullptr ? packed + offset : arguments[values.size() - 1], *bytes);
    offset += *bytes;
  }
  if (packed != nullptr && offset != *(size_t*)extra[3]) return INVALID_VALUE;
  std::string name = function->name;
  return enqueue(*stream, {[=]() mutable {
    const unsigned grid[] = {grid_x, grid_y, grid_z}, block[] = {block_x, block_y, block_z};
    std::vector<void*> pointers;
    for (uint64_t& value : values) pointers.push_back(&value);
    const char* problem = launch(name.c_str(), grid, block, shared_bytes, pointers.data(), 0);
    if (problem == nullptr) return SUCCESS;
    std::fprintf(stderr, "standin: %s\n", problem);
    return LAUNCH_FAILED;
  }, {}});
}

// As the driver does: of a function's versions the newest that there is.
int cuGetProcAddress_v2(const char* symbol, void** function, int, uint64_t, int* status) {
  static void* self = [] {
    Dl_info info;
    dladdr((void*)&cuInit, &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  for (const char* suffix : {"_v4", "_v3", "_v2", "", "WithFlags"}) {
    *function = dlsym(self, (std::string(symbol) + suffix).c_str());
    if (*function != nullptr) break;
  }
  if (status != nullptr) *status = *function == nullptr ? 1 : 0;
  return *function == nullptr ? NOT_FOUND : SUCCESS;
}

// NVRTC asks for it, and does without.
int cuGetExportTable(const void** table, const void*) {
  *table = nullptr;
  return NOT_FOUND;
}

#include "libcuda_absent.h"

}  // extern "C"
