#include "latticekv/batching_writer.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/mutex.h"

namespace latticekv {
namespace {

using SteadyClock = std::chrono::steady_clock;

// An Append that waits for its tokens' chunks.
struct Waiter {
  std::promise<absl::Status> promise;
  uint32_t chunks_left = 0;
  absl::Status status;
};

// One chunk of one sequence, full or not.
struct Job {
  std::vector<uint32_t> tokens;  // of the sequence, up to the chunk's end
  uint64_t start = 0;
  std::vector<std::vector<ByteVector>> planes;  // [layer][plane], contiguous
  std::vector<std::shared_ptr<Waiter>> waiters;
  size_t bytes = 0;
  uint64_t sequence = 0, generation = 0;
};

struct Sequence {
  uint64_t generation = 0;
  std::vector<uint32_t> tokens;
  uint64_t start = 0;   // of the chunk that is being filled
  uint32_t unsent = 0;  // tokens at its end that have not left
  std::vector<std::vector<ByteVector>> planes;
  std::vector<std::shared_ptr<Waiter>> waiters;
  SteadyClock::time_point oldest;  // of the unsent tokens
  absl::Status failed;
};

}  // namespace

class BatchingWriter::Impl {
 public:
  Impl(Client client, BatchTarget target, BatchLimits limits)
      : client_(std::move(client)), target_(std::move(target)), limits_(limits) {
    for (uint32_t i = 0; i < std::max(limits_.streams, 1u); ++i) {
      threads_.emplace_back([this] { Run(); });
    }
  }

  ~Impl() {
    Flush();
    {
      MutexLock lock(mutex_);
      stop_ = true;
      changed_.SignalAll();
    }
    for (std::thread& thread : threads_) thread.join();
  }

  std::future<absl::Status> Append(uint64_t id, std::span<const uint32_t> tokens,
                                   const std::vector<std::vector<PlaneView>>& planes) {
    auto waiter = std::make_shared<Waiter>();
    std::future<absl::Status> future = waiter->promise.get_future();
    const size_t bytes = target_.layout.layout->token_bytes() * tokens.size();
    MutexLock lock(mutex_);
    ++counters_.appends;
    Sequence& sequence = FindOrStart(id);
    if (sequence.failed.ok() && counters_.pending_bytes + bytes > limits_.max_pending_bytes) {
      sequence.failed = absl::ResourceExhaustedError(absl::StrCat(
          "batch: ", counters_.pending_bytes, " bytes wait for the daemon (max_pending_bytes)"));
    }
    if (!sequence.failed.ok() || tokens.empty()) {
      counters_.dropped_appends += !sequence.failed.ok();
      waiter->promise.set_value(sequence.failed);
      return future;
    }
    counters_.pending_bytes += bytes;
    for (size_t done = 0; done < tokens.size();)
      done += Fill(id, sequence, tokens, planes, done, waiter);
    changed_.SignalAll();
    return future;
  }

  void End(uint64_t id) {
    MutexLock lock(mutex_);
    const auto it = sequences_.find(id);
    if (it == sequences_.end()) return;
    if (it->second.unsent > 0) Cut(id, it->second, true);
    sequences_.erase(it);
    changed_.SignalAll();
  }

  void Flush() {
    MutexLock lock(mutex_);
    for (auto& [id, sequence] : sequences_) {
      if (sequence.unsent > 0) Cut(id, sequence, false);
    }
    changed_.SignalAll();
    while (!ready_.empty() || running_ > 0) changed_.Wait(mutex_);
  }

  Counters counters() const {
    MutexLock lock(mutex_);
    return counters_;
  }

 private:
  Sequence& FindOrStart(uint64_t id) LKV_REQUIRES(mutex_) {
    const auto [it, fresh] = sequences_.try_emplace(id);
    if (fresh) {
      it->second.generation = ++generations_;
      Restart(it->second);
    }
    return it->second;
  }

