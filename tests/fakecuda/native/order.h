// Which work is known to be over when other work begins: streams, events, the host. Nothing here knows of torch.
//
// Each piece of work has a number. A stream knows, of every other stream, up to which number its work is over: by an
// event it waited for. What the host knows (it synchronised) holds for all that is enqueued afterwards.

#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace order {

using Stream = int64_t;  // a stream's handle; the default stream of device d is -1 - d
using Clock = std::map<Stream, int64_t>;

inline std::recursive_mutex lock;
inline std::map<Stream, Clock> knows;
inline Clock host;
inline int64_t work = 0;
inline bool checked = true;
inline std::vector<std::string> problems;  // what cannot be raised where it is noticed

inline Stream key(int64_t handle, int device) { return handle ? handle : -1 - device; }

inline void join(Clock& clock, const Clock& other) {
  for (auto [stream, number] : other) clock[stream] = std::max(clock[stream], number);
}

inline Clock now(Stream stream) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  return knows[stream];
}
inline void wait(Stream stream, const Clock& event) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  join(knows[stream], event);
}
inline void host_waited(const Clock& event) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  join(host, event);
}
inline void host_waited_for_all() {
  std::lock_guard<std::recursive_mutex> guard(lock);
  for (auto& [stream, clock] : knows) join(host, clock);
}

inline std::string name(Stream stream) {
  return stream < 0 ? "the default stream of device " + std::to_string(-1 - stream) : "stream " + std::to_string(stream);
}

struct Access {
  uintptr_t begin, end;
  Stream stream;
  int64_t number;
  bool write;
  std::string what;
};

// What was done to a block of memory, as far as later work must not ignore it.
struct History {
  Stream owner = 0;             // the stream that it was allocated on
  std::set<Stream> recorded;    // by record_stream: the allocator waits for these itself
  std::vector<Access> accesses;

  static bool over(const Access& access, Stream stream) {
    return access.stream == stream || knows[stream][access.stream] >= access.number || host[access.stream] >= access.number;
  }

  // Work on `stream` reads or writes these bytes. Returns what is wrong with that, or nothing.
  std::string use(uintptr_t begin, uintptr_t end, Stream stream, bool write, const std::string& what) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto number = ++work;
    std::string wrong;
    std::vector<Access> kept;
    for (auto& access : accesses) {
      bool meet = access.begin < end && begin < access.end, before = over(access, stream);
      if (meet && !before && (write || access.write) && wrong.empty())
        wrong = what + " on " + name(stream) + (write ? " writes" : " reads") + " memory that " + access.what + " on " +
                name(access.stream) + (access.write ? " writes" : " reads") + ", and no event lies between";
      bool covered = begin <= access.begin && access.end <= end && before && (write || !access.write);
      if (!covered) kept.push_back(std::move(access));
    }
    kept.push_back({begin, end, stream, number, write, what});
    accesses = std::move(kept);
    knows[stream][stream] = number;
    return checked ? wrong : "";
  }

  // The allocator may hand the block to the next request on its own stream.
  void freed() const {
    std::lock_guard<std::recursive_mutex> guard(lock);
    for (const auto& access : accesses)
      if (checked && !over(access, owner) && !recorded.count(access.stream)) {
        problems.push_back(
            "memory of " + name(owner) + " is freed while " + access.what + " on " + name(access.stream) +
            (access.write ? " writes" : " reads") + " it: neither an event nor record_stream");
        return;
      }
  }
};

}  // namespace order
