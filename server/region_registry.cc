#include "server/region_registry.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/limits.h"
#include "core/base/status_macros.h"
#include "proto/descriptor_socket.h"
#include "server/error_detail.h"
#include "spdlog/spdlog.h"

namespace latticekv {
namespace {

constexpr size_t kTokenBytes = 16;
constexpr int kHandOverTimeoutMs = 200;
constexpr int kStopPollMs = 100;
constexpr int kListenBacklog = 128;

std::string RandomBytes(size_t size) {
  std::string out(size, '\0');
  size_t have = 0;
  while (have < size) {
    const ssize_t got = getrandom(out.data() + have, size - have, 0);
    if (got > 0) have += static_cast<size_t>(got);
  }
  return out;
}

absl::Status SystemError(const char* what) {
  return absl::ResourceExhaustedError(absl::StrCat("shared memory: ", what, " failed (",
                                                   std::strerror(errno), "); put over the socket"));
}

}  // namespace

uint64_t RandomRegionId() { return LoadLe<uint64_t>(RandomBytes(sizeof(uint64_t)).data()); }

absl::StatusOr<std::shared_ptr<SharedRegion>> SharedRegion::Create(size_t bytes) {
  std::shared_ptr<SharedRegion> region(new SharedRegion());
  region->id_ = RandomRegionId();
  region->token_ = RandomBytes(kTokenBytes);
  region->descriptor_ = memfd_create("latticekv-region", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (region->descriptor_ < 0) return SystemError("memfd_create");
  if (ftruncate(region->descriptor_, static_cast<off_t>(bytes)) != 0) {
    return SystemError("ftruncate");
  }
  if (fcntl(region->descriptor_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return SystemError("sealing");
  }
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region->descriptor_, 0);
  if (base == MAP_FAILED) return SystemError("mmap");
  madvise(base, bytes, MADV_HUGEPAGE);  // where the kernel has them for shared memory
  region->base_ = static_cast<std::byte*>(base);
  region->bytes_ = bytes;
  return region;
}

SharedRegion::~SharedRegion() {
  if (base_ != nullptr) munmap(base_, bytes_);
  if (descriptor_ >= 0) close(descriptor_);
}

RegionRegistry::RegionRegistry(size_t capacity_bytes) : leases_(capacity_bytes) {
  if (capacity_bytes == 0) return;
  const std::string name = absl::StrCat("latticekv-", ToHex(AsBytes(RandomBytes(kTokenBytes))));
  listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const auto address = AbstractAddress::Of(name);
  if (listener_ < 0 || !address || bind(listener_, address->get(), address->size) != 0 ||
      listen(listener_, kListenBacklog) != 0) {
    spdlog::warn("no shared memory for clients: {}", std::strerror(errno));
    return;
  }
  socket_name_ = name;
  thread_ = std::thread([this] { ServeDescriptors(); });
}

RegionRegistry::~RegionRegistry() {
  stopping_.store(true);
  if (thread_.joinable()) thread_.join();
  if (listener_ >= 0) close(listener_);
}

absl::StatusOr<std::shared_ptr<SharedRegion>> RegionRegistry::Open(uint64_t bytes) {
  if (socket_name_.empty()) {
    return absl::UnimplementedError("this daemon leases no shared memory; put over the socket");
  }
  if (bytes == 0 || bytes > limits::kMaxRegionBytes) {
    return LimitError("kMaxRegionBytes", absl::StrCat("a region has 1 to ", limits::kMaxRegionBytes,
                                                      " bytes; ask for a smaller one"));
  }
  LKV_ASSIGN_OR_RETURN(std::shared_ptr<SharedRegion> region, SharedRegion::Create(bytes));
  if (leases_.Add(region)) return region;
  return LimitError("kMaxRegions", absl::StrCat(leases_.count(), " regions with ", leases_.bytes(),
                                                " bytes are leased (--shared_memory_bytes); put "
                                                "over the socket"));
}

void RegionRegistry::ServeDescriptors() {
  while (!stopping_.load()) {
    pollfd waiting{listener_, POLLIN, 0};
    if (poll(&waiting, 1, kStopPollMs) <= 0) continue;
    const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0) continue;
    HandOver(client);
    close(client);
  }
}

void RegionRegistry::HandOver(int client) {
  pollfd waiting{client, POLLIN, 0};
  char token[kTokenBytes];
  if (poll(&waiting, 1, kHandOverTimeoutMs) <= 0 ||
      recv(client, token, sizeof(token), 0) != static_cast<ssize_t>(sizeof(token))) {
    return;
  }
  const auto region = leases_.FindIf([&](const SharedRegion& candidate) {
    return candidate.token() == std::string_view(token, sizeof(token));
  });
  // A client that it does not reach waits in vain and goes without.
  if (region) SendDescriptor(client, region->descriptor());
}

}  // namespace latticekv
