#include "client/src/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <cstring>

#include "core/base/limits.h"
#include "tests/support/temp_dir.h"

namespace latticekv {
namespace {

using ::testing::HasSubstr;
using testing::ReadText;
using testing::TempDir;
using testing::WriteText;

std::string FileText(const std::string& header, const std::string& data) {
  std::string out(8, '\0');
  StoreLe<uint64_t>(out.data(), header.size());
  return out + header + data;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  // The error of opening a file with these bytes.
  std::string ErrorOf(const std::string& bytes) {
    WriteText(dir_.File("in"), bytes);
    const auto reader = SafetensorsReader::Open(dir_.File("in"));
    return reader.ok() ? "" : std::string(reader.status().message());
  }
  TempDir dir_;
};

TEST_F(SafetensorsTest, WritesWhatItReads) {
  const std::string path = dir_.File("out");
  auto writer = SafetensorsWriter::Create(path,
                                          {{"half", TensorDType::kF16, {2, 3}},
                                           {"ids", TensorDType::kI64, {2}},
                                           {"none", TensorDType::kF32, {0, 4}}},
                                          {{"model", "a \"quoted\" name"}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_EQ(writer->Data("half").size(), 12u);
  std::memcpy(writer->Data("half").data(), "abcdefghijkl", 12);
  StoreLe<int64_t>(writer->Data("ids").data() + 8, -7);
  EXPECT_TRUE(writer->Data("other").empty());
  EXPECT_NE(access(path.c_str(), F_OK), 0) << "visible before it is whole";
  ASSERT_TRUE(writer->Commit().ok());

  const auto reader = SafetensorsReader::Open(path);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->metadata().at("model"), "a \"quoted\" name");
  ASSERT_EQ(reader->tensors().size(), 3u);
  const auto* half = reader->Find("half");
  ASSERT_NE(half, nullptr);
  EXPECT_EQ(half->shape, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ(AsText(half->data), "abcdefghijkl");
  const auto* ids = reader->Find("ids");
  EXPECT_EQ(LoadLe<int64_t>(ids->data.data() + 8), -7);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(ids->data.data()) % 8, 0u);
  EXPECT_TRUE(reader->Find("none")->data.empty());
  EXPECT_EQ(reader->Find("other"), nullptr);
}

TEST_F(SafetensorsTest, DroppedWriterLeavesNothing) {
  {
    auto writer = SafetensorsWriter::Create(dir_.File("out"), {{"x", TensorDType::kU8, {4}}}, {});
    ASSERT_TRUE(writer.ok());
    EXPECT_EQ(dir_.FileCount(), 1u);
  }
  EXPECT_EQ(dir_.FileCount(), 0u);
}

TEST_F(SafetensorsTest, AcceptsSoundHeader) {
  EXPECT_EQ(ErrorOf(FileText(R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   )", "ab")),
            "");
  EXPECT_EQ(ErrorOf(FileText(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", "abcd")),
            "");
}

TEST_F(SafetensorsTest, RefusesMalformedFiles) {
  const auto with = [](const std::string& entry, const std::string& data) {
    return FileText("{\"x\":" + entry + "}", data);
  };
  EXPECT_THAT(ErrorOf(""), HasSubstr("shorter than its header length"));
  EXPECT_THAT(ErrorOf("1234567"), HasSubstr("shorter than its header length"));
  EXPECT_THAT(ErrorOf(FileText("{", "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(ErrorOf(FileText("[]", "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(ErrorOf(FileText("{}", "x")), HasSubstr("bytes after the last tensor"));
  std::string cut = FileText("{}", "");
  cut[0] = 3;
  EXPECT_THAT(ErrorOf(cut), HasSubstr("header is cut off"));
  std::string huge = FileText("{}", "");
  StoreLe<uint64_t>(huge.data(), limits::kMaxSafetensorsHeaderBytes + 1);
  EXPECT_THAT(ErrorOf(huge), HasSubstr("at most 100000000"));
  EXPECT_THAT(ErrorOf(with(R"({"dtype":"U8","shape":[1]})", "a")), HasSubstr("data_offsets"));
  EXPECT_THAT(ErrorOf(with(R"({"dtype":"F8","shape":[1],"data_offsets":[0,1]})", "a")),
              HasSubstr("unknown dtype 'F8'"));
  EXPECT_THAT(ErrorOf(with(R"({"dtype":"U8","shape":[-1],"data_offsets":[0,1]})", "a")),
              HasSubstr("not a natural number"));
  EXPECT_THAT(ErrorOf(with(R"({"dtype":"U8","shape":[1],"data_offsets":[0,2]})", "a")),
              HasSubstr("outside of the file"));
  EXPECT_THAT(ErrorOf(with(R"({"dtype":"U8","shape":[1],"data_offsets":[1,0]})", "a")),
              HasSubstr("outside of the file"));
  EXPECT_THAT(ErrorOf(with(R"({"dtype":"F16","shape":[1],"data_offsets":[0,1]})", "a")),
              HasSubstr("needs 2 bytes"));
  EXPECT_THAT(
      ErrorOf(with(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", "")),
      HasSubstr("overflows"));
  EXPECT_THAT(ErrorOf(FileText(R"({"__metadata__":{"a":1}})", "")), HasSubstr("not a string"));
}

TEST_F(SafetensorsTest, RefusesOverlapsGapsAndDoubleNames) {
  const std::string a = R"("a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]})";
  EXPECT_THAT(ErrorOf(FileText("{" + a + R"(,"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                               "abc")),
              HasSubstr("overlap or leave a gap"));
  EXPECT_THAT(ErrorOf(FileText("{" + a + R"(,"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})",
                               "abcd")),
              HasSubstr("overlap or leave a gap"));
  EXPECT_THAT(ErrorOf(FileText("{" + a + "," + a + "}", "ab")), HasSubstr("named twice"));
}

TEST_F(SafetensorsTest, ErrorNamesTheFile) {
  WriteText(dir_.File("in"), "short");
  EXPECT_THAT(std::string(SafetensorsReader::Open(dir_.File("in")).status().message()),
              HasSubstr(dir_.File("in")));
  const auto missing = SafetensorsReader::Open(dir_.File("missing"));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(SafetensorsReader::Open(dir_.File("")).ok()) << "a directory";
}

}  // namespace
}  // namespace latticekv
