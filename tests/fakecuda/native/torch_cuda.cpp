// CUDA tensors for a CPU build of torch. Their memory is host memory, their operations are the CPU's, done at once; what
// waits for the device is only what is copied to page-locked memory without blocking. Plain `torch.Tensor`s with
// device "cuda": autograd, autocast, device guards, streams and graph capture take the ways that they take in a CUDA build.

#include <ATen/EmptyTensor.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <functional>

#include "device.h"

namespace {

// -- graphs ------------------------------------------------------------------------------------------------------------

using Graph = std::vector<std::function<void()>>;
std::map<int, Graph> graphs;
int last_graph = -1;

// Whether the current stream is being recorded. While any is, work on the default stream is an error.
bool captures() {
  auto stream = streams[fakecuda_device()];
  TORCH_CHECK(
      capturing < 0 || stream, "CUDA error: operation would make the legacy stream depend on a capturing blocking stream");
  return captures(stream);
}

void keep(std::function<void()> work) {
  if (captures()) graphs[capturing].push_back(std::move(work));
}

void not_in_a_capture(const char* what) {
  TORCH_CHECK(!captures(), "CUDA error: operation not permitted when stream is capturing: ", what);
}

// -- operations --------------------------------------------------------------------------------------------------------

// What a piece of work reads and writes, to be checked when it is enqueued and again when a graph replays it.
struct Uses {
  struct Span {
    uintptr_t begin, end;
    bool write;
  };
  std::string what;
  int device = -1;
  std::vector<Span> spans;

  void add(const at::Tensor& tensor, bool write) {
    if (!tensor.defined() || !tensor.is_cuda() || !tensor.numel()) return;
    device = tensor.device().index();
    int64_t last = 1;
    for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
    auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
    spans.push_back({begin, begin + last * tensor.element_size(), write});
  }
  void check() const {
    for (auto& span : spans) {
      auto wrong = use(span.begin, span.end, current_key(device), span.write, what);
      TORCH_CHECK(wrong.empty(), "fakecuda: ", wrong);
    }
  }
};

// The same memory as a tensor of the CPU's.
at::Tensor host(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  auto options = tensor.options().device(c10::kCPU).requires_grad(false);
  if (!tensor.numel()) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void*) {}, options);
}

at::Tensor empty_like_on(const at::Tensor& source, Device device) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(
      source.sizes(), source.strides(), &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), source.scalar_type());
}

void resize_to(const at::Tensor& tensor, at::IntArrayRef sizes, at::IntArrayRef strides) {
  auto storage = tensor.storage();
  auto bytes = at::detail::computeStorageNbytes(sizes, strides, tensor.element_size(), tensor.storage_offset());
  if (bytes > storage.nbytes()) {
    auto more = allocate_on(tensor.device().index(), bytes);
    if (storage.nbytes()) std::memcpy(more.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(more));
    storage.set_nbytes(bytes);
  }
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
}

