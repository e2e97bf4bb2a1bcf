#include "tests/support/fake_stub.h"

#include <algorithm>
#include <utility>

#include "core/base/crc32c.h"

namespace latticekv::testing {
namespace {

// Handles what the client writes at once, on the client's writing thread; replies wait in a queue.
class FakePutStream : public PutStream {
 public:
  explicit FakePutStream(FakeServer& server) : server_(server) {
    if (!server_.break_after.empty()) {
      break_after_ = server_.break_after.front();
      server_.break_after.pop_front();
    }
    replies_.assign(server_.say_first.begin(), server_.say_first.end());
  }

  bool Write(const v1::PutBlocksRequest& message) override {
    MutexLock lock(mutex_);
    if (closed_) return false;
    if (message.has_open()) server_.opens.push_back(message.open());
    if (message.has_header()) OnHeader(message.header());
    if (message.has_part()) OnPart(message.part());
    if (message.has_region_part()) OnRegionPart(message.region_part());
    return true;
  }

  void WritesDone() override { Close(); }

  bool Read(v1::PutBlocksResponse& message) override {
    MutexLock lock(mutex_);
    while (replies_.empty() && !closed_) changed_.Wait(mutex_);
    if (replies_.empty()) return false;
    message = replies_.front();
    replies_.pop_front();
    if (message.has_ack()) {
      --unacked_;
      unacked_bytes_ -= headers_[message.ack().index()].payload_bytes();
    }
    return true;
  }

  absl::Status Finish() override {
    MutexLock lock(mutex_);
    return status_;
  }

  void Cancel() override {
    MutexLock lock(mutex_);
    status_ = absl::CancelledError("cancelled");
    closed_ = true;
    changed_.SignalAll();
  }

 private:
  void Close() {
    MutexLock lock(mutex_);
    closed_ = true;
    changed_.SignalAll();
  }

  void OnHeader(const v1::BlockHeader& header) LKV_REQUIRES(mutex_) {
    server_.headers.push_back(header);
    headers_[header.index()] = header;
    ++unacked_;
    unacked_bytes_ += header.payload_bytes();
    server_.max_unacked = std::max(server_.max_unacked, unacked_);
    server_.max_unacked_bytes = std::max(server_.max_unacked_bytes, unacked_bytes_);
    if (server_.silent) return;
    const auto refused = server_.refuse.find(header.content_hash());
    if (refused != server_.refuse.end()) {
      v1::BlockAck ack = AckOf(header);
      *ack.mutable_error() = refused->second;
      Acknowledge(ack);
    } else if (server_.blocks.contains(header.content_hash())) {
      v1::BlockAck ack = AckOf(header);
      ack.set_have_it(true);
      Acknowledge(ack);
    } else {
      v1::PutBlocksResponse credit;
      credit.mutable_credit()->set_index(header.index());
      replies_.push_back(credit);
      changed_.SignalAll();
    }
    Release();
  }

  void OnPart(const v1::BlockPart& part) LKV_REQUIRES(mutex_) {
    ++server_.parts;
    server_.largest_part = std::max(server_.largest_part, part.data().size());
    if (Crc32c(AsBytes(part.data())) != part.crc32c()) ++server_.bad_checksums;
    std::string& payload = payloads_[part.index()];
    if (part.offset() == payload.size()) payload += part.data();
    const v1::BlockHeader& header = headers_[part.index()];
    if (payload.size() != header.payload_bytes()) return;
    server_.blocks[header.content_hash()] = payload;
    Acknowledge(AckOf(header));
    Release();
  }

  void OnRegionPart(const v1::RegionPart& part) LKV_REQUIRES(mutex_) {
    server_.region_parts.push_back(part);
    const v1::BlockHeader& header = headers_[part.index()];
    v1::BlockAck ack = AckOf(header);
    if (server_.regions.contains(part.region_id())) {
      server_.blocks[header.content_hash()] = "";
    } else {
      ack.mutable_error()->set_reason(v1::REASON_REGION_GONE);
    }
    Acknowledge(ack);
    Release();
  }

  static v1::BlockAck AckOf(const v1::BlockHeader& header) {
    v1::BlockAck ack;
    ack.set_index(header.index());
    ack.set_content_hash(header.content_hash());
    ack.set_raw_bytes(header.payload_bytes());
    ack.set_stored_bytes(header.payload_bytes() / 4);
    ack.set_state(v1::BLOCK_STATE_MEMORY);
    return ack;
  }

  void Acknowledge(const v1::BlockAck& ack) LKV_REQUIRES(mutex_) { held_.push_back(ack); }

