// latticekv get: reads a session from a daemon into a safetensors file.
#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/src/cache_file.h"
#include "core/base/status_macros.h"
#include "latticekv/client.h"

namespace latticekv {
namespace {

// Writes blocks straight into the file. A block that is missing ends the get: the file would not be
// the session.
class FileSink : public GetSink {
 public:
  FileSink(std::string path, const Layout& layout)
      : path_(std::move(path)), layout_(layout), progress_("reading layer", layout.layers.size()) {}

  absl::Status OnBlock(const ServedBlock& block) override {
    if (!block.miss.ok()) return Missing(block.index, block.miss);
    first_token_.push_back(tokens_);
    tokens_ += block.block.tokens;
    if (tokens_ > std::numeric_limits<uint32_t>::max()) {
      return absl::InvalidArgumentError("the session has too many tokens for one file");
    }
    token_ids_.insert(token_ids_.end(), block.tokens.begin(), block.tokens.end());
    keep_.insert(keep_.end(), block.keep.begin(), block.keep.end());
    keep_.resize(tokens_, 1);
    stored_bytes_ += block.block.stored_bytes;
    quality_.Add(block.block.quality, block.block.tokens);
    return absl::OkStatus();
  }

  absl::StatusOr<MutablePlaneView> Destination(uint32_t block_index, uint32_t layer,
                                               uint32_t plane) override {
    if (!writer_) LKV_RETURN_IF_ERROR(CreateFile());
    return writer_->View(layer, plane, first_token_[block_index]);
  }

  absl::Status OnLayer(uint32_t layer) override {
    progress_.Add();
    return absl::OkStatus();
  }
  absl::Status OnBlockFailed(uint32_t block_index, const absl::Status& why) override {
    return Missing(block_index, why);
  }
  absl::Status OnRestart() override {
    first_token_.clear();
    token_ids_.clear();
    keep_.clear();
    tokens_ = stored_bytes_ = 0;
    quality_ = {};
    writer_.reset();
    return absl::OkStatus();
  }

  absl::Status Commit() {
    if (!writer_) return absl::NotFoundError("the session has no blocks");
    return writer_->Commit();
  }
  uint64_t tokens() const { return tokens_; }
  uint64_t evicted() const {
    return static_cast<uint64_t>(std::count(keep_.begin(), keep_.end(), 0));
  }
  size_t blocks() const { return first_token_.size(); }
  uint64_t stored_bytes() const { return stored_bytes_; }
  Quality quality() const { return quality_.Result(); }

 private:
  static absl::Status Missing(uint32_t index, const absl::Status& why) {
    return absl::Status(why.code(), absl::StrCat("block ", index, " of the session cannot be had: ",
                                                 std::string(why.message())));
  }

  absl::Status CreateFile() {
    // Ids that were given to only some blocks cannot be told apart.
    if (token_ids_.size() != tokens_) token_ids_.clear();
    const bool wide = std::any_of(token_ids_.begin(), token_ids_.end(), [](uint32_t id) {
      return id > static_cast<uint32_t>(std::numeric_limits<int32_t>::max());
    });
    LKV_ASSIGN_OR_RETURN(
        writer_,
        CacheWriter::Create(path_, layout_, static_cast<uint32_t>(tokens_), token_ids_,
                            wide ? TensorDType::kI64 : TensorDType::kI32, LayoutMetadata(layout_),
                            evicted() > 0 ? keep_ : std::vector<uint8_t>()));
    return absl::OkStatus();
  }

  const std::string path_;
  const Layout& layout_;
  Progress progress_;
  std::optional<CacheWriter> writer_;
  std::vector<uint64_t> first_token_;
  std::vector<uint32_t> token_ids_;
  std::vector<uint8_t> keep_;  // 1 or 0 for each token
  uint64_t tokens_ = 0, stored_bytes_ = 0;
  QualitySum quality_;
};

absl::Status Get(const Arguments& arguments) {
  LKV_ASSIGN_OR_RETURN(const std::string server, arguments.Require("server"));
  GetRequest request;
  LKV_ASSIGN_OR_RETURN(request.session, arguments.Require("session"));
  const std::string name_space = arguments.Get("namespace", "default");
  LKV_ASSIGN_OR_RETURN(Client client, Connect(server));
  LKV_ASSIGN_OR_RETURN(const SessionDetail session, client.GetSession(name_space, request.session));
  request.layout.layout = std::make_shared<const Layout>(session.layout);
  request.layout.fingerprint = session.fingerprint;
  request.layout.name_space = name_space;
  request.accept_evicted = arguments.Has("accept-evicted");
  request.unordered_layers = true;

  FileSink sink(arguments.positionals()[0], session.layout);
  const auto start = std::chrono::steady_clock::now();
  LKV_RETURN_IF_ERROR(client.Get(request, sink));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  LKV_RETURN_IF_ERROR(sink.Commit());

  const uint64_t raw_bytes = session.layout.token_bytes() * sink.tokens();
  const double gb_per_s = static_cast<double>(raw_bytes) / 1e9 / seconds;
  if (arguments.Has("json")) {
    PrintJson({{"session", request.session},
               {"namespace", name_space},
               {"tokens", sink.tokens()},
               {"chunks", sink.blocks()},
               {"raw_bytes", raw_bytes},
               {"stored_bytes", sink.stored_bytes()},
               {"ratio", Ratio(raw_bytes, sink.stored_bytes())},
               {"evicted_tokens", sink.evicted()},
               {"quality", QualityJson(sink.quality())},
               {"seconds", seconds},
               {"gb_per_s", gb_per_s}});
    return absl::OkStatus();
  }
  PrintFields({{"session", absl::StrCat(request.session, " in namespace ", name_space)},
               {"tokens", TokensText(sink.tokens(), sink.evicted())},
               {"chunks", absl::StrCat(sink.blocks())},
               {"raw", BytesText(raw_bytes)},
               {"stored", BytesText(sink.stored_bytes())},
               {"ratio", Fixed(Ratio(raw_bytes, sink.stored_bytes()), 2)},
               {"quality", QualityText(sink.quality())},
               {"get", absl::StrCat(Fixed(gb_per_s, 3), " GB/s")}});
  return absl::OkStatus();
}

}  // namespace

Command GetCommand() {
  return {
      {"get",
       "OUT.safetensors",
       1,
       1,
       "Read a session's cache from a daemon.",
       {ServerFlag(),
        {"session", "NAME", "name it was stored under"},
        {"namespace", "N", "namespace (default: default)"},
        {"accept-evicted", "",
         "take blocks with evicted tokens, which come as zeros; `keep` in the file tells which"},
        JsonFlag()}},
      Get};
}

}  // namespace latticekv