c10::IValue on_host(const c10::IValue& value, std::optional<Device>& device) {
  auto one = [&](const at::Tensor& tensor) {
    if (tensor.defined() && tensor.is_cuda() && !device) device = tensor.device();
    return host(tensor);
  };
  if (value.isTensor()) return one(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(one(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
      list.push_back(tensor ? std::optional<at::Tensor>(one(*tensor)) : std::nullopt);
    return list;
  }
  if (value.isDevice() && value.toDevice().is_cuda()) {
    device = value.toDevice().has_index() ? value.toDevice() : Device(CUDA, static_cast<DeviceIndex>(fakecuda_device()));
    return Device(c10::kCPU);
  }
  return value;
}

// Any operation: the CPU's, on the same memory.
void on_the_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  auto count = schema.arguments().size();
  std::vector<c10::IValue> given(stack->end() - static_cast<int64_t>(count), stack->end());
  torch::jit::drop(*stack, count);
  if (schema.name() == "aten::_local_scalar_dense" || schema.name() == "aten::equal" || schema.name() == "aten::nonzero") {
    not_in_a_capture(schema.name().c_str());
    synchronize(current_key(fakecuda_device()));
  }
  Uses uses{schema.name()};
  for (size_t i = 0; i < count; ++i) {
    auto info = schema.arguments()[i].alias_info();
    bool write = info && info->isWrite();
    if (given[i].isTensor()) uses.add(given[i].toTensor(), write);
    if (given[i].isTensorList())
      for (const at::Tensor& tensor : given[i].toTensorVector()) uses.add(tensor, write);
    if (given[i].isOptionalTensorList())
      for (const std::optional<at::Tensor>& tensor : given[i].toOptionalTensorVector())
        if (tensor) uses.add(*tensor, write);
  }
  uses.check();
  std::optional<Device> device;
  torch::jit::Stack arguments;
  std::vector<std::pair<at::Tensor, at::Tensor>> resized;  // outputs that were empty: device, host
  for (size_t i = 0; i < count; ++i) {
    arguments.push_back(on_host(given[i], device));
    auto info = schema.arguments()[i].alias_info();
    if (info && info->isWrite() && given[i].isTensor() && given[i].toTensor().is_cuda() && !given[i].toTensor().numel()) {
      auto fresh = at::empty({0}, given[i].toTensor().options().device(c10::kCPU));
      resized.emplace_back(given[i].toTensor(), fresh);
      arguments.back() = fresh;
    }
  }
  for (const auto& value : given)
    if (value.isTensor() && value.toTensor().defined()) {
      const auto& tensor = value.toTensor();
      TORCH_CHECK(
          tensor.is_cuda() ? tensor.device() == *device : tensor.dim() == 0 || !device,
          "Expected all tensors to be on the same device: ", schema.name(), " got one on ", tensor.device(), " and ",
          device ? device->str() : "?");
    }
  auto again = arguments;
  {
    c10::OptionalDeviceGuard guard(device);
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &arguments);
  }
  for (auto& [there, here] : resized) {
    if (here.sizes() == there.sizes()) continue;
    resize_to(there, here.sizes(), here.strides());
    host(there).copy_(here);
  }
  std::vector<std::pair<size_t, at::Tensor>> fresh;
  const auto& returns = schema.returns();
  TORCH_INTERNAL_ASSERT(arguments.size() == returns.size());
  for (size_t i = 0; i < returns.size(); ++i) {
    auto info = returns[i].alias_info();
    if (info) {
      TORCH_CHECK(info->isWrite(), "fakecuda: the view ", schema.name(), " is not supported on fake CUDA tensors");
      for (size_t j = 0; j < count; ++j) {
        auto other = schema.arguments()[j].alias_info();
        if (other && other->beforeSets() == info->beforeSets()) arguments[i] = given[j];
      }
    } else if (arguments[i].isTensor() && arguments[i].toTensor().defined() && device) {
      auto here = arguments[i].toTensor();
      auto there = empty_like_on(here, *device);
      host(there).copy_(here);
      Uses made{schema.name()};
      made.add(there, true);
      made.check();
      uses.add(there, true);
      fresh.emplace_back(i, there);
      arguments[i] = there;
    } else if (arguments[i].isTensorList() && device) {
      TORCH_CHECK(!captures(), "fakecuda: ", schema.name(), " returns a list, which is not supported in a graph");
      c10::List<at::Tensor> list;
      for (const at::Tensor& here : arguments[i].toTensorVector()) {
        auto there = empty_like_on(here, *device);
        host(there).copy_(here);
        Uses made{schema.name()};
        made.add(there, true);
        made.check();
        list.push_back(there);
      }
      arguments[i] = list;
    }
  }
  if (captures()) {
    auto handle = op;
    keep([handle, again, fresh, uses] {
      at::NoGradGuard no_grad;
      uses.check();
      auto work = again;
      handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &work);
      for (auto& [i, there] : fresh) host(there).copy_(work[i].toTensor());
    });
  }
  for (auto& value : arguments) stack->push_back(std::move(value));
}

DeviceIndex index_of(std::optional<Device> device) {
  return device && device->has_index() ? device->index() : static_cast<DeviceIndex>(fakecuda_device());
}

