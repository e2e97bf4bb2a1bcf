// The client of the crash test (crash.py).
//
//   crash_client put ADDRESS LOG WORKER ROUND
//     Puts sequences with durable acknowledgements until the daemon goes away. Each block that is
//     acknowledged as DURABLE is written to LOG, one line, when its acknowledgement arrives.
//   crash_client check ADDRESS FILE
//     Asks for every block that FILE (lines of such logs) names and compares every byte with a
//     local encode and decode. Registers nothing: the daemon has to know its layouts by itself.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "latticekv/client.h"
#include "tests/soak/synthetic_cache.h"

namespace latticekv {
namespace {

constexpr uint32_t kChunkTokens = 32;
constexpr uint32_t kChunks = 4;  // of a sequence
constexpr char kNamespace[] = "crash";
// Half of the sequences are exact, half are coded with the model's profile.
constexpr PresetId kPresets[] = {PresetId::kExact, PresetId::kHigh};

// Which sequence a line of the log is about. All else follows from it.
struct SequenceId {
  uint64_t worker = 0, round = 0, number = 0;
  auto operator<=>(const SequenceId&) const = default;
};

std::vector<uint32_t> TokensOf(const SequenceId& id) {
  uint64_t state = Mix(Mix(Mix(id.worker) + id.round) + id.number);
  std::vector<uint32_t> tokens(kChunks * kChunkTokens - id.number % kChunkTokens);
  for (uint32_t& token : tokens) {
    state = Mix(state);
    token = static_cast<uint32_t>(state % 50'000);
  }
  return tokens;
}

PresetId PresetOf(const SequenceId& id) { return kPresets[id.number % 2]; }

absl::StatusOr<SyntheticModel> Model() {
  return SyntheticModel::Create("crash", DType::kF16, RopeStyle::kNeox, true);
}

ClientOptions NoRetries() {
  ClientOptions options;
  options.retry_policy = std::make_shared<LimitedErrorCountRetryPolicy>(0);
  return options;
}

absl::Status PutUntilTheEnd(const std::string& address, const std::string& log, uint64_t worker,
                            uint64_t round) {
  LKV_ASSIGN_OR_RETURN(const SyntheticModel model, Model());
  LKV_ASSIGN_OR_RETURN(Client client, Connect(address, NoRetries()));
  const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return absl::InternalError("cannot open the log");
  RegisterLayoutRequest registration;
  registration.name_space = kNamespace;
  registration.layout = model.layout();
  registration.profile = SerializeProfile(*model.profile());
  registration.chunk_tokens = kChunkTokens;
  LKV_ASSIGN_OR_RETURN(const RegisteredLayout layout, client.RegisterLayout(registration));
  bool written = true;
  absl::Status refused;
  for (SequenceId id{worker, round, 0}; written && refused.ok(); ++id.number) {
    const std::vector<uint32_t> tokens = TokensOf(id);
    const auto planes = model.Planes(tokens, 0);
    PutRequest request;
    request.layout = layout;
    request.session = absl::StrCat("s-", id.worker, "-", id.round, "-", id.number);
    request.tokens = tokens;
    request.planes = ViewsOf(model.layout(), planes);
    request.preset = PresetOf(id);
    request.durable = true;
    request.on_block = [&](const BlockResult& block) {
      if (!block.status.ok()) {
        if (!absl::IsUnavailable(block.status)) refused = block.status;
        return;
      }
      if (block.state != BlockState::kDurable) {
        refused = absl::InternalError("a durable put was acknowledged as in memory");
        return;
      }
      // One write, so that a line is whole whoever dies.
      const std::string line =
          absl::StrCat(id.worker, " ", id.round, " ", id.number, " ", block.start_position, " ",
                       block.tokens, " ", ToHex(block.content_hash), "\n");
      written = written && write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size());
    };
    const auto put = client.PutPrefix(request);
    if (!put.ok()) break;  // the daemon went away
  }
  close(fd);
  if (!written) return absl::InternalError("cannot write the log");
  return refused;
}

struct Acknowledged {
  uint64_t start = 0;
  uint32_t tokens = 0;
  Digest content_hash{};
};
using Log = std::map<SequenceId, std::vector<Acknowledged>>;

absl::StatusOr<Log> ReadLog(const std::string& path) {
  std::ifstream in(path);
  Log log;
  for (std::string line; std::getline(in, line);) {
    std::istringstream fields(line);
    SequenceId id;
    Acknowledged block;
    std::string hex;
    if (!(fields >> id.worker >> id.round >> id.number >> block.start >> block.tokens >> hex)) {
      return absl::InternalError(absl::StrCat("a line of the log is not whole: ", line));
    }
    LKV_ASSIGN_OR_RETURN(const ByteVector hash, FromHex(hex));
    if (hash.size() != block.content_hash.size()) return absl::InternalError("a short hash");
    std::copy(hash.begin(), hash.end(), block.content_hash.begin());
    log[id].push_back(block);
  }
  if (log.empty()) return absl::InternalError(absl::StrCat("nothing to check in ", path));
  return log;
}

// "" when the block is there and right.
absl::StatusOr<std::string> WhatIsWrong(Client& client, const SyntheticModel& model,
                                        const RegisteredLayout& layout, const SequenceId& id,
                                        const Acknowledged& block) {
  GetRequest get;
  get.layout = layout;
  get.content_hashes = {block.content_hash};
  LKV_ASSIGN_OR_RETURN(const StoredPrefix stored, client.GetPrefix(get));
  if (!stored.miss.ok()) return absl::StrCat("missing: ", stored.miss.ToString());
  if (stored.blocks.size() != 1 || stored.blocks[0].tokens != block.tokens ||
      stored.blocks[0].start_position != block.start) {
    return std::string("another block came");
  }
  const std::vector<uint32_t> tokens = TokensOf(id);
  LKV_ASSIGN_OR_RETURN(const SyntheticModel::Expected expected,
                       model.AfterCodec(std::span(tokens).first(block.start + block.tokens),
                                        block.start, PresetOf(id)));
  if (stored.planes != expected.planes) return std::string("different bytes");
  return std::string();
}

absl::Status Check(const std::string& address, const std::string& path) {
  LKV_ASSIGN_OR_RETURN(const SyntheticModel model, Model());
  LKV_ASSIGN_OR_RETURN(const Log log, ReadLog(path));
  LKV_ASSIGN_OR_RETURN(Client client, Connect(address));
  RegisteredLayout layout;
  layout.layout = std::make_shared<const Layout>(model.layout());
  layout.fingerprint = LayoutFingerprint(model.layout());
  layout.name_space = kNamespace;
  layout.chunk_tokens = kChunkTokens;
  uint64_t checked = 0, wrong = 0;
  for (const auto& [id, blocks] : log) {
    for (const Acknowledged& block : blocks) {
      LKV_ASSIGN_OR_RETURN(const std::string what, WhatIsWrong(client, model, layout, id, block));
      ++checked;
      if (what.empty()) continue;
      ++wrong;
      std::fprintf(stderr, "sequence %lu-%lu-%lu, position %lu: %s\n", id.worker, id.round,
                   id.number, block.start, what.c_str());
    }
  }
  std::printf("{\"checked\": %lu, \"wrong\": %lu}\n", checked, wrong);
  return wrong == 0 ? absl::OkStatus() : absl::DataLossError(absl::StrCat(wrong, " blocks wrong"));
}

absl::Status Run(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "put" && argc == 6) {
    return PutUntilTheEnd(argv[2], argv[3], std::strtoull(argv[4], nullptr, 10),
                          std::strtoull(argv[5], nullptr, 10));
  }
  if (mode == "check" && argc == 4) return Check(argv[2], argv[3]);
  return absl::InvalidArgumentError(
      "usage: crash_client put ADDRESS LOG WORKER ROUND | crash_client check ADDRESS FILE");
}

}  // namespace
}  // namespace latticekv

int main(int argc, char** argv) {
  const absl::Status status = latticekv::Run(argc, argv);
  if (!status.ok()) std::fprintf(stderr, "crash_client: %s\n", status.ToString().c_str());
  return absl::IsInvalidArgument(status) ? 2 : status.ok() ? 0 : 1;
}
