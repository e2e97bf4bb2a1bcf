// The put: announces chunks, sends the payload of those the server wants, and collects its
// acknowledgements. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_PUT_OPERATION_H_
#define LATTICEKV_CLIENT_SRC_PUT_OPERATION_H_

#include <deque>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "client/src/put_plan.h"
#include "client/src/retry_loop.h"
#include "client/src/stream_watchdog.h"
#include "client/src/stub.h"
#include "core/base/mutex.h"
#include "latticekv/blocks.h"

namespace latticekv {

// One stream of a put. The calling thread writes while another reads, so that neither side can wait
// for the other with full buffers.
class PutAttempt {
 public:
  // Sends those `chunks` whose result is not settled. Everything must outlive the attempt.
  PutAttempt(Stub& stub, const PutRequest& request, const std::vector<PutChunk>& chunks,
             const ClientOptions& options, std::vector<bool>& settled, PutResult& result);

  // OK: every chunk has an acknowledgement, good or bad. Otherwise what broke the stream; chunks
  // acknowledged by then stay settled.
  absl::Status Run();

 private:
  enum class State { kWaiting, kAnnounced, kSettled };
  // What the writer does next.
  enum class Step { kAnnounce, kSend, kDone };

  void WriteAll();
  // Waits until there is something to write; `chunk` is set unless the answer is kDone.
  Step NextStep(uint32_t& chunk);
  bool SendPayload(uint32_t chunk);
  void ReadAll();
  absl::Status OnCredit(const v1::BlockCredit& credit);
  absl::Status OnAck(const v1::BlockAck& ack);
  void Break(absl::Status why);

  const PutRequest& request_;
  const std::vector<PutChunk>& chunks_;
  const ClientOptions& options_;
  std::vector<bool>& settled_;
  PutResult& result_;
  std::unique_ptr<PutStream> stream_;
  StreamWatchdog watchdog_;
  uint64_t sent_bytes_ = 0;  // of the writing thread

  Mutex mutex_;
  CondVar changed_;
  std::vector<State> states_ LKV_GUARDED_BY(mutex_);
  std::vector<bool> credited_ LKV_GUARDED_BY(mutex_);
  std::deque<uint32_t> waiting_ LKV_GUARDED_BY(mutex_);  // not announced, in order
  std::deque<uint32_t> ready_ LKV_GUARDED_BY(mutex_);    // with credit, not sent
  uint32_t inflight_blocks_ LKV_GUARDED_BY(mutex_) = 0;  // announced, not acknowledged
  uint64_t inflight_bytes_ LKV_GUARDED_BY(mutex_) = 0;
  uint32_t unsettled_ LKV_GUARDED_BY(mutex_) = 0;
  bool ended_ LKV_GUARDED_BY(mutex_) = false;   // no more reads
  absl::Status broken_ LKV_GUARDED_BY(mutex_);  // the server broke the protocol
};

// The whole put, over as many streams as `retry` allows.
absl::StatusOr<PutResult> RunPut(Stub& stub, const PutRequest& request,
                                 const ClientOptions& options, RetryState retry);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_PUT_OPERATION_H_