  void Restart(Sequence& sequence) {
    const std::vector<LayerSpec>& layers = target_.layout.layout->layers;
    sequence.planes.assign(layers.size(), {});
    for (size_t l = 0; l < layers.size(); ++l) {
      sequence.planes[l].resize(layers[l].planes.size());
      for (size_t p = 0; p < layers[l].planes.size(); ++p) {
        sequence.planes[l][p].reserve(layers[l].planes[p].token_bytes() *
                                      target_.layout.chunk_tokens);
      }
    }
  }

  // Copies as many tokens as the current chunk takes; sends it off when it is full.
  size_t Fill(uint64_t id, Sequence& sequence, std::span<const uint32_t> tokens,
              const std::vector<std::vector<PlaneView>>& planes, size_t first,
              const std::shared_ptr<Waiter>& waiter) LKV_REQUIRES(mutex_) {
    const uint64_t held = sequence.tokens.size() - sequence.start;
    const size_t count =
        std::min<size_t>(tokens.size() - first, target_.layout.chunk_tokens - held);
    for (size_t l = 0; l < planes.size(); ++l) {
      for (size_t p = 0; p < planes[l].size(); ++p) {
        CopyRows(target_.layout.layout->layers[l].planes[p], planes[l][p], first, count,
                 &sequence.planes[l][p]);
      }
    }
    sequence.tokens.insert(sequence.tokens.end(), tokens.begin() + first,
                           tokens.begin() + first + count);
    if (sequence.unsent == 0) sequence.oldest = SteadyClock::now();
    sequence.unsent += static_cast<uint32_t>(count);
    ++waiter->chunks_left;
    sequence.waiters.push_back(waiter);
    if (held + count == target_.layout.chunk_tokens) Cut(id, sequence, true);
    return count;
  }

  static void CopyRows(const PlaneSpec& plane, const PlaneView& from, size_t first, size_t count,
                       ByteVector* to) {
    const size_t row_bytes = plane.token_bytes();
    const size_t head_bytes = plane.head_dim * DTypeBytes(plane.dtype);
    for (size_t t = first; t < first + count; ++t) {
      const std::byte* row = from.data + t * from.token_stride;
      if (from.head_stride == head_bytes || plane.heads == 1) {
        to->insert(to->end(), row, row + row_bytes);
        continue;
      }
      for (uint32_t h = 0; h < plane.heads; ++h) {
        const std::byte* head = row + h * from.head_stride;
        to->insert(to->end(), head, head + head_bytes);
      }
    }
  }

  // Makes a job of the current chunk. `whole`: it takes no more tokens; otherwise a copy leaves and
  // the chunk goes on growing.
  void Cut(uint64_t id, Sequence& sequence, bool whole) LKV_REQUIRES(mutex_) {
    Job job;
    job.tokens = sequence.tokens;
    job.start = sequence.start;
    job.bytes = target_.layout.layout->token_bytes() * sequence.unsent;
    job.waiters = std::exchange(sequence.waiters, {});
    job.sequence = id;
    job.generation = sequence.generation;
    if (whole) {
      job.planes = std::move(sequence.planes);
      sequence.start = sequence.tokens.size();
      Restart(sequence);
    } else {
      job.planes = sequence.planes;
    }
    sequence.unsent = 0;
    ready_.push_back(std::move(job));
  }

  // Cuts the chunks whose delay is over; the milliseconds until the next one is due.
  int64_t CutDue() LKV_REQUIRES(mutex_) {
    const auto now = SteadyClock::now();
    const auto delay = std::chrono::milliseconds(limits_.max_delay_ms);
    int64_t wait_ms = limits_.max_delay_ms;
    for (auto& [id, sequence] : sequences_) {
      if (sequence.unsent == 0) continue;
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(sequence.oldest + delay - now);
      if (left.count() <= 0) {
        Cut(id, sequence, false);
      } else {
        wait_ms = std::min<int64_t>(wait_ms, left.count());
      }
    }
    return std::max<int64_t>(wait_ms, 1);
  }

