#include "latticekv/layerwise.h"

#include <optional>
#include <thread>
#include <utility>

#include "core/base/mutex.h"

namespace latticekv {

// Passes everything on, and tells of the layers.
struct LayerwiseGet::Impl : public GetSink {
  Impl(Client used_client, GetRequest used_request, GetSink& used_sink)
      : client(std::move(used_client)), request(std::move(used_request)), sink(used_sink) {
    // The caller's own token, if it has one, still works.
    own_token = CancelToken::Make();
    forward.emplace(request.cancel, [token = own_token] { token.Cancel(); });
    request.cancel = own_token;
    thread = std::thread([this] {
      absl::Status end = client.Get(request, *this);
      MutexLock lock(mutex);
      status = std::move(end);
      ended = true;
      changed.SignalAll();
    });
  }

  absl::Status OnBlock(const ServedBlock& block) override { return sink.OnBlock(block); }
  absl::StatusOr<MutablePlaneView> Destination(uint32_t block, uint32_t layer,
                                               uint32_t plane) override {
    return sink.Destination(block, layer, plane);
  }
  absl::Status OnLayer(uint32_t layer) override {
    if (absl::Status own = sink.OnLayer(layer); !own.ok()) return own;
    MutexLock lock(mutex);
    layers_done = layer + 1;
    changed.SignalAll();
    return absl::OkStatus();
  }
  absl::Status OnBlockPlaced(uint32_t block) override { return sink.OnBlockPlaced(block); }
  absl::Status OnBlockFailed(uint32_t block, const absl::Status& why) override {
    return sink.OnBlockFailed(block, why);
  }
  absl::Status OnRestart() override {
    MutexLock lock(mutex);
    if (used) {
      return absl::UnavailableError("get: the connection broke after layers of it were used");
    }
    layers_done = 0;
    return sink.OnRestart();
  }

  Client client;
  GetRequest request;
  GetSink& sink;
  CancelToken own_token;
  std::optional<CancelToken::Registration> forward;
  Mutex mutex;
  CondVar changed;
  uint32_t layers_done LKV_GUARDED_BY(mutex) = 0;
  bool used LKV_GUARDED_BY(mutex) = false;
  bool ended LKV_GUARDED_BY(mutex) = false;
  absl::Status status LKV_GUARDED_BY(mutex);
  std::thread thread;
};

LayerwiseGet::LayerwiseGet(Client client, GetRequest request, GetSink& sink)
    : impl_(std::make_unique<Impl>(std::move(client), std::move(request), sink)) {}

LayerwiseGet::~LayerwiseGet() {
  impl_->own_token.Cancel();
  impl_->thread.join();
}

absl::Status LayerwiseGet::WaitLayer(uint32_t layer) {
  MutexLock lock(impl_->mutex);
  while (!impl_->ended && impl_->layers_done <= layer) impl_->changed.Wait(impl_->mutex);
  if (impl_->layers_done <= layer) return impl_->status;
  impl_->used = true;
  return absl::OkStatus();
}

absl::Status LayerwiseGet::Finish() {
  MutexLock lock(impl_->mutex);
  while (!impl_->ended) impl_->changed.Wait(impl_->mutex);
  return impl_->status;
}

}  // namespace latticekv
