// gpu_ipc_bench ADDRESS [TOKENS] [IN_FLIGHT]: a worker that hands its paged cache (Llama-3.1-8B's
// shape, bf16) to the daemon at ADDRESS, puts TOKENS tokens out of it and gets them back into it,
// three times; beside plain copies of as many bytes to page-locked memory and back. The daemon's
// --learn_profiles=false keeps the rounds alike.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "tests/gpu/worker_cache.h"

namespace latticekv::testing {
namespace {

constexpr uint32_t kTokens = 256;  // of a chunk

double Seconds(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Check(bool ok, const char* what) {
  if (ok) return;
  fprintf(stderr, "%s failed\n", what);
  exit(1);
}

void Check(const absl::Status& status, const char* what) {
  if (!status.ok()) fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  Check(status.ok(), what);
}

int Run(const std::string& address, uint32_t tokens, uint32_t in_flight) {
  auto client = Connect(address, {.max_inflight_blocks = in_flight});
  Check(client.status(), "connection");
  const auto layout =
      client->RegisterLayout({.name_space = "ipc bench",
                              .layout = MakeUniformLayout("ipc bench", 32, 8, 128, DType::kBF16,
                                                          {RopeStyle::kNeox, 128, 500000.0, {}}),
                              .chunk_tokens = kTokens});
  Check(layout.status(), "layout");
  const uint32_t blocks = tokens / WorkerCache::kBlockTokens;
  WorkerCache cache(*layout, blocks, GpuCacheOrder::kNhd);
  WorkerCache other(*layout, blocks, GpuCacheOrder::kHnd);
  PutRequest put;
  put.gpu.blocks = ShuffledTable(blocks, blocks, 1);
  {
    const SampleChunk chunk = MakeSampleChunk(*layout->layout, kTokens, 1);
    ByteVector host = cache.Empty();
    for (uint32_t at = 0; at < tokens; at += kTokens) {
      cache.Lay(chunk.raw, put.gpu.blocks, at, &host);
    }
    cache.Upload(host);
  }
  const auto from = client->OpenGpuCache(cache.spec()), into = client->OpenGpuCache(other.spec());
  Check(from.status(), "hand-over");
  Check(into.status(), "hand-over");
  std::vector<uint32_t> ids(tokens);
  for (uint32_t t = 0; t < tokens; ++t) ids[t] = t;
  put.layout = *layout;
  put.tokens = ids;
  put.gpu.cache = *from;
  put.preset = PresetId::kBalanced;
  const double gb = static_cast<double>(cache.bytes()) / 1e9;
  for (int round = 0; round < 3; ++round) {
    put.salt = std::to_string(getpid()) + "/" + std::to_string(round);
    auto start = std::chrono::steady_clock::now();
    const auto stored = client->PutPrefix(put);
    const double put_s = Seconds(start);
    Check(stored.ok() ? stored->status() : stored.status(), "put");
    GetRequest get;
    get.layout = *layout;
    for (const BlockResult& block : stored->blocks) {
      Check(!block.have_it, "new block");
      get.content_hashes.push_back(block.content_hash);
    }
    get.target = {*into, ShuffledTable(blocks, blocks, 2)};
    start = std::chrono::steady_clock::now();
    const auto placed = client->GetToGpu(get);
    const double get_s = Seconds(start);
    Check(placed.ok() ? placed->status() : placed.status(), "get");
    printf("%u tokens, %.2f GB: put %.1f ms, %.1f GB/s; get %.1f ms, %.1f GB/s\n", tokens, gb,
           1e3 * put_s, gb / put_s, 1e3 * get_s, gb / get_s);
  }
  const PinnedBuffer pinned(std::min<size_t>(cache.bytes(), size_t{4} << 30));
  DeviceBuffer device(pinned.size());
  for (const auto& [name, kind] : {std::pair("device to host", cudaMemcpyDeviceToHost),
                                   std::pair("host to device", cudaMemcpyHostToDevice)}) {
    const bool down = kind == cudaMemcpyDeviceToHost;
    for (int round = 0; round < 2; ++round) {
      const auto start = std::chrono::steady_clock::now();
      cudaMemcpy(down ? pinned.data() : device.data(), down ? device.data() : pinned.data(),
                 pinned.size(), kind);
      cudaDeviceSynchronize();
      if (round == 1) {
        printf("raw copy %s: %.1f GB/s\n", name,
               static_cast<double>(pinned.size()) / 1e9 / Seconds(start));
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace latticekv::testing

int main(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: gpu_ipc_bench ADDRESS [TOKENS] [IN_FLIGHT]\n");
    return 2;
  }
  const uint32_t tokens = argc > 2 ? static_cast<uint32_t>(atoi(argv[2])) : 16384;
  return latticekv::testing::Run(argv[1], std::max(256u, tokens / 256 * 256),
                                 argc > 3 ? static_cast<uint32_t>(atoi(argv[3])) : 16);
}
