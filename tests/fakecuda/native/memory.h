// Memory of devices, and of the host in page-locked pages: all of it is host memory. What is counted.

#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "order.h"

extern "C" {
int fakecuda_devices(void);
int fakecuda_device(void);
void fakecuda_set_device(int);
}

namespace {

using c10::Device;
using c10::DeviceIndex;
constexpr auto CUDA = c10::DeviceType::CUDA;

enum Count { SYNCHRONISATIONS, QUERIES, EVENTS_MADE, EVENTS, PINNED_MADE, PINNED, BLOCKS_MADE, BLOCKS, COUNTS };
int64_t counts[COUNTS];

thread_local int64_t streams[16];  // the current stream of each device
int64_t replaying = 0;             // the key of the stream that a graph is replayed on
order::Stream current_key(int device) { return replaying ? replaying : order::key(streams[device], device); }

struct Block {
  size_t size;
  int device;  // -1: page-locked memory of the host
  int graph;   // whose pool it is from, -1: none
  order::History history;
};
int capturing = -1;  // the graph that is being recorded
std::mutex lock;
std::map<uintptr_t, Block> blocks;
size_t allocated[16], peak[16];

std::pair<const uintptr_t, Block>* block_of(const void* pointer) {
  std::lock_guard<std::mutex> guard(lock);
  auto found = blocks.upper_bound(reinterpret_cast<uintptr_t>(pointer));
  if (found == blocks.begin()) return nullptr;
  --found;
  return reinterpret_cast<uintptr_t>(pointer) < found->first + found->second.size ? &*found : nullptr;
}

void release(void* pointer) {
  {
    std::lock_guard<std::mutex> guard(lock);
    auto found = blocks.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == blocks.end() || found->second.graph >= 0) return;  // a graph's pool lives as long as the graph
    if (found->second.device >= 0) {
      found->second.history.freed();
      allocated[found->second.device] -= found->second.size;
    }
    --counts[found->second.device < 0 ? PINNED : BLOCKS];
    blocks.erase(found);
  }
  std::free(pointer);
}

c10::DataPtr allocate_on(int device, size_t bytes) {
  auto at = device < 0 ? Device(c10::DeviceType::CPU) : Device(CUDA, static_cast<DeviceIndex>(device));
  if (!bytes) return {nullptr, nullptr, &release, at};
  void* pointer = nullptr;
  TORCH_CHECK(posix_memalign(&pointer, 512, bytes) == 0, "out of memory");
  std::memset(pointer, 0xCD, bytes);  // what was never written is not zero on a GPU either
  std::lock_guard<std::mutex> guard(lock);
  auto& block = blocks[reinterpret_cast<uintptr_t>(pointer)] = {bytes, device, device < 0 ? -1 : capturing, {}};
  if (device >= 0) {
    block.history.owner = current_key(device);
    peak[device] = std::max(peak[device], allocated[device] += bytes);
  }
  ++counts[device < 0 ? PINNED_MADE : BLOCKS_MADE];
  ++counts[device < 0 ? PINNED : BLOCKS];
  return {pointer, pointer, &release, at};
}

struct Memory final : c10::Allocator {
  bool pinned;
  explicit Memory(bool pinned) : pinned(pinned) {}
  c10::DataPtr allocate(size_t bytes) override { return allocate_on(pinned ? -1 : fakecuda_device(), bytes); }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory device_memory(false), pinned_memory(true);

// Work on a stream touches memory of a device; what is wrong with that, or nothing. Page-locked memory is there to be
// looked at while it is written.
std::string use(uintptr_t begin, uintptr_t end, order::Stream stream, bool write, const std::string& what) {
  auto block = block_of(reinterpret_cast<void*>(begin));
  if (!block || block->second.device < 0) return "";
  return block->second.history.use(begin, end, stream, write, what);
}

}  // namespace
