// The put: announces chunks, sends the payload of those the server wants, and collects its
// acknowledgements. Internal to client/.
#ifndef LATTICEKV_CLIENT_SRC_PUT_OPERATION_H_
#define LATTICEKV_CLIENT_SRC_PUT_OPERATION_H_

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "client/src/part_buffer.h"
#include "client/src/put_plan.h"
#include "client/src/region_client.h"
#include "client/src/retry_loop.h"
#include "client/src/stream_watchdog.h"
#include "client/src/stub.h"
#include "core/base/mutex.h"
#include "latticekv/blocks.h"

namespace latticekv {

// What a put sends over.
struct PutRoute {
  Stub* stub = nullptr;
  RegionClient* regions = nullptr;   // null: no shared memory
  const Stub* lease_stub = nullptr;  // what GPU caches of this client are leased over
};

// The chunks of one or more puts and what became of them, side by side.
struct PutWork {
  std::vector<PutChunk> chunks;
  std::vector<BlockResult> results;
  std::vector<bool> settled;
  std::vector<uint64_t> sent_bytes;
  // Once the server did not know the region of a chunk in GPU memory. Another one gets one try.
  std::vector<bool> region_gone;
};

// One stream of a put. The calling thread writes while another reads, so that neither side can wait
// for the other with full buffers.
class PutAttempt {
 public:
  // Sends the chunks of `work` that are not settled; they share what their stream's PutOpen says.
  // Everything must outlive the attempt.
  PutAttempt(const PutRoute& route, const ClientOptions& options, PutWork& work);

  // OK: every chunk has an acknowledgement, good or bad. Otherwise what broke the stream; chunks
  // acknowledged by then stay settled.
  absl::Status Run();
  // Ends the attempt before all is acknowledged. Blocks in GPU memory that the server was told of
  // it may still read, and store what it finds: those it acknowledges first. Thread-safe.
  void Cancel();

 private:
  enum class State { kWaiting, kAnnounced, kSettled };
  // What the writer does next.
  enum class Step { kAnnounce, kSend, kDone };

  void WriteAll();
  // Waits until there is something to write; `chunk` is set unless the answer is kDone.
  Step NextStep(uint32_t& chunk);
  bool Announce(uint32_t chunk);
  bool SendPayload(uint32_t chunk);
  bool SendGpuPart(uint32_t chunk);
  // Room in shared memory, waited for while own blocks hold it; none: send over the socket.
  RegionSlot WaitForSlot(size_t bytes);
  bool SendThroughRegion(uint32_t chunk, RegionSlot slot);
  bool SendParts(uint32_t chunk);
  bool SendFrame(uint32_t chunk);
  bool SendPart(uint32_t chunk, uint64_t offset, uint32_t crc, const PartBuffer& data);
  void ReadAll();
  absl::Status OnCredit(const v1::BlockCredit& credit);
  absl::Status OnAck(const v1::BlockAck& ack);
  void SettleLocked(uint32_t chunk, bool settled) LKV_REQUIRES(mutex_);
  bool Unwanted(uint32_t chunk);
  // Of the client's memory that is lent to the server while the chunk is announced.
  uint64_t InflightBytes(uint32_t chunk) const;
  void Break(absl::Status why);

  const PutRoute route_;
  const ClientOptions& options_;
  PutWork& work_;
  std::unique_ptr<PutStream> stream_;
  PartPool pool_;
  std::map<uint32_t, ByteVector> frames_;  // of the writing thread: announced, not sent

  Mutex mutex_;
  CondVar changed_;
  std::vector<State> states_ LKV_GUARDED_BY(mutex_);
  std::vector<bool> credited_ LKV_GUARDED_BY(mutex_);
  std::deque<uint32_t> waiting_ LKV_GUARDED_BY(mutex_);          // not announced, in order
  std::deque<uint32_t> ready_ LKV_GUARDED_BY(mutex_);            // with credit, not sent
  std::map<uint32_t, RegionSlot> slots_ LKV_GUARDED_BY(mutex_);  // sent, not acknowledged
  uint32_t inflight_blocks_ LKV_GUARDED_BY(mutex_) = 0;          // announced, not acknowledged
  uint64_t inflight_bytes_ LKV_GUARDED_BY(mutex_) = 0;
  uint32_t unsettled_ LKV_GUARDED_BY(mutex_) = 0;
  std::vector<bool> lent_ LKV_GUARDED_BY(mutex_);  // in GPU memory, and the server was told where
  bool stopping_ LKV_GUARDED_BY(mutex_) = false;   // nothing more is announced or sent
  bool ended_ LKV_GUARDED_BY(mutex_) = false;      // no more reads
  absl::Status broken_ LKV_GUARDED_BY(mutex_);     // the server broke the protocol
  StreamWatchdog watchdog_;                        // last: it may cancel the stream
};

// Whole puts, over as many streams as `retry` allows. All of them share one stream: same layout,
// session, preset, state to wait for, life time, and side that compresses; INVALID_ARGUMENT
// otherwise. Results are in the order of the requests. The first request's timeout and token count.
absl::StatusOr<std::vector<PutResult>> RunPuts(const PutRoute& route,
                                               const std::vector<const PutRequest*>& requests,
                                               const ClientOptions& options, RetryState retry);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_SRC_PUT_OPERATION_H_
