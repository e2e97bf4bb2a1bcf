// The tree keeps its own rules: layers depend one way, core stays clear of the service's packages,
// every limit is documented, files stay of a size that can be read.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

namespace {

namespace fs = std::filesystem;

const fs::path kRoot = LATTICEKV_SOURCE_DIR;

std::string ReadFile(const fs::path& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// Source files below the project's own folders, with paths from the root.
std::vector<fs::path> SourceFiles() {
  std::vector<fs::path> out;
  for (const char* folder : {"core", "server", "client", "tests"}) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder)) {
      const std::string extension = entry.path().extension();
      if (extension == ".h" || extension == ".cc" || extension == ".cu" || extension == ".cuh") {
        out.push_back(fs::relative(entry.path(), kRoot));
      }
    }
  }
  return out;
}

std::vector<std::string> Includes(const fs::path& file) {
  std::vector<std::string> out;
  std::istringstream lines(ReadFile(kRoot / file));
  const std::regex include("^\\s*#\\s*include\\s*[<\"]([^>\"]+)[>\"].*");
  std::smatch match;
  for (std::string line; std::getline(lines, line);) {
    if (std::regex_match(line, match, include)) out.push_back(match[1]);
  }
  return out;
}

bool StartsWith(const std::string& text, const std::string& prefix) {
  return text.rfind(prefix, 0) == 0;
}

// The layer of a path below the root, or empty.
std::string LayerOf(const std::string& path) {
  for (const char* layer : {"core/base/", "core/layout/", "core/codec/", "core/io/", "core/store/",
                            "proto/", "server/", "client/", "tests/"}) {
    if (StartsWith(path, layer)) return layer;
  }
  return "";
}

TEST(LayeringTest, IncludesGoOneWay) {
  const std::map<std::string, std::set<std::string>> allowed = {
      {"core/base/", {"core/base/"}},
      {"core/layout/", {"core/base/", "core/layout/"}},
      {"core/codec/", {"core/base/", "core/layout/", "core/codec/"}},
      {"core/io/", {"core/base/", "core/io/"}},
      {"core/store/", {"core/base/", "core/io/", "core/store/"}},
      {"client/", {"core/base/", "core/layout/", "core/codec/", "proto/", "client/"}},
      {"server/",
       {"core/base/", "core/layout/", "core/codec/", "core/io/", "core/store/", "proto/",
        "server/"}},
  };
  size_t checked = 0;
  for (const fs::path& file : SourceFiles()) {
    const auto rule = allowed.find(LayerOf(file.string()));
    if (rule == allowed.end()) continue;
    for (const std::string& include : Includes(file)) {
      EXPECT_EQ(include.find(".."), std::string::npos) << file << " includes " << include;
      const std::string layer = LayerOf(include);
      if (layer.empty()) continue;
      ++checked;
      EXPECT_TRUE(rule->second.contains(layer)) << file << " includes " << include;
    }
  }
  EXPECT_GT(checked, 50u);
}

TEST(LayeringTest, CoreStaysClearOfTheServicesPackages) {
  for (const fs::path& file : SourceFiles()) {
    if (!StartsWith(file.string(), "core/")) continue;
    for (const std::string& include : Includes(file)) {
      for (const char* prefix :
           {"grpc", "google/protobuf", "spdlog", "latticekv/", "absl/synchronization",
            "absl/base/internal/spinlock", "nlohmann"}) {
        EXPECT_FALSE(StartsWith(include, prefix)) << file << " includes " << include;
      }
    }
  }
}

TEST(LayeringTest, PublicClientHeadersNeedNoGrpc) {
  for (const fs::path& file : SourceFiles()) {
    if (!StartsWith(file.string(), "client/include/")) continue;
    for (const std::string& include : Includes(file)) {
      EXPECT_FALSE(StartsWith(include, "grpc") || StartsWith(include, "google/") ||
                   include.find(".pb.h") != std::string::npos)
          << file << " includes " << include;
    }
  }
}

TEST(LayeringTest, CudaIsInOnePlace) {
  for (const fs::path& file : SourceFiles()) {
    if (file.extension() != ".cu" && file.extension() != ".cuh") continue;
    EXPECT_TRUE(StartsWith(file.string(), "core/codec/cuda/") ||
                StartsWith(file.string(), "tests/"))
        << file;
  }
}

TEST(LayeringTest, FilesHaveNamesThatSayWhatIsInThemAndASizeThatCanBeRead) {
  for (const fs::path& file : SourceFiles()) {
    const std::string stem = file.stem();
    EXPECT_TRUE(stem != "utils" && stem != "util" && stem != "common" && stem != "types" &&
                stem != "helpers")
        << file;
    const std::string text = ReadFile(kRoot / file);
    EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 800) << file;
  }
}

TEST(LayeringTest, EveryLimitIsDocumentedAndEveryDocumentedLimitExists) {
  const auto names = [](const std::string& text, const std::regex& pattern) {
    std::set<std::string> out;
    for (std::sregex_iterator it(text.begin(), text.end(), pattern), end; it != end; ++it) {
      out.insert((*it)[1]);
    }
    return out;
  };
  const auto in_code = names(ReadFile(kRoot / "core/base/limits.h"),
                             std::regex("inline constexpr [a-z0-9_]+ (k[A-Za-z0-9]+) ="));
  const auto in_document =
      names(ReadFile(kRoot / "docs/limits.md"), std::regex("\\n\\| (k[A-Za-z0-9]+) \\|"));
  EXPECT_GT(in_code.size(), 20u);
  EXPECT_EQ(in_code, in_document);
}

}  // namespace
