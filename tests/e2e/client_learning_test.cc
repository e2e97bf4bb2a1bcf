// A real daemon that learns from a real cache: a version of its profile, another one when what is
// stored changes, both served over kill -9, and the old one gone with the last of its blocks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/src/cache_file.h"
#include "core/base/limits.h"
#include "core/codec/cpu/float_cast.h"
#include "core/codec/presets.h"
#include "latticekv/client.h"
#include "tests/support/daemon_process.h"

namespace latticekv {
namespace {

using testing::Eventually;

// In short chunks statistics are much of what is stored, so that a profile that fits pays.
constexpr uint32_t kChunk = 16;
constexpr double kContract = 1.05;  // times the preset's error

class ClientLearningTest : public ::testing::Test {
 protected:
  // The file's planes, [layer][plane], tokens one after the other.
  using Planes = std::vector<std::vector<ByteVector>>;

  void SetUp() override {
    auto cache = LoadCache(LATTICEKV_SOURCE_DIR "/tests/data/smollm2_256.safetensors");
    ASSERT_TRUE(cache.ok()) << cache.status();
    layout_ = cache->layout;
    ids_ = cache->token_ids;
    ASSERT_EQ(ids_.size(), kTokens);
    const auto views = cache->Views();
    for (size_t l = 0; l < views.size(); ++l) {
      auto& real = real_.emplace_back();
      auto& changed = changed_.emplace_back();
      for (size_t p = 0; p < views[l].size(); ++p) {
        const PlaneSpec& spec = layout_.layers[l].planes[p];
        ASSERT_EQ(spec.dtype, DType::kF16);
        ByteVector& to = real.emplace_back(spec.token_bytes() * ids_.size());
        std::byte* at = to.data();
        for (size_t t = 0; t < ids_.size(); ++t) {
          for (uint32_t h = 0; h < spec.heads; ++h, at += 2 * spec.head_dim) {
            std::memcpy(
                at, views[l][p].data + t * views[l][p].token_stride + h * views[l][p].head_stride,
                2 * spec.head_dim);
          }
        }
        changed.push_back(Reversed(to, spec.head_dim));
      }
    }
    Start();
  }

  // The same vectors with their channels in the opposite order: other means and spreads.
  static ByteVector Reversed(const ByteVector& halves, uint32_t head_dim) {
    std::vector<uint16_t> values(halves.size() / 2);
    std::memcpy(values.data(), halves.data(), halves.size());
    for (auto vector = values.begin(); vector != values.end(); vector += head_dim) {
      std::reverse(vector, vector + head_dim);
    }
    ByteVector out(halves.size());
    std::memcpy(out.data(), values.data(), out.size());
    return out;
  }

