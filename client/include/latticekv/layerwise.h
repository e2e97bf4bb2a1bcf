// A get that runs beside its reader: layer l is used while layer l + 1 is on its way.
#ifndef LATTICEKV_LAYERWISE_H_
#define LATTICEKV_LAYERWISE_H_

#include <memory>

#include "absl/status/status.h"
#include "latticekv/client.h"

namespace latticekv {

// Starts with its construction and calls `sink` from a thread of its own. Once a layer was waited
// for, a broken connection ends the get with UNAVAILABLE instead of sending anything again, so that
// nothing is written to memory that is in use. Used from one thread.
class LayerwiseGet {
 public:
  // `sink` must outlive it.
  LayerwiseGet(Client client, GetRequest request, GetSink& sink);
  // Breaks the get off when it still runs.
  ~LayerwiseGet();
  LayerwiseGet(const LayerwiseGet&) = delete;
  LayerwiseGet& operator=(const LayerwiseGet&) = delete;

  // Until every block that was found has this layer; OK as well when no block was found, and an
  // error when the get ended before. Which blocks were found the sink knows. GPU memory is filled
  // block by block: with such a target every layer waits for the end.
  absl::Status WaitLayer(uint32_t layer);
  // Until the end of the get; its status.
  absl::Status Finish();

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace latticekv

#endif  // LATTICEKV_LAYERWISE_H_