  void Run() {
    while (true) {
      std::vector<Job> batch;
      {
        MutexLock lock(mutex_);
        while (true) {
          if (stop_) return;
          const int64_t wait_ms = CutDue();
          if (!ready_.empty()) break;
          changed_.WaitFor(mutex_, wait_ms);
        }
        size_t bytes = 0;
        while (!ready_.empty() && batch.size() < limits_.max_chunks &&
               (batch.empty() || bytes + ready_.front().bytes <= limits_.max_bytes)) {
          bytes += ready_.front().bytes;
          batch.push_back(std::move(ready_.front()));
          ready_.pop_front();
        }
        ++running_;
      }
      Send(std::move(batch));
    }
  }

  void Send(std::vector<Job> batch) {
    std::vector<PutRequest> requests;
    for (const Job& job : batch) requests.push_back(RequestOf(job));
    const auto results = client_.PutBatch(requests);
    MutexLock lock(mutex_);
    --running_;
    ++counters_.batches;
    counters_.chunks_sent += batch.size();
    for (size_t i = 0; i < batch.size(); ++i) {
      const absl::Status status = results.ok() ? (*results)[i].status() : results.status();
      counters_.pending_bytes -= batch[i].bytes;
      for (const std::shared_ptr<Waiter>& waiter : batch[i].waiters) {
        if (waiter->status.ok()) waiter->status = status;
        if (--waiter->chunks_left == 0) waiter->promise.set_value(waiter->status);
      }
      const auto it = sequences_.find(batch[i].sequence);
      if (!status.ok() && it != sequences_.end() && it->second.generation == batch[i].generation &&
          it->second.failed.ok()) {
        it->second.failed = status;
      }
    }
    changed_.SignalAll();
  }

  PutRequest RequestOf(const Job& job) const {
    PutRequest request;
    request.layout = target_.layout;
    request.session = target_.session;
    request.tokens = job.tokens;
    request.start = job.start;
    request.preset = target_.preset;
    request.durable = target_.durable;
    request.ttl_ms = target_.ttl_ms;
    request.compress_on_worker = target_.compress_on_worker;
    const std::vector<LayerSpec>& layers = target_.layout.layout->layers;
    for (size_t l = 0; l < layers.size(); ++l) {
      auto& planes = request.planes.emplace_back();
      for (size_t p = 0; p < layers[l].planes.size(); ++p) {
        planes.push_back(ContiguousPlane(layers[l].planes[p],
                                         static_cast<const std::byte*>(job.planes[l][p].data())));
      }
    }
    return request;
  }

  Client client_;
  const BatchTarget target_;
  const BatchLimits limits_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::map<uint64_t, Sequence> sequences_ LKV_GUARDED_BY(mutex_);
  std::deque<Job> ready_ LKV_GUARDED_BY(mutex_);
  uint64_t generations_ LKV_GUARDED_BY(mutex_) = 0;
  uint32_t running_ LKV_GUARDED_BY(mutex_) = 0;
  bool stop_ LKV_GUARDED_BY(mutex_) = false;
  Counters counters_ LKV_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

BatchingWriter::BatchingWriter(Client client, BatchTarget target, BatchLimits limits)
    : impl_(std::make_unique<Impl>(std::move(client), std::move(target), limits)) {}
BatchingWriter::~BatchingWriter() = default;
std::future<absl::Status> BatchingWriter::Append(
    uint64_t sequence, std::span<const uint32_t> tokens,
    const std::vector<std::vector<PlaneView>>& planes) {
  return impl_->Append(sequence, tokens, planes);
}
void BatchingWriter::End(uint64_t sequence) { impl_->End(sequence); }
void BatchingWriter::Flush() { impl_->Flush(); }
BatchingWriter::Counters BatchingWriter::counters() const { return impl_->counters(); }

}  // namespace latticekv