  // Also after a kill. With so much memory no chunk that is wanted is passed over.
  void Start() {
    ASSERT_TRUE(daemon_.Start(
        {"--disk_dir=" + daemon_.disk(), "--disk_bytes=1073741824", "--memory_bytes=1073741824"}));
    auto client = Connect(daemon_.address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = std::make_unique<Client>(*client);
    auto registered = client_->RegisterLayout({.layout = layout_, .chunk_tokens = kChunk});
    ASSERT_TRUE(registered.ok()) << registered.status();
    registered_ = *registered;
  }

  double Bits(uint64_t bytes) const {
    return 16.0 * static_cast<double>(bytes) /
           static_cast<double>(layout_.token_bytes() * limits::kLearnTokens);
  }
  static std::string Session(const std::string& group, uint32_t n) {
    return absl::StrCat(group, "-", n);
  }

  // Puts sequences of a group, by default as many tokens as one version is learnt from, durably;
  // the bytes stored.
  uint64_t Store(const std::string& group, const Planes& planes,
                 uint32_t sequences = limits::kLearnTokens / kTokens) {
    uint64_t bytes = 0;
    for (uint32_t n = 0; n < sequences; ++n) {
      std::vector<uint32_t> ids = ids_;
      ids[0] = ++last_first_id_;  // another sequence
      PutRequest request;
      request.layout = registered_;
      request.session = Session(group, stored_[group]++);
      request.tokens = ids;
      request.durable = true;
      for (size_t l = 0; l < planes.size(); ++l) {
        auto& layer = request.planes.emplace_back();
        for (size_t p = 0; p < planes[l].size(); ++p) {
          layer.push_back(ContiguousPlane(layout_.layers[l].planes[p], planes[l][p].data()));
        }
      }
      const auto put = client_->PutPrefix(request);
      EXPECT_TRUE(put.ok() && put->status().ok()) << put.status();
      if (put.ok()) bytes += put->stored_bytes;
    }
    return bytes;
  }

  // What is served of a group; the same when this side decodes with the daemon's profiles.
  std::vector<Planes> Read(const std::string& group) {
    std::vector<Planes> out;
    for (uint32_t n = 0; n < stored_[group]; ++n) {
      GetRequest request;
      request.layout = registered_;
      request.session = Session(group, n);
      auto served = client_->GetPrefix(request);
      request.decode_on_worker = true;
      const auto decoded = client_->GetPrefix(request);
      EXPECT_TRUE(served.ok() && decoded.ok()) << served.status() << decoded.status();
      if (!served.ok() || !decoded.ok()) return {};
      EXPECT_TRUE(served->miss.ok()) << served->miss;
      EXPECT_TRUE(served->planes == decoded->planes) << request.session;
      out.push_back(std::move(served->planes));
    }
    return out;
  }

  // Values within the error that the preset promises.
  void ExpectContract(const std::vector<Planes>& read, const Planes& original) {
    ASSERT_FALSE(read.empty());
    for (const Planes& planes : read) {
      ASSERT_EQ(planes.size(), original.size());
      double sum = 0;
      size_t vectors = 0;
      for (size_t l = 0; l < planes.size(); ++l) {
        ASSERT_EQ(planes[l][1].size(), original[l][1].size());
        const uint32_t dim = layout_.layers[l].planes[1].head_dim;
        std::vector<float> x(dim), y(dim);
        for (size_t at = 0; at < original[l][1].size(); at += 2 * dim) {
          if (std::memcmp(&planes[l][1][at], &original[l][1][at], 2 * dim) == 0) continue;
          LoadRow(DType::kF16, &original[l][1][at], dim, x.data());
          LoadRow(DType::kF16, &planes[l][1][at], dim, y.data());
          double error = 0, norm = 0;
          for (uint32_t c = 0; c < dim; ++c) {
            error += std::pow(double{x[c]} - y[c], 2);
            norm += std::pow(double{x[c]}, 2);
          }
          sum += error / norm;
          ++vectors;
        }
      }
      ASSERT_GT(vectors, 0u);
      const double promised = GetPreset(kDefaultPreset).value_error;
      EXPECT_LT(std::sqrt(sum / static_cast<double>(vectors)), kContract * promised);
    }
  }

  std::vector<ProfileState> Profiles() {
    const auto stats = client_->Stats();
    if (!stats.ok() || stats->layout_states.empty()) return {};
    return stats->layout_states[0].profiles;
  }
  // Of version `version`; without one, a state of no blocks and no hash.
  ProfileState Version(uint32_t version) {
    for (const ProfileState& profile : Profiles()) {
      if (profile.version == version) return profile;
    }
    return {};
  }

  static constexpr uint32_t kTokens = 256;  // of a sequence
  static_assert(limits::kLearnTokens % kTokens == 0);
  testing::DaemonProcess daemon_;
  Layout layout_;
  std::vector<uint32_t> ids_;
  Planes real_, changed_;
  std::unique_ptr<Client> client_;
  RegisteredLayout registered_;
  std::map<std::string, uint32_t> stored_;  // sequences of a group
  uint32_t last_first_id_ = 1'000'000;
};

TEST_F(ClientLearningTest, TwoVersionsLiveAsLongAsTheirBlocks) {
  const uint64_t without = Store("teaching", real_);
  ASSERT_TRUE(Eventually([&] { return Version(1).in_use; }));
  // As many tokens pass before the daemon looks again.
  const uint64_t with_first = Store("old", real_);
  EXPECT_LT(with_first, without);
  EXPECT_EQ(Profiles().size(), 1u);
  const uint64_t changed = Store("changed", changed_);
  // A few tokens more, when the daemon counted the first ones of the group to those before its
  // look.
  ASSERT_TRUE(Eventually([&] {
    if (!Version(2).in_use) Store("changed", changed_, 1);
    return Version(2).in_use;
  })) << "no second version came";
  const uint64_t with_second = Store("new", changed_);
  EXPECT_LT(with_second, changed);
  std::printf(
      "%.3f bits an element without a profile, %.3f with version 1; of other data %.3f "
      "with version 1, %.3f with version 2\n",
      Bits(without), Bits(with_first), Bits(changed), Bits(with_second));

  const auto old_read = Read("old"), new_read = Read("new");
  ExpectContract(old_read, real_);
  ExpectContract(new_read, changed_);
  const ProfileState first = Version(1), second = Version(2);
  EXPECT_GT(first.blocks, 0u);
  EXPECT_GT(second.blocks, 0u);
  EXPECT_NE(first.hash, second.hash);

  // Both are there again after a kill, and which one is in use.
  Start();
  ASSERT_TRUE(Eventually([&] {  // the catalog has counted the blocks
    return Version(1).blocks == first.blocks && Version(2).blocks == second.blocks;
  })) << Version(1).blocks
      << " and " << Version(2).blocks << " blocks, " << first.blocks << " and " << second.blocks
      << " before";
  EXPECT_EQ(Version(1).hash, first.hash);
  EXPECT_EQ(Version(2).hash, second.hash);
  EXPECT_TRUE(Version(2).in_use);
  EXPECT_TRUE(Read("old") == old_read);
  EXPECT_TRUE(Read("new") == new_read);

  // The old one goes with the last block that refers to it.
  for (const char* group : {"old", "changed"}) {
    for (uint32_t n = 0; n < stored_[group]; ++n) {
      const auto deleted = client_->Delete({.session = Session(group, n)});
      ASSERT_TRUE(deleted.ok()) << deleted.status();
      EXPECT_EQ(deleted->found, kTokens / kChunk);
    }
  }
  EXPECT_TRUE(Eventually([&] { return Version(1).hash.empty(); })) << Version(1).blocks;
  EXPECT_TRUE(Read("new") == new_read);
  Start();
  EXPECT_TRUE(Eventually([&] { return Version(1).hash.empty(); })) << Version(1).blocks;
  EXPECT_EQ(Version(2).hash, second.hash);
  EXPECT_TRUE(Read("new") == new_read);
}

}  // namespace
}  // namespace latticekv
