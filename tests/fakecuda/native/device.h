// Streams, events, what has not landed yet; torch's device guard and its hooks for CUDA.

#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <deque>
#include <set>

#include "memory.h"

namespace {

using c10::Stream;

std::set<int64_t> capture_streams;  // the one that began, and those that waited for an event of one of these
bool captures(int64_t stream) { return capturing >= 0 && capture_streams.count(stream); }

struct Landing {
  int64_t number;
  at::Tensor to, from;
};
std::deque<Landing> in_flight;
int64_t enqueued = 0;

void land(int64_t until) {
  while (!in_flight.empty() && in_flight.front().number <= until) {
    if (block_of(in_flight.front().to.data_ptr())) in_flight.front().to.copy_(in_flight.front().from);
    in_flight.pop_front();
  }
}

// The host waits: for a stream, or for all of them.
void synchronize(order::Stream stream) {
  ++counts[SYNCHRONISATIONS];
  order::host_waited(order::now(stream));
  land(enqueued);
}
void synchronize_all() {
  ++counts[SYNCHRONISATIONS];
  order::host_waited_for_all();
  land(enqueued);
}

struct Event {
  int64_t number = 0;
  bool captured = false;
  order::Clock seen;
  Event() { ++counts[EVENTS_MADE], ++counts[EVENTS]; }
  ~Event() { --counts[EVENTS]; }
  void record(int64_t stream, int device) {
    number = enqueued, captured = captures(stream), seen = order::now(order::key(stream, device));
  }
  void block(int64_t stream, int device) {
    if (captured && capturing >= 0) capture_streams.insert(stream);
    order::wait(order::key(stream, device), seen);
  }
  void passed() {
    order::host_waited(seen);
    land(number);
  }
  void synchronize() {
    ++counts[SYNCHRONISATIONS];
    passed();
  }
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return CUDA; }
  Device exchangeDevice(Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return Device(CUDA, static_cast<DeviceIndex>(fakecuda_device())); }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.index() < fakecuda_devices(), "CUDA error: invalid device ordinal");
    fakecuda_set_device(device.index());
  }
  void uncheckedSetDevice(Device device) const noexcept override { fakecuda_set_device(device.index()); }
  Stream getStream(Device device) const override {
    if (!device.has_index()) device = getDevice();
    return Stream(Stream::UNSAFE, device, streams[device.index()]);
  }
  Stream getDefaultStream(Device device) const override { return Stream(Stream::DEFAULT, device); }
  Stream exchangeStream(Stream stream) const override {
    auto before = getStream(stream.device());
    streams[stream.device_index()] = stream.id();
    return before;
  }
  DeviceIndex deviceCount() const noexcept override { return static_cast<DeviceIndex>(fakecuda_devices()); }
  void record(void** event, const Stream& stream, const DeviceIndex, const c10::EventFlag) const override {
    if (!*event) *event = new Event;
    static_cast<Event*>(*event)->record(stream.id(), stream.device_index());
  }
  void block(void* event, const Stream& stream) const override {
    if (event) static_cast<Event*>(event)->block(stream.id(), stream.device_index());
  }
  bool queryEvent(void* event) const override {
    ++counts[QUERIES];
    return !event || in_flight.empty() || in_flight.front().number > static_cast<Event*>(event)->number;
  }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  void synchronizeEvent(void* event) const override { static_cast<Event*>(event)->synchronize(); }
  bool queryStream(const Stream&) const override { return in_flight.empty(); }
  void synchronizeStream(const Stream& stream) const override {
    synchronize(order::key(stream.id(), stream.device_index()));
  }
  void synchronizeDevice(const DeviceIndex) const override { synchronize_all(); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

}  // namespace

namespace at {
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return static_cast<DeviceIndex>(fakecuda_devices()); }
  int getNumGPUs() const override { return fakecuda_devices(); }
  DeviceIndex current_device() const override { return static_cast<DeviceIndex>(fakecuda_device()); }
  DeviceIndex getCurrentDevice() const override { return current_device(); }
  void setCurrentDevice(DeviceIndex device) const override { fakecuda_set_device(device); }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    auto before = current_device();
    fakecuda_set_device(device);
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override { return exchangeDevice(device); }
  bool isPinnedPtr(const void* data) const override {
    auto found = block_of(data);
    return found && found->second.device < 0;
  }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  Allocator* getCUDADeviceAllocator() const override { return &device_memory; }
  Device getDeviceFromPtr(void* data) const override {
    auto found = block_of(data);
    return Device(c10::DeviceType::CUDA, static_cast<DeviceIndex>(found ? found->second.device : 0));
  }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  Generator getNewGenerator(DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  void deviceSynchronize(DeviceIndex) const override { synchronize_all(); }
};
}  // namespace at