  // Sends the acknowledgements that are due.
  void Release() LKV_REQUIRES(mutex_) {
    if (headers_.size() < server_.hold_acks_until) return;
    for (const v1::BlockAck& ack : held_) {
      if (break_after_ == 0) {
        status_ = absl::UnavailableError("the fake server went away");
        closed_ = true;
        break;
      }
      v1::PutBlocksResponse reply;
      *reply.mutable_ack() = ack;
      replies_.push_back(reply);
      if (break_after_ > 0) --break_after_;
    }
    held_.clear();
    changed_.SignalAll();
  }

  FakeServer& server_;
  Mutex mutex_;
  CondVar changed_;
  int break_after_ = -1;  // never
  bool closed_ = false;
  absl::Status status_;
  std::deque<v1::PutBlocksResponse> replies_;
  std::vector<v1::BlockAck> held_;
  std::map<uint32_t, v1::BlockHeader> headers_;
  std::map<uint32_t, std::string> payloads_;
  uint32_t unacked_ = 0;
  uint64_t unacked_bytes_ = 0;
};

// One grant, and the lease until it is cancelled; or the status that it is refused with.
class FakeRegionStream : public ReadStream<v1::RegionGrant> {
 public:
  FakeRegionStream(FakeServer& server, uint64_t id, absl::Status status)
      : server_(server), id_(id), status_(std::move(status)) {
    if (status_.ok()) ++server_.leases;
  }
  ~FakeRegionStream() override {
    if (status_.ok()) --server_.leases;
  }
  bool Read(v1::RegionGrant& grant) override {
    if (!status_.ok()) return false;
    if (!std::exchange(granted_, true)) {
      grant.set_region_id(id_);
      return true;
    }
    MutexLock lock(mutex_);
    while (!cancelled_) changed_.Wait(mutex_);
    return false;
  }
  absl::Status Finish() override { return status_; }
  void Cancel() override {
    MutexLock lock(mutex_);
    cancelled_ = true;
    changed_.SignalAll();
  }

 private:
  FakeServer& server_;
  const uint64_t id_;
  const absl::Status status_;
  bool granted_ = false;
  Mutex mutex_;
  CondVar changed_;
  bool cancelled_ LKV_GUARDED_BY(mutex_) = false;
};

class FakeGetStream : public ReadStream<v1::GetBlocksResponse> {
 public:
  FakeGetStream(std::vector<v1::GetBlocksResponse> messages, absl::Status status, int& cancelled)
      : messages_(std::move(messages)), status_(std::move(status)), cancelled_(cancelled) {}
  bool Read(v1::GetBlocksResponse& message) override {
    if (next_ == messages_.size()) return false;
    message = messages_[next_++];
    return true;
  }
  absl::Status Finish() override { return status_; }
  void Cancel() override {
    next_ = messages_.size();
    ++cancelled_;
  }

 private:
  const std::vector<v1::GetBlocksResponse> messages_;
  const absl::Status status_;
  int& cancelled_;
  size_t next_ = 0;
};

}  // namespace

absl::StatusOr<v1::RegisterLayoutResponse> FakeStub::RegisterLayout(
    const v1::RegisterLayoutRequest& request) {
  if (!register_layout) return Nothing();
  return register_layout(request);
}

std::unique_ptr<PutStream> FakeStub::PutBlocks() {
  return std::make_unique<FakePutStream>(server_);
}

absl::StatusOr<v1::LookupResponse> FakeStub::Lookup(const v1::LookupRequest& request) {
  if (!lookup) return Nothing();
  return lookup(request);
}

std::unique_ptr<ReadStream<v1::GetBlocksResponse>> FakeStub::GetBlocks(
    const v1::GetBlocksRequest& request) {
  get_requests.push_back(request);
  if (gets.empty()) {
    return std::make_unique<FakeGetStream>(std::vector<v1::GetBlocksResponse>(),
                                           absl::UnavailableError("no stream was prepared"),
                                           gets_cancelled);
  }
  auto [messages, status] = std::move(gets.front());
  gets.pop_front();
  return std::make_unique<FakeGetStream>(std::move(messages), std::move(status), gets_cancelled);
}

std::unique_ptr<ReadStream<v1::RegionGrant>> FakeStub::OpenRegion(
    const v1::OpenRegionRequest& request) {
  server_.region_requests.push_back(request);
  absl::Status status;
  if (!server_.refuse_regions.empty()) {
    status = server_.refuse_regions.front();
    server_.refuse_regions.pop_front();
  }
  const uint64_t id = 100 + server_.region_requests.size();
  if (status.ok()) server_.regions.insert(id);
  return std::make_unique<FakeRegionStream>(server_, id, std::move(status));
}

absl::StatusOr<v1::StatsResponse> FakeStub::Stats(const v1::StatsRequest&) {
  if (!stats) return Nothing();
  return stats();
}

}  // namespace latticekv::testing
