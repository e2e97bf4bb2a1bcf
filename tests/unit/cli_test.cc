// The command line in-process: what it writes, what it says, how it exits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include <nlohmann/json.hpp>

#include "client/cli/command.h"
#include "client/src/cache_file.h"
#include "client/src/profile_file.h"
#include "client/src/safetensors.h"
#include "core/codec/gpu/gpu_bench.h"
#include "tests/support/temp_dir.h"

namespace latticekv {
namespace {

using ::testing::HasSubstr;
using testing::ReadText;
using testing::TempDir;
using testing::WriteText;

const std::string kSample = LATTICEKV_SOURCE_DIR "/tests/data/smollm2_256.safetensors";
const std::string kProfile = LATTICEKV_SOURCE_DIR "/tests/data/smollm2_profile.safetensors";

struct RunResult {
  int code = 0;
  std::string out, err;
  nlohmann::json json() const { return nlohmann::json::parse(out, nullptr, false); }
};

RunResult Cli(const std::vector<std::string>& words) {
  RunResult result;
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  result.code = RunCommandLine(words);
  result.out = ::testing::internal::GetCapturedStdout();
  result.err = ::testing::internal::GetCapturedStderr();
  return result;
}

// A small cache whose values are easy to tell apart.
struct SmallCache {
  uint32_t layers = 2, tokens = 20, heads = 2, key_dim = 16, value_dim = 24;
  TensorDType dtype = TensorDType::kF32, id_dtype = TensorDType::kI64;
  uint32_t ids = 30;
  float offset = 0;
  SafetensorsMetadata metadata = {{"rope_base", "10000.0"}, {"rope_layout", "neox"}};
  bool query_energy = false;

