#include "client/src/region_client.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/base/status_macros.h"
#include "proto/descriptor_socket.h"

namespace latticekv {
namespace {

constexpr size_t kSlotAlignment = 64;
constexpr int64_t kLeaseTimeoutMs = 2'000;
constexpr auto kRetryAfter = std::chrono::seconds(2);

absl::Status NotHere(const char* why) { return absl::UnavailableError(why); }

class Socket {
 public:
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  ~Socket() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int get() const { return descriptor_; }

 private:
  const int descriptor_;
};

// The descriptor that the server gives for `token` over its abstract socket `name`.
absl::StatusOr<int> AskForDescriptor(const std::string& name, const std::string& token) {
  const auto address = AbstractAddress::Of(name);
  if (!address) return NotHere("the region's socket has an impossible name");
  const Socket server(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (server.get() < 0 || connect(server.get(), address->get(), address->size) != 0 ||
      send(server.get(), token.data(), token.size(), MSG_NOSIGNAL) !=
          static_cast<ssize_t>(token.size())) {
    return NotHere("the server is not on this host");
  }
  pollfd waiting{server.get(), POLLIN, 0};
  if (poll(&waiting, 1, kLeaseTimeoutMs) <= 0) return NotHere("no descriptor came");
  const auto descriptor = ReceiveDescriptor(server.get());
  if (!descriptor) return NotHere("no descriptor came");
  return *descriptor;
}

}  // namespace

absl::StatusOr<std::shared_ptr<ClientRegion>> ClientRegion::Map(uint64_t id, int descriptor,
                                                                size_t bytes) {
  const Socket closed_at_the_end(descriptor);
  struct stat file {};
  if (fstat(descriptor, &file) != 0 || static_cast<size_t>(file.st_size) != bytes) {
    return NotHere("the region has another size than granted");
  }
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (base == MAP_FAILED) return NotHere("the region cannot be mapped");
  return std::shared_ptr<ClientRegion>(new ClientRegion(id, static_cast<std::byte*>(base), bytes));
}

ClientRegion::~ClientRegion() { munmap(base_, bytes_); }

std::optional<uint64_t> ClientRegion::Allocate(size_t bytes) {
  if (bytes == 0 || bytes > bytes_) return std::nullopt;
  const size_t size = (bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
  MutexLock lock(mutex_);
  uint64_t begin = 0;
  for (const auto& [offset, used] : used_) {
    if (offset - begin >= size) break;
    begin = offset + used;
  }
  if (begin + bytes > bytes_) return std::nullopt;
  used_[begin] = size;
  return begin;
}

void ClientRegion::Free(uint64_t offset) {
  MutexLock lock(mutex_);
  used_.erase(offset);
}

RegionClient::~RegionClient() {
  MutexLock lock(mutex_);
  CloseLocked();
}

void RegionClient::CloseLocked() {
  region_.reset();
  lease_.reset();
}

std::shared_ptr<ClientRegion> RegionClient::Region() {
  if (bytes_ == 0) return nullptr;
  MutexLock lock(mutex_);
  if (region_ && lease_->alive()) return region_;
  if (SteadyClock::now() < next_try_) return nullptr;
  CloseLocked();
  auto region = Lease();
  if (!region.ok()) {
    CloseLocked();
    next_try_ = SteadyClock::now() + kRetryAfter;
    return nullptr;
  }
  region_ = *std::move(region);
  return region_;
}

void RegionClient::Retire(const std::shared_ptr<ClientRegion>& region) {
  MutexLock lock(mutex_);
  if (region_ == region) CloseLocked();
}

absl::StatusOr<std::shared_ptr<ClientRegion>> RegionClient::Lease() {
  v1::OpenRegionRequest request;
  request.set_bytes(bytes_);
  LKV_ASSIGN_OR_RETURN(lease_, RegionLease::Open(stub_, request, kLeaseTimeoutMs));
  const v1::RegionGrant& grant = lease_->grant();
  if (grant.bytes() != bytes_) return NotHere("another size than asked for");
  LKV_ASSIGN_OR_RETURN(const int descriptor, AskForDescriptor(grant.socket_name(), grant.token()));
  return ClientRegion::Map(grant.region_id(), descriptor, grant.bytes());
}

}  // namespace latticekv
