// One client of the soak: puts, looks up, gets and deletes at random for a while, and compares
// every byte it is served with what a local encode and decode of the same chunk gives.
//
//   soak_client ADDRESS SECONDS WORKER
//
// Prints one line of JSON with what it did. Exits 1, with a sentence, on the first wrong byte or
// unexpected error.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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

constexpr uint32_t kChunkTokens = 64;
constexpr uint32_t kRoots = 24, kBranches = 8;  // sequences: every root with every branch
constexpr uint32_t kSharedTokens = 2 * kChunkTokens;
constexpr uint32_t kMaxTokens = 6 * kChunkTokens;
constexpr PresetId kPresets[] = {PresetId::kExact, PresetId::kHigh, PresetId::kHigh,
                                 PresetId::kTiny};

struct Counts {
  uint64_t puts = 0, blocks_put = 0, blocks_had = 0, blocks_refused = 0;
  uint64_t lookups = 0, hits = 0, gets = 0, session_gets = 0, misses = 0, deletes = 0, touches = 0;
  uint64_t blocks_compared = 0, exact_compared = 0, bytes_compared = 0;
};

struct Side {
  SyntheticModel model;
  RegisteredLayout layout;
};

class SoakClient {
 public:
  SoakClient(Client client, uint64_t worker)
      : client_(std::move(client)), worker_(worker), random_(Mix(worker + 1)) {}

  absl::Status Register() {
    LKV_RETURN_IF_ERROR(AddSide("soak-f16", DType::kF16, RopeStyle::kNeox, true));
    return AddSide("soak-bf16", DType::kBF16, RopeStyle::kInterleaved, false);
  }

  absl::Status Step() {
    const Side& side = sides_[Random(sides_.size())];
    const uint32_t choice = Random(100);
    if (choice < 40) return PutOne(side);
    if (choice < 75) return LookupAndGet(side);
    if (choice < 85) return GetSessionOfSomeone(side);
    if (choice < 92) return TouchOne(side);
    return DeleteOne(side);
  }

  const Counts& counts() const { return counts_; }

 private:
  uint32_t Random(uint64_t n) {
    random_ = Mix(random_);
    return static_cast<uint32_t>((random_ >> 16) % n);
  }

  absl::Status AddSide(const std::string& name, DType dtype, RopeStyle style, bool profiled) {
    LKV_ASSIGN_OR_RETURN(SyntheticModel model,
                         SyntheticModel::Create(name, dtype, style, profiled));
    RegisterLayoutRequest request;
    request.name_space = name;
    request.layout = model.layout();
    request.chunk_tokens = kChunkTokens;
    if (profiled) request.profile = SerializeProfile(*model.profile());
    LKV_ASSIGN_OR_RETURN(RegisteredLayout layout, client_.RegisterLayout(request));
    sides_.push_back({std::move(model), std::move(layout)});
    return absl::OkStatus();
  }

  std::vector<uint32_t> RandomSequence() {
    const uint32_t root = Random(kRoots), branch = Random(kBranches);
    std::vector<uint32_t> tokens(1 + Random(kMaxTokens));
    for (uint32_t t = 0; t < tokens.size(); ++t) {
      const uint64_t salt = t < kSharedTokens ? 0 : branch + 1;
      tokens[t] = static_cast<uint32_t>(Mix(root * 1000003 + salt * 8191 + t) % 50000);
    }
    return tokens;
  }

  std::string SessionName(uint64_t worker, uint32_t n) {
    return absl::StrCat("worker-", worker, "-", n);
  }

  absl::Status PutOne(const Side& side) {
    const std::vector<uint32_t> tokens = RandomSequence();
    const auto planes = side.model.Planes(tokens, 0);
    PutRequest request;
    request.layout = side.layout;
    request.tokens = tokens;
    request.planes = ViewsOf(side.model.layout(), planes);
    request.preset = kPresets[Random(std::size(kPresets))];
    // A session holds one sequence: an earlier one of this name goes first.
    const std::string session = SessionName(worker_, Random(8));
    if (Random(3) != 0) {
      request.session = session;
      LKV_RETURN_IF_ERROR(DropSession(side, session));
    }
    LKV_ASSIGN_OR_RETURN(const PutResult result, client_.PutPrefix(request));
    ++counts_.puts;
    for (const BlockResult& block : result.blocks) {
      if (absl::IsResourceExhausted(block.status)) {
        ++counts_.blocks_refused;
        continue;
      }
      LKV_RETURN_IF_ERROR(block.status);
      ++(block.have_it ? counts_.blocks_had : counts_.blocks_put);
    }
    return absl::OkStatus();
  }

  absl::Status LookupAndGet(const Side& side) {
    const std::vector<uint32_t> tokens = RandomSequence();
    LookupRequest lookup;
    lookup.layout = side.layout;
    lookup.tokens = tokens;
    LKV_ASSIGN_OR_RETURN(const LookupResult found, client_.Lookup(lookup));
    ++counts_.lookups;
    if (found.usable_tokens > tokens.size()) {
      return absl::DataLossError("a look-up found more tokens than it was given");
    }
    if (found.blocks.empty()) return absl::OkStatus();
    ++counts_.hits;
    GetRequest get;
    get.layout = side.layout;
    for (const LookupBlock& block : found.blocks) {
      get.content_hashes.push_back(block.block.content_hash);
    }
    LKV_ASSIGN_OR_RETURN(const StoredPrefix prefix, client_.GetPrefix(get));
    ++counts_.gets;
    const size_t usable = std::min<size_t>(found.usable_tokens, prefix.tokens.size());
    if (!std::equal(tokens.begin(), tokens.begin() + usable, prefix.tokens.begin())) {
      return absl::DataLossError("a look-up served other tokens than it was asked for");
    }
    return Compare(side, prefix);
  }

