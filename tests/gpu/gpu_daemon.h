// A real latticekvd beside the test's program, and blocks put into and got out of it.
#ifndef LATTICEKV_TESTS_GPU_GPU_DAEMON_H_
#define LATTICEKV_TESTS_GPU_GPU_DAEMON_H_

#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/src/proto_convert.h"
#include "core/base/limits.h"
#include "core/layout/chain_hash.h"
#include "tests/support/sample_chunk.h"
#include "tests/support/service_client.h"

namespace latticekv::testing {

// latticekvd on a unix socket in a fresh folder, until the object ends. It learns no profiles: from
// which blocks on, and from what, several writers' timing decides, and frames would differ.
class GpuDaemon {
 public:
  explicit GpuDaemon(std::vector<std::string> flags) {
    char name[] = "/tmp/lkv_gpu_XXXXXX";
    if (mkdtemp(name) == nullptr) abort();
    folder_ = name;
    const std::string program =
        (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "latticekvd").string();
    flags.insert(flags.begin(), {program, "--listen=" + address(), "--memory_bytes=4294967296",
                                 "--port_file=" + folder_ + "/ports", "--log_level=warn",
                                 "--learn_profiles=false"});
    std::vector<char*> argv;
    for (std::string& flag : flags) argv.push_back(flag.data());
    argv.push_back(nullptr);
    if (posix_spawn(&pid_, program.c_str(), nullptr, nullptr, argv.data(), environ) != 0) abort();
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!std::filesystem::exists(folder_ + "/ports")) {
      if (waitpid(pid_, nullptr, WNOHANG) != 0 || std::chrono::steady_clock::now() > end) abort();
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  // Drains it; its exit status must be 0.
  ~GpuDaemon() {
    kill(pid_, SIGTERM);
    int status = 0;
    waitpid(pid_, &status, 0);
    EXPECT_EQ(status, 0) << "the daemon did not end well";
    std::filesystem::remove_all(folder_);
  }
  GpuDaemon(const GpuDaemon&) = delete;
  GpuDaemon& operator=(const GpuDaemon&) = delete;
  std::string address() const { return "unix:" + folder_ + "/s"; }
  pid_t pid() const { return pid_; }

 private:
  std::string folder_;
  pid_t pid_ = -1;
};

// A client of a daemon, with one layout.
class GpuDaemonClient {
 public:
  GpuDaemonClient(const std::string& address, const Layout& layout, uint32_t chunk_tokens)
      : client_(ServiceClient::Connect(address)), chunk_tokens_(chunk_tokens) {
    v1::RegisterLayoutRequest request;
    request.set_chunk_tokens(chunk_tokens);
    request.set_namespace_(layout.model);
    *request.mutable_layout() = ToProto(layout);
    const auto called = client_->RegisterLayout(request);
    EXPECT_TRUE(called.status.ok()) << called.status.message;
    fingerprint_ = called.response.fingerprint();
    name_space_ = layout.model;
  }
  ServiceClient& stub() { return *client_; }
  v1::CodecPaths Paths() { return client_->Stats().response.codec_paths(); }

  // The header of block `number` of a sequence that `salt` names.
  v1::BlockHeader Header(const std::string& salt, uint32_t number, uint64_t payload_bytes) const {
    v1::BlockHeader header;
    std::optional<Digest> parent;
    for (uint32_t n = 0; n <= number; ++n) {
      std::vector<uint32_t> ids(chunk_tokens_);
      for (uint32_t t = 0; t < chunk_tokens_; ++t) ids[t] = n * chunk_tokens_ + t;
      const Digest hash = ChunkHash(*ToDigest(fingerprint_), parent, ids, salt);
      header.set_content_hash(BytesString(hash));
      if (parent) header.set_parent_hash(BytesString(*parent));
      header.mutable_token_ids()->Assign(ids.begin(), ids.end());
      parent = hash;
    }
    header.set_index(number);
    header.set_start_position(uint64_t{number} * chunk_tokens_);
    header.set_payload_bytes(payload_bytes);
    header.set_salt(salt);
    return header;
  }
  // Leaves tokens out of the block, whose successors then are not of its sequence.
  void EvictEveryThird(v1::BlockHeader* header) const {
    std::vector<uint8_t> keep(chunk_tokens_);
    for (uint32_t t = 0; t < chunk_tokens_; ++t) keep[t] = t % 3 != 1;
    const std::vector<uint32_t> ids(header->token_ids().begin(), header->token_ids().end());
    std::optional<Digest> parent;
    if (!header->parent_hash().empty()) parent = *ToDigest(header->parent_hash());
    header->mutable_keep()->assign(keep.begin(), keep.end());
    header->set_content_hash(
        BytesString(ChunkHash(*ToDigest(fingerprint_), parent, ids, header->salt(), keep)));
  }
  v1::PutOpen Open(v1::Preset preset) const {
    v1::PutOpen open;
    open.set_namespace_(name_space_);
    open.set_fingerprint(fingerprint_);
    open.set_preset(preset);
    return open;
  }

  v1::BlockAck Put(v1::Preset preset, const v1::BlockHeader& header, ByteSpan payload) {
    return Put(Open(preset), header, payload);
  }
  v1::BlockAck Put(const v1::PutOpen& open, const v1::BlockHeader& header, ByteSpan payload) {
    const auto call = client_->PutBlocks();
    v1::PutBlocksResponse response;
    call->WriteOpen(open);
    call->WriteHeader(header);
    if (call->Read(&response) && response.has_credit()) {
      const std::string_view text = AsText(payload);
      for (size_t at = 0; at < text.size(); at += limits::kMaxPartBytes) {
        call->WritePart(header.index(), at, std::string(text.substr(at, limits::kMaxPartBytes)));
      }
      EXPECT_TRUE(call->Read(&response));
    }
    call->WritesDone();
    const CallStatus status = call->Finish();
    EXPECT_TRUE(status.ok()) << status.message;
    EXPECT_FALSE(response.ack().has_error()) << response.ack().error().message();
    return response.ack();
  }

  std::string Get(const std::string& hash, v1::Encoding encoding) {
    v1::GetBlocksRequest request;
    request.set_namespace_(name_space_);
    request.set_fingerprint(fingerprint_);
    request.set_encoding(encoding);
    request.set_accept_evicted(true);
    request.add_content_hashes(hash);
    const auto call = client_->GetBlocks(request);
    std::string out;
    v1::GetBlocksResponse response;
    while (call->Read(&response)) {
      EXPECT_FALSE(response.has_failed());
      if (!response.has_part()) continue;
      const v1::GetPart& part = response.part();
      out.resize(std::max(out.size(), part.offset() + part.data().size()));
      out.replace(part.offset(), part.data().size(), part.data());
    }
    const CallStatus status = call->Finish();
    EXPECT_TRUE(status.ok()) << status.message;
    return out;
  }

 private:
  std::unique_ptr<ServiceClient> client_;
  const uint32_t chunk_tokens_;
  std::string fingerprint_, name_space_;
};

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_GPU_GPU_DAEMON_H_