at::Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<Device> device,
    std::optional<bool> pin, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  c10::DeviceGuard guard(Device(CUDA, index_of(device)));
  return at::detail::empty_generic(
      size, &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(Device(CUDA, index_of(device)));
  return at::detail::empty_strided_generic(
      size, stride, &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
}

at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (!to.numel()) return to;
  bool out = from.is_cuda() && !to.is_cuda(), in = to.is_cuda() && !from.is_cuda();
  auto pinned = [](const at::Tensor& tensor) {
    auto found = block_of(tensor.data_ptr());
    return found && found->second.device < 0;
  };
  bool asynchronous = (!out && !in) || (non_blocking && pinned(out ? to : from));
  if (captures() && !asynchronous) not_in_a_capture("a copy to or from pageable memory, or one that blocks");
  Uses uses{"aten::copy_"};
  uses.add(from, false);
  uses.add(to, true);
  auto here = host(to), there = host(from).expand_as(here);
  if (out && asynchronous) {
    auto later = [here, there, uses] {
      uses.check();
      in_flight.push_back({++enqueued, here, there.clone()});
    };
    if (captures())
      keep(later);
    else
      later();
    return to;
  }
  if (captures())
    keep([here, there, uses]() mutable {
      uses.check();
      here.copy_(there);
    });
  uses.check();
  here.copy_(there);
  if (!asynchronous) synchronize(current_key((out ? from : to).device().index()));
  return to;
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  std::vector<int64_t> strides(size.size());
  int64_t step = 1;
  for (int64_t i = static_cast<int64_t>(size.size()) - 1; i >= 0; --i) {
    strides[i] = step;
    step *= std::max<int64_t>(size[i], 1);
  }
  resize_to(self, size, strides);
  return self;
}

void record_stream(at::Tensor& self, c10::Stream stream) {
  auto block = block_of(self.data_ptr());
  if (block) block->second.history.recorded.insert(order::key(stream.id(), stream.device_index()));
}

// nn.GRU without cuDNN has a cell of its own on CUDA, which the CPU has not.
std::tuple<at::Tensor, at::Tensor> gru_cell(
    const at::Tensor& input_gates, const at::Tensor& hidden_gates, const at::Tensor& hx,
    const std::optional<at::Tensor>& input_bias, const std::optional<at::Tensor>& hidden_bias) {
  auto with = [](const at::Tensor& gates, const std::optional<at::Tensor>& bias) {
    return (bias && bias->defined() ? gates + *bias : gates).chunk(3, 1);
  };
  auto i = with(input_gates, input_bias), h = with(hidden_gates, hidden_bias);
  auto r = (i[0] + h[0]).sigmoid(), z = (i[1] + h[1]).sigmoid(), n = (i[2] + r * h[2]).tanh();
  return {n + z * (hx - n), at::cat({r, z, n, hx, h[2]}, 1)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(
    const at::Tensor& grad, const at::Tensor& workspace, bool has_bias) {
  auto kept = workspace.chunk(5, 1);
  auto &r = kept[0], &z = kept[1], &n = kept[2], &hx = kept[3], &hn = kept[4];
  auto dn = grad * (1 - z) * (1 - n * n), dz = grad * (hx - n) * z * (1 - z), dr = dn * hn * r * (1 - r);
  auto by_input = at::cat({dr, dz, dn}, 1), by_hidden = at::cat({dr, dz, dn * r}, 1);
  auto none = at::Tensor();
  return {by_input, by_hidden, grad * z, has_bias ? by_input.sum(0) : none, has_bias ? by_hidden.sum(0) : none};
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("resize_", &resize_);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("record_stream", &record_stream);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("_thnn_fused_gru_cell", &gru_cell);
  m.impl("_thnn_fused_gru_cell_backward", &gru_cell_backward);
}

struct Start {
  Start() {
    c10::SetAllocator(CUDA, &device_memory);
    // torch asked for its hooks while it was loaded, found none registered, and keeps an object without members that
    // answers "no CUDA". It gets this class's table of functions.
    static const at::CUDAHooks hooks{{}};
    std::memcpy(const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks()), &hooks, sizeof(void*));
  }
} start;

}  // namespace