  absl::Status GetSessionOfSomeone(const Side& side) {
    GetRequest get;
    get.layout = side.layout;
    get.session = SessionName(Random(8), Random(8));
    const absl::StatusOr<StoredPrefix> prefix = client_.GetPrefix(get);
    if (absl::IsNotFound(prefix.status())) {
      ++counts_.misses;
      return absl::OkStatus();
    }
    LKV_RETURN_IF_ERROR(prefix.status());
    ++counts_.session_gets;
    return Compare(side, *prefix);
  }

  absl::Status TouchOne(const Side& side) {
    BlockSelector blocks{.name_space = side.layout.name_space,
                         .content_hashes = {},
                         .session = SessionName(Random(8), Random(8))};
    const auto touched = client_.Touch(blocks);
    ++counts_.touches;
    return absl::IsNotFound(touched.status()) ? absl::OkStatus() : touched.status();
  }

  absl::Status DeleteOne(const Side& side) {
    ++counts_.deletes;
    return DropSession(side, SessionName(worker_, Random(8)));
  }

  absl::Status DropSession(const Side& side, const std::string& session) {
    BlockSelector blocks{
        .name_space = side.layout.name_space, .content_hashes = {}, .session = session};
    const auto deleted = client_.Delete(blocks);
    return absl::IsNotFound(deleted.status()) ? absl::OkStatus() : deleted.status();
  }

  // Every block that came, whole, against a local encode and decode.
  absl::Status Compare(const Side& side, const StoredPrefix& prefix) {
    if (!prefix.miss.ok()) ++counts_.misses;
    // A session whose first block was refused, or is still on its way, begins later; what its
    // tokens are cannot be told without those before.
    if (!prefix.blocks.empty() && prefix.blocks[0].start_position != 0) return absl::OkStatus();
    size_t first = 0;
    for (const BlockInfo& block : prefix.blocks) {
      if (block.start_position != first || first + block.tokens > prefix.tokens.size()) {
        return absl::DataLossError("the blocks of a prefix do not follow each other");
      }
      const std::span<const uint32_t> tokens(prefix.tokens.data(), first + block.tokens);
      LKV_ASSIGN_OR_RETURN(const SyntheticModel::Expected expected,
                           side.model.AfterCodec(tokens, first, block.preset));
      LKV_RETURN_IF_ERROR(CompareBlock(side, prefix, block, expected));
      first += block.tokens;
    }
    return absl::OkStatus();
  }

  absl::Status CompareBlock(const Side& side, const StoredPrefix& prefix, const BlockInfo& block,
                            const SyntheticModel::Expected& expected) {
    for (size_t layer = 0; layer < expected.planes.size(); ++layer) {
      for (size_t p = 0; p < expected.planes[layer].size(); ++p) {
        const ByteVector& want = expected.planes[layer][p];
        const size_t token_bytes = side.model.layout().layers[layer].planes[p].token_bytes();
        const size_t offset = block.start_position * token_bytes;
        const ByteVector& got = prefix.planes[layer][p];
        if (offset + want.size() > got.size() ||
            std::memcmp(got.data() + offset, want.data(), want.size()) != 0) {
          return absl::DataLossError(absl::StrCat(
              "wrong bytes: block at ", block.start_position, ", preset ",
              std::string(PresetName(block.preset)), ", layer ", layer, ", plane ", p));
        }
        counts_.bytes_compared += want.size();
      }
    }
    if (block.quality.exact != expected.quality.exact ||
        block.quality.logit_noise != expected.quality.logit_noise ||
        block.quality.value_error != expected.quality.value_error) {
      return absl::DataLossError(absl::StrCat("wrong quality: block at ", block.start_position));
    }
    ++counts_.blocks_compared;
    if (block.preset == PresetId::kExact) ++counts_.exact_compared;
    return absl::OkStatus();
  }

  Client client_;
  const uint64_t worker_;
  uint64_t random_;
  std::vector<Side> sides_;
  Counts counts_;
};

void Print(const Counts& c) {
  std::printf(
      "{\"puts\": %lu, \"blocks_put\": %lu, \"blocks_had\": %lu, \"blocks_refused\": %lu, "
      "\"lookups\": %lu, \"hits\": %lu, \"gets\": %lu, \"session_gets\": %lu, \"misses\": %lu, "
      "\"deletes\": %lu, \"touches\": %lu, \"blocks_compared\": %lu, \"exact_compared\": %lu, "
      "\"bytes_compared\": %lu}\n",
      c.puts, c.blocks_put, c.blocks_had, c.blocks_refused, c.lookups, c.hits, c.gets,
      c.session_gets, c.misses, c.deletes, c.touches, c.blocks_compared, c.exact_compared,
      c.bytes_compared);
}

absl::Status Run(const std::string& address, double seconds, uint64_t worker) {
  LKV_ASSIGN_OR_RETURN(Client client, Connect(address));
  SoakClient soak(std::move(client), worker);
  LKV_RETURN_IF_ERROR(soak.Register());
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (Clock::now() < end) LKV_RETURN_IF_ERROR(soak.Step());
  Print(soak.counts());
  return absl::OkStatus();
}

}  // namespace
}  // namespace latticekv

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: soak_client ADDRESS SECONDS WORKER\n");
    return 2;
  }
  const absl::Status status =
      latticekv::Run(argv[1], std::atof(argv[2]), std::strtoull(argv[3], nullptr, 10));
  if (!status.ok()) {
    std::fprintf(stderr, "worker %s: %s\n", argv[3], status.ToString().c_str());
    return 1;
  }
  return 0;
}
