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

void Put(GpuDaemonClient& client, uint64_t region, const v1::BlockTable& table,
         const std::vector<v1::BlockHeader>& headers, size_t in_flight) {
  const auto call = client.stub().PutBlocks();
  call->WriteOpen(client.Open(v1::PRESET_BALANCED));
  v1::PutBlocksResponse response;
  size_t sent = 0;
  for (size_t acknowledged = 0; acknowledged < headers.size();) {
    if (sent < headers.size() && sent - acknowledged < in_flight) {
      call->WriteHeader(headers[sent++]);
      continue;
    }
    Check(call->Read(&response), "put");
    if (response.has_ack()) {
      if (response.ack().has_error())
        fprintf(stderr, "%s\n", response.ack().error().message().c_str());
      Check(!response.ack().has_error() && !response.ack().have_it(), "block");
      ++acknowledged;
      continue;
    }
    v1::PutBlocksRequest request;
    v1::RegionPart* part = request.mutable_region_part();
    part->set_index(response.credit().index());
    part->set_region_id(region);
    const auto per_chunk = static_cast<int>(kTokens / WorkerCache::kBlockTokens);
    const int first = static_cast<int>(response.credit().index()) * per_chunk;
    for (int b = first; b < first + per_chunk; ++b)
      part->mutable_table()->add_blocks(table.blocks(b));
    part->mutable_table()->set_first_position(uint64_t{response.credit().index()} * kTokens);
    call->Write(request);
  }
  call->WritesDone();
  Check(call->Finish().ok(), "put stream");
}

void Get(GpuDaemonClient& client, uint64_t region, const v1::BlockTable& table,
         const std::vector<v1::BlockHeader>& headers, const std::string& name_space) {
  v1::GetBlocksRequest request;
  request.set_namespace_(name_space);
  request.set_fingerprint(client.Open(v1::PRESET_HIGH).fingerprint());
  for (const v1::BlockHeader& header : headers) request.add_content_hashes(header.content_hash());
  request.mutable_target()->set_region_id(region);
  *request.mutable_target()->mutable_table() = table;
  const auto call = client.stub().GetBlocks(request);
  v1::GetBlocksResponse response;
  size_t placed = 0;
  while (call->Read(&response)) {
    placed += response.has_placed();
    if (response.has_failed()) {
      fprintf(stderr, "%s\n", response.failed().miss().message().c_str());
    }
  }
  Check(call->Finish().ok() && placed == headers.size(), "get");
}

int Run(const std::string& address, uint32_t tokens, size_t in_flight) {
  const Layout layout = MakeUniformLayout("ipc bench", 32, 8, 128, DType::kBF16,
                                          {RopeStyle::kNeox, 128, 500000.0, {}});
  const uint32_t chunks = tokens / kTokens;
  const uint32_t blocks = chunks * (kTokens / WorkerCache::kBlockTokens);
  GpuDaemonClient client(address, layout, kTokens);
  WorkerCache cache(layout, blocks, false), other(layout, blocks, true);
  const v1::BlockTable table = ShuffledTable(blocks, blocks, 1),
                       places = ShuffledTable(blocks, blocks, 2);
  {
    const SampleChunk chunk = MakeSampleChunk(layout, kTokens, 1);
    ByteVector host = cache.Empty();
    for (uint32_t n = 0; n < chunks; ++n) {
      cache.Lay(AsText(chunk.raw), table, uint64_t{n} * kTokens, &host);
    }
    cache.Upload(host);
  }
  const std::string fingerprint = client.Open(v1::PRESET_HIGH).fingerprint();
  std::unique_ptr<RegionCall> lease, other_lease;
  const uint64_t from = HandOver(client, cache.Region(layout.model, fingerprint), &lease);
  const uint64_t into = HandOver(client, other.Region(layout.model, fingerprint), &other_lease);
  Check(from != 0 && into != 0, "hand-over");
  const double gb = static_cast<double>(cache.bytes()) / 1e9;
  for (int round = 0; round < 3; ++round) {
    std::vector<v1::BlockHeader> headers;
    client.AppendHeaders(std::to_string(getpid()) + "/" + std::to_string(round), chunks,
                         layout.token_bytes() * kTokens, &headers);
    auto start = std::chrono::steady_clock::now();
    Put(client, from, table, headers, in_flight);
    const double put = Seconds(start);
    start = std::chrono::steady_clock::now();
    Get(client, into, places, headers, layout.model);
    const double get = Seconds(start);
    printf("%u tokens, %.2f GB: put %.1f ms, %.1f GB/s; get %.1f ms, %.1f GB/s\n", tokens, gb,
           1e3 * put, gb / put, 1e3 * get, gb / get);
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
                                 argc > 3 ? static_cast<size_t>(atoi(argv[3])) : 16);
}