extern "C" {

// The block that a pointer leads into. Its device, -1 for page-locked memory, -2 for none.
int fakecuda_block(uint64_t pointer, uint64_t* begin, uint64_t* bytes) {
  auto found = block_of(reinterpret_cast<void*>(pointer));
  if (!found) return -2;
  *begin = found->first;
  *bytes = found->second.size;
  return found->second.device;
}
uint64_t fakecuda_allocated(int device) { return allocated[device]; }
uint64_t fakecuda_peak(int device, int reset) {
  if (reset) peak[device] = allocated[device];
  return peak[device];
}
int64_t fakecuda_stream(int device) { return streams[device]; }
void fakecuda_set_stream(int device, int64_t stream) { streams[device] = stream; }
void fakecuda_synchronize(void) { synchronize_all(); }
void fakecuda_synchronize_stream(int64_t stream, int device) { synchronize(order::key(stream, device)); }
void* fakecuda_event(void) { return new Event; }
void fakecuda_event_delete(void* event) { delete static_cast<Event*>(event); }
void fakecuda_event_record(void* event, int64_t stream, int device) { static_cast<Event*>(event)->record(stream, device); }
void fakecuda_event_block(void* event, int64_t stream, int device) { static_cast<Event*>(event)->block(stream, device); }
void fakecuda_event_synchronize(void* event) { static_cast<Event*>(event)->synchronize(); }
void fakecuda_event_query(void* event, int passed) {
  ++counts[QUERIES];
  if (passed) static_cast<Event*>(event)->passed();
}
const int64_t* fakecuda_counts(void) { return counts; }

// Work that is not torch's touches memory. The text of what is wrong with that, or null; valid until the next call.
const char* fakecuda_use(uint64_t begin, uint64_t end, int64_t stream, int device, int write, const char* what) {
  thread_local std::string wrong;
  wrong = use(begin, end, replaying ? replaying : order::key(stream, device), write, what);
  return wrong.empty() ? nullptr : wrong.c_str();
}
// What a kernel wrote to page-locked memory; the host finds it there later.
void fakecuda_arrives_late(uint64_t to, uint64_t from, uint64_t bytes) {
  auto at = [bytes](uint64_t pointer) {
    return at::from_blob(reinterpret_cast<void*>(pointer), {static_cast<int64_t>(bytes)}, at::kByte);
  };
  in_flight.push_back({++enqueued, at(to), at(from).clone()});
}
// Problems that could not be raised, one a line; they are forgotten then.
const char* fakecuda_problems(void) {
  thread_local std::string all;
  std::lock_guard<std::recursive_mutex> guard(order::lock);
  all.clear();
  for (auto& problem : order::problems) all += problem + "\n";
  order::problems.clear();
  return all.c_str();
}
void fakecuda_check_order(int on) { order::checked = on; }
int fakecuda_capturing(void) { return captures(streams[fakecuda_device()]); }  // the current stream
int fakecuda_capture_begin(void) {
  capturing = ++last_graph;
  capture_streams = {streams[fakecuda_device()]};
  graphs[capturing];
  return capturing;
}
void fakecuda_capture_end(void) {
  order::host_waited_for_all();  // nothing has run, so nothing is to be waited for
  capturing = -1;
  capture_streams.clear();
}
void fakecuda_capture_keep(void (*work)(int), int number) { keep([work, number] { work(number); }); }
int fakecuda_replay(int graph, char* error, int room) {
  replaying = current_key(fakecuda_device());
  try {
    for (auto& work : graphs[graph]) work();
  } catch (const std::exception& failure) {
    std::snprintf(error, room, "%s", failure.what());
  }
  replaying = 0;
  return static_cast<int>(graphs[graph].size());
}
void fakecuda_forget(int graph) {
  graphs.erase(graph);
  std::vector<void*> pool;
  {
    std::lock_guard<std::mutex> guard(lock);
    for (auto& [address, block] : blocks)
      if (block.graph == graph) block.graph = -1, pool.push_back(reinterpret_cast<void*>(address));
  }
  for (void* pointer : pool) release(pointer);
}
}