  void Write(const std::string& path) const {
    std::vector<TensorInfo> tensors = {{"k", dtype, {layers, tokens, heads, key_dim}},
                                       {"v", dtype, {layers, tokens, heads, value_dim}}};
    if (ids > 0) tensors.push_back({"token_ids", id_dtype, {ids}});
    if (query_energy) {
      tensors.push_back({"query_energy", TensorDType::kF32, {layers, heads, key_dim / 2}});
    }
    auto writer = SafetensorsWriter::Create(path, tensors, metadata);
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (const char* name : {"k", "v", "query_energy"}) {
      const MutableByteSpan data = writer->Data(name);
      if (std::string_view(name) != "query_energy" && dtype != TensorDType::kF32) continue;
      for (size_t i = 0; i < data.size() / 4; ++i) {
        StoreLe<float>(data.data() + 4 * i, 1.5f + offset + std::sin(static_cast<float>(i * i)));
      }
    }
    const MutableByteSpan id_data = writer->Data("token_ids");
    for (size_t i = 0; i < ids; ++i) {
      if (id_dtype == TensorDType::kI64) StoreLe<int64_t>(id_data.data() + 8 * i, 5 * i);
      if (id_dtype == TensorDType::kI32) StoreLe<int32_t>(id_data.data() + 4 * i, 5 * i);
    }
    ASSERT_TRUE(writer->Commit().ok());
  }
};

class CliTest : public ::testing::Test {
 protected:
  std::string File(const std::string& name) { return dir_.File(name); }
  TempDir dir_;
};

TEST_F(CliTest, ExactComesBackBitForBit) {
  const RunResult compressed = Cli({"compress", kSample, File("x.lkv"), "--preset", "exact"});
  ASSERT_EQ(compressed.code, 0) << compressed.err;
  ASSERT_EQ(Cli({"decompress", File("x.lkv"), File("x.safetensors")}).code, 0);
  const auto in = SafetensorsReader::Open(kSample);
  const auto out = SafetensorsReader::Open(File("x.safetensors"));
  ASSERT_TRUE(in.ok() && out.ok());
  EXPECT_EQ(out->tensors().size(), 3u);
  for (const char* name : {"k", "v"}) {
    const auto *a = in->Find(name), *b = out->Find(name);
    EXPECT_EQ(a->dtype, b->dtype);
    EXPECT_EQ(a->shape, b->shape);
    EXPECT_TRUE(std::equal(a->data.begin(), a->data.end(), b->data.begin(), b->data.end()));
  }
  EXPECT_EQ(in->metadata(), out->metadata());
  const auto *a = in->Find("token_ids"), *b = out->Find("token_ids");
  EXPECT_EQ(a->dtype, b->dtype);
  EXPECT_EQ(b->shape, std::vector<uint64_t>{256});
  EXPECT_EQ(std::memcmp(a->data.data(), b->data.data(), b->data.size()), 0);
}

TEST_F(CliTest, OwnStatisticsNeedNoProfileToDecode) {
  const RunResult run = Cli({"compress", kSample, "--profile", kProfile, "--preset=high",
                             "--stats=own", File("x.lkv"), "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_TRUE(run.json()["quality"]["profiled"]);
  EXPECT_LT(run.json()["bits_per_element"], 3.2);
  EXPECT_EQ(run.json()["file_bytes"], ReadText(File("x.lkv")).size());
  EXPECT_EQ(Cli({"decompress", File("x.lkv"), File("x.safetensors")}).code, 0);
}

TEST_F(CliTest, ProfileStatisticsNeedTheProfile) {
  const std::vector<std::string> words = {"compress", kSample,   File("x.lkv"), "--profile",
                                          kProfile,   "--stats", "profile"};
  ASSERT_EQ(Cli(words).code, 0);
  const RunResult refused = Cli({"decompress", File("x.lkv"), File("x.safetensors")});
  EXPECT_EQ(refused.code, 1);
  const std::string hash = Cli({"inspect", File("x.lkv"), "--json"}).json()["profile_hashes"][0];
  EXPECT_EQ(hash.size(), 64u);
  EXPECT_THAT(refused.err, HasSubstr(hash));
  EXPECT_NE(access(File("x.safetensors").c_str(), F_OK), 0);
  ASSERT_EQ(
      Cli({"decompress", File("x.lkv"), File("with.safetensors"), "--profile", kProfile}).code, 0);

  std::vector<std::string> embedding = words;
  embedding[2] = File("e.lkv");
  embedding.push_back("--embed-profile");
  ASSERT_EQ(Cli(embedding).code, 0);
  ASSERT_EQ(Cli({"decompress", File("e.lkv"), File("embedded.safetensors")}).code, 0);
  EXPECT_EQ(ReadText(File("embedded.safetensors")), ReadText(File("with.safetensors")));
}

TEST_F(CliTest, OneThreadOrManyWriteTheSameBytes) {
  for (const char* threads : {"1", "3"}) {
    ASSERT_EQ(Cli({"compress", kSample, File(threads), "--chunk", "48", "--threads", threads}).code,
              0);
  }
  EXPECT_EQ(ReadText(File("1")), ReadText(File("3")));
}

TEST_F(CliTest, InspectAccountsForEveryByte) {
  ASSERT_EQ(Cli({"compress", kSample, File("x.lkv"), "--chunk", "64"}).code, 0);
  const nlohmann::json json = Cli({"inspect", File("x.lkv"), "--json"}).json();
  EXPECT_EQ(json["chunks"], 4);
  EXPECT_EQ(json["tokens"], 256);
  EXPECT_EQ(json["presets"][0], "high");
  uint64_t sum = 0;
  for (const auto& [part, bytes] : json["bytes"].items()) sum += bytes.get<uint64_t>();
  EXPECT_EQ(sum, ReadText(File("x.lkv")).size());
  EXPECT_EQ(json["file_bytes"], sum);
  EXPECT_FALSE(json["quality"]["profiled"]) << "query_energy of the input is no profile";
  const RunResult text = Cli({"inspect", File("x.lkv")});
  EXPECT_THAT(text.out, HasSubstr("30 layers"));
}

TEST_F(CliTest, KeepsDtypesAndOwnHeadDims) {
  SmallCache cache;
  cache.Write(File("in"));
  ASSERT_EQ(Cli({"compress", File("in"), File("x.lkv"), "--preset", "near"}).code, 0);
  ASSERT_EQ(Cli({"decompress", File("x.lkv"), File("out")}).code, 0);
  const auto out = SafetensorsReader::Open(File("out"));
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(out->Find("v")->dtype, TensorDType::kF32);
  EXPECT_EQ(out->Find("v")->shape, (std::vector<uint64_t>{2, 20, 2, 24}));
  EXPECT_EQ(out->Find("token_ids")->dtype, TensorDType::kI64);
  EXPECT_EQ(out->Find("token_ids")->shape, std::vector<uint64_t>{20});
  EXPECT_EQ(LoadLe<int64_t>(out->Find("token_ids")->data.data() + 8 * 19), 95);
}

TEST_F(CliTest, LatentAndRotaryPlanesWithLayersOfTheirOwn) {
  // MLA as a cache file: a shared rotary key, a wider latent, and state of an odd width.
  const std::vector<TensorInfo> tensors = {{"k_rope", TensorDType::kBF16, {2, 20, 1, 16}},
                                           {"latent", TensorDType::kBF16, {2, 20, 1, 64}},
                                           {"state", TensorDType::kF32, {2, 20, 3, 5}}};
  const SafetensorsMetadata metadata = {
      {"planes", R"({"k_rope":"key","latent":"value","state":"opaque"})"},
      {"rope_layout", "interleaved"},
      {"rope_base", "[10000.0,1000000.0]"},
      {"rope_scaling",
       R"([null,{"rope_type":"yarn","factor":40.0,"original_max_position_embeddings":4096}])"}};
  auto writer = SafetensorsWriter::Create(File("in"), tensors, metadata);
  ASSERT_TRUE(writer.ok());
  for (const TensorInfo& tensor : tensors) {
    const MutableByteSpan data = writer->Data(tensor.name);
    for (size_t i = 0; i < data.size() / 2; ++i) {
      StoreLe<uint16_t>(data.data() + 2 * i, static_cast<uint16_t>(0x3F00 + i * 7 % 256));
    }
  }
  ASSERT_TRUE(writer->Commit().ok());
  const RunResult run = Cli({"compress", File("in"), File("x.lkv"), "--preset", "near"});
  ASSERT_EQ(run.code, 0) << run.err;
  ASSERT_EQ(Cli({"decompress", File("x.lkv"), File("out")}).code, 0);
  EXPECT_THAT(Cli({"inspect", File("x.lkv"), "--json"}).out, HasSubstr("attention_factor"));
  const auto in = SafetensorsReader::Open(File("in")), out = SafetensorsReader::Open(File("out"));
  ASSERT_TRUE(in.ok() && out.ok()) << out.status();
  EXPECT_EQ(out->metadata(), in->metadata());
  for (const TensorInfo& tensor : tensors) {
    const auto *a = in->Find(tensor.name), *b = out->Find(tensor.name);
    ASSERT_NE(b, nullptr) << tensor.name;
    EXPECT_EQ(a->shape, b->shape);
    const bool same = std::equal(a->data.begin(), a->data.end(), b->data.begin(), b->data.end());
    EXPECT_EQ(same, tensor.name == "state") << tensor.name;
  }
}

TEST_F(CliTest, MissingRopeLayoutIsNeoxWithANotice) {
  SmallCache cache;
  cache.metadata = {{"rope_base", "10000.0"}};
  cache.Write(File("in"));
  const RunResult run = Cli({"compress", File("in"), File("x.lkv")});
  EXPECT_EQ(run.code, 0);
  EXPECT_THAT(run.err, HasSubstr("taking neox"));
}

TEST_F(CliTest, SaysWhatIsWrongWithACache) {
  const auto error = [&](const SmallCache& cache) {
    cache.Write(File("in"));
    const RunResult run = Cli({"compress", File("in"), File("x.lkv")});
    EXPECT_EQ(run.code, 1);
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
    EXPECT_THAT(run.err, HasSubstr(File("in")));
    return run.err;
  };
  SmallCache cache;
  cache.metadata = {};
  EXPECT_THAT(error(cache), HasSubstr("rope_base is missing"));
  cache.metadata = {{"rope_base", "ten"}, {"rope_layout", "neox"}};
  EXPECT_THAT(error(cache), HasSubstr("not a number"));
  cache.metadata = {{"rope_base", "10000"}, {"rope_layout", "spiral"}};
  EXPECT_THAT(error(cache), HasSubstr("spiral"));
  cache.metadata = {{"rope_base", "10000"}, {"rope_layout", "neox"}, {"rope_dims", "18"}};
  EXPECT_THAT(error(cache), HasSubstr("rotary_dims"));
  cache = {};
  cache.ids = 19;
  EXPECT_THAT(error(cache), HasSubstr("one id for each of the 20 tokens"));
  cache = {};
  cache.id_dtype = TensorDType::kF32;
  EXPECT_THAT(error(cache), HasSubstr("must be I32 or I64"));
  cache = {};
  cache.dtype = TensorDType::kU8;
  EXPECT_THAT(error(cache), HasSubstr("must be F16, BF16 or F32"));
  cache = {};
  cache.key_dim = 12;
  EXPECT_THAT(error(cache), HasSubstr("divisible by 8"));
  auto writer = SafetensorsWriter::Create(File("in"), {{"k", TensorDType::kF16, {1, 1, 8}}}, {});
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_THAT(Cli({"compress", File("in"), File("x.lkv")}).err, HasSubstr("has shape [1, 1, 8]"));
}

TEST_F(CliTest, LearnedProfileMergesCachesByTokens) {
  SmallCache one, two;
  one.query_energy = two.query_energy = true;
  two.tokens = 36;
  two.ids = 36;
  two.offset = 3;
  one.Write(File("one"));
  two.Write(File("two"));
  for (const char* name : {"one", "two"}) {
    ASSERT_EQ(Cli({"profile", "learn", File(name), File(std::string(name) + ".p")}).code, 0);
  }
  const RunResult run =
      Cli({"profile", "learn", File("one"), File("two"), File("both.p"), "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.json()["tokens"], 56);
  const auto a = SafetensorsReader::Open(File("one.p")), b = SafetensorsReader::Open(File("two.p"));
  const auto both = SafetensorsReader::Open(File("both.p"));
  ASSERT_TRUE(a.ok() && b.ok() && both.ok());
  const auto at = [](const SafetensorsReader& file, const char* name, size_t i) {
    return double{LoadLe<float>(file.Find(name)->data.data() + 4 * i)};
  };
  // 16 and 32 tokens count for the moments, 20 and 36 for the energy.
  for (size_t i = 0; i < 2 * 2 * 16; ++i) {
    const double ma = at(*a, "key_mean", i), mb = at(*b, "key_mean", i), m = (ma + 2 * mb) / 3;
    EXPECT_NEAR(at(*both, "key_mean", i), m, 1e-5);
    const double va = std::pow(at(*a, "key_sigma", i), 2) + (ma - m) * (ma - m);
    const double vb = std::pow(at(*b, "key_sigma", i), 2) + (mb - m) * (mb - m);
    EXPECT_NEAR(at(*both, "key_sigma", i), std::sqrt((va + 2 * vb) / 3), 1e-5);
  }
  EXPECT_NEAR(at(*both, "query_energy", 5),
              (20 * at(*a, "query_energy", 5) + 36 * at(*b, "query_energy", 5)) / 56, 1e-5);
  // It is a profile for its caches.
  EXPECT_EQ(Cli({"compress", File("one"), File("x.lkv"), "--profile", File("both.p"), "--stats",
                 "profile"})
                .code,
            0);
}

TEST_F(CliTest, LearningNeedsOneLayout) {
  SmallCache one, two;
  two.value_dim = 32;
  one.Write(File("one"));
  two.Write(File("two"));
  const RunResult run = Cli({"profile", "learn", File("one"), File("two"), File("p")});
  EXPECT_EQ(run.code, 1);
  EXPECT_THAT(run.err, HasSubstr("another layout"));
  const RunResult without = Cli({"profile", "learn", File("one"), File("p")});
  EXPECT_EQ(without.code, 0);
  EXPECT_THAT(without.err, HasSubstr("query_energy"));
}

TEST_F(CliTest, WrongUsageExitsWithTwo) {
  const std::vector<std::vector<std::string>> lines = {
      {},
      {"bogus"},
      {"profile"},
      {"bench", "nothing"},
      {"compress"},
      {"compress", "a"},
      {"compress", "a", "b", "c"},
      {"compress", "a", "b", "--preset"},
      {"compress", "a", "b", "--preset", "best"},
      {"compress", "a", "b", "--preset", "high", "--preset=high"},
      {"compress", "a", "b", "--bogus"},
      {"compress", "a", "b", "-p"},
      {"compress", "a", "b", "--json=yes"},
      {"compress", "a", "b", "--chunk", "15"},
      {"compress", "a", "b", "--chunk=257"},
      {"compress", "a", "b", "--chunk=many"},
      {"compress", "a", "b", "--stats", "profile"},
      {"compress", "a", "b", "--stats", "mine"},
      {"compress", "a", "b", "--embed-profile"},
      {"compress", "a", "b", "--backend", "abacus"},
      {"put", "a", "--session", "s"},
      {"put", "a", "--server", "unix:x"},
      {"get", "a", "--server", "unix:x"},
      {"sessions"},
      {"session", "--server", "unix:x"},
      {"stats", "extra", "--server", "unix:x"}};
  for (const auto& words : lines) {
    const RunResult run = Cli(words);
    EXPECT_EQ(run.code, 2) << ::testing::PrintToString(words);
    EXPECT_FALSE(run.err.empty());
    EXPECT_TRUE(run.out.empty());
    if (words.empty()) continue;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }
}

TEST_F(CliTest, ErrorsExitWithOneAndOneLine) {
  WriteText(File("text"), "hello, world\n");
  SmallCache cache;
  cache.ids = 0;
  cache.Write(File("cache"));
  const std::vector<std::pair<std::vector<std::string>, std::string>> lines = {
      {{"compress", File("missing"), File("x")}, "No such file"},
      {{"compress", File("text"), File("x")}, "safetensors"},
      {{"compress", File("cache"), File("no/where")}, "cannot create"},
      {{"compress", File("cache"), File("x"), "--importance"}, "no tensor attention_mass"},
      {{"compress", File("cache"), File("x"), "--backend=cuda"}, "lacks the backend"},
      {{"compress", File("cache"), File("x"), "--profile", File("text")}, "safetensors"},
      {{"compress", File("cache"), File("x"), "--profile", File("cache")}, "query_energy"},
      {{"decompress", File("text"), File("x")}, "not a .lkv file"},
      {{"inspect", File("missing")}, "No such file"},
      {{"put", File("cache"), "--server", "unix:x", "--session", "s"}, "no token_ids"},
      {{"stats", "--server", "nowhere"}, "HOST:PORT"},
      {{"stats", "--server", "unix:" + File("no.sock")}, "is latticekvd running"}};
  for (const auto& [words, expected] : lines) {
    const RunResult run = Cli(words);
    EXPECT_EQ(run.code, 1) << ::testing::PrintToString(words);
    EXPECT_THAT(run.err, HasSubstr(expected));
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
    EXPECT_NE(access(File("x").c_str(), F_OK), 0);
  }
}

TEST_F(CliTest, DamagedFilesAreErrors) {
  ASSERT_EQ(Cli({"compress", kSample, File("x.lkv"), "--preset", "tiny"}).code, 0);
  const std::string good = ReadText(File("x.lkv"));
  for (size_t at : {size_t{0}, size_t{20}, good.size() / 2, good.size() - 1}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    WriteText(File("bad.lkv"), bad);
    const RunResult run = Cli({"decompress", File("bad.lkv"), File("out")});
    EXPECT_EQ(run.code, 1) << at;
    EXPECT_NE(access(File("out").c_str(), F_OK), 0);
  }
  WriteText(File("bad.lkv"), good.substr(0, good.size() - 1));
  EXPECT_EQ(Cli({"inspect", File("bad.lkv")}).code, 1);
}

TEST_F(CliTest, HelpOfEveryCommand) {
  EXPECT_EQ(Cli({"--help"}).code, 0);
  for (const Command& command : AllCommands()) {
    std::vector<std::string> words = {command.spec.name, "--help"};
    if (const size_t space = command.spec.name.find(' '); space != std::string::npos) {
      words = {command.spec.name.substr(0, space), command.spec.name.substr(space + 1), "--help"};
    }
    const RunResult run = Cli(words);
    EXPECT_EQ(run.code, 0) << command.spec.name;
    EXPECT_THAT(run.out, HasSubstr("usage: latticekv " + command.spec.name));
    EXPECT_THAT(Cli({"--help"}).out, HasSubstr(command.spec.summary));
  }
}

TEST_F(CliTest, BenchCodecPrintsStages) {
  const RunResult run = Cli({"bench", "codec", "--layers", "1", "--heads=2", "--tokens=70",
                             "--presets=high,exact", "--seconds", "0", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const nlohmann::json presets = run.json()["presets"];
  ASSERT_EQ(presets.size(), 2u);
  EXPECT_GT(presets[0]["encode_mb_per_s"], 0);
  EXPECT_GT(presets[0]["decode_mb_per_s"], 0);
  EXPECT_GT(presets[0]["encode_stage_seconds"]["quantize"], 0);
  EXPECT_GT(presets[0]["decode_stage_seconds"]["reconstruct"], 0);
  EXPECT_GT(presets[1]["encode_stage_seconds"]["exact"], 0);
  EXPECT_THAT(Cli({"bench", "codec", "--input", kSample, "--presets=tiny", "--seconds=0"}).out,
              HasSubstr("entropy decode"));
}

// Where there is a device the command measures it, which is no matter of tests.
TEST_F(CliTest, BenchCodecOnAGpuSaysWhatItNeeds) {
  const auto usage = Cli({"bench", "codec", "--backend=cuda", "--threads", "2"});
  EXPECT_EQ(usage.code, 2);
  EXPECT_THAT(usage.err, HasSubstr("--threads does not go with --backend cuda"));
  const auto exact = Cli({"bench", "codec", "--backend=cuda", "--presets", "high,exact"});
  EXPECT_EQ(exact.code, 2);
  EXPECT_THAT(exact.err, HasSubstr("presets near to tiny"));
  if (OpenCudaBench().ok()) return;
  const auto run = Cli({"bench", "codec", "--backend", "cuda"});
  EXPECT_EQ(run.code, 1);
  EXPECT_EQ(run.out, "");
#ifdef LATTICEKV_HAVE_CUDA
  EXPECT_THAT(run.err, HasSubstr("there is no CUDA device here"));
#else
  EXPECT_THAT(run.err, HasSubstr("this build knows no CUDA; build it where a CUDA compiler is"));
#endif
  EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
}

}  // namespace
}  // namespace latticekv
