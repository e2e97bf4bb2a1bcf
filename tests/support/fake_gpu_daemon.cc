// fake_gpu_daemon ADDRESS: a server on ADDRESS and on a loopback port whose GPU is the fake one,
// beside a test of the client library (which cannot share a process with the server). Prints a line
// with its TCP address when it serves, then answers commands on stdin, a line each:
//   close        batches begin and wait
//   open         they go on
//   wait N       until N batches have begun in all
//   begun        their number
//   fail N       the next N batches fail
//   regions      mapped now
// It ends with its stdin.
#include <cstdio>
#include <iostream>
#include <string>

#include "server/server.h"
#include "spdlog/spdlog.h"
#include "tests/support/fake_gpu.h"

namespace latticekv::testing {
namespace {

int Run(const std::string& address) {
  spdlog::set_level(spdlog::level::off);  // it would go to stdout
  const auto script = std::make_shared<FakeGpuScript>();
  ServerConfig config;
  config.listen = {address, "127.0.0.1:0"};
  config.memory_bytes = 16 << 20;
  config.codec_threads = 4;
  config.tick_ms = 5;
  config.learn_profiles = false;
  config.gpu.use = GpuConfig::Use::kAuto;
  config.gpu.options.min_job_bytes = 0;
  config.gpu.options.ring_bytes = 8 << 20;
  config.gpu.open = [&](const GpuOptions& options) { return MakeFakeGpu(script, options); };
  const auto server = Server::Start(config);
  if (!server.ok()) {
    std::cerr << server.status() << "\n";
    return 1;
  }
  std::cout << (*server)->addresses()[1] << std::endl;
  std::string command;
  while (std::cin >> command) {
    size_t n = 0;
    if (command == "close") script->Close();
    if (command == "open") script->Open();
    if (command == "wait" && std::cin >> n) script->WaitForBatches(n);
    if (command == "begun") n = script->batch_sizes().size();
    if (command == "fail" && std::cin >> n) {
      script->FailNext(static_cast<int>(n), absl::InternalError("the fake device is broken"));
    }
    if (command == "regions") n = static_cast<size_t>(script->regions());
    std::cout << n << std::endl;
  }
  script->Open();
  return 0;
}

}  // namespace
}  // namespace latticekv::testing

int main(int argc, char** argv) { return argc == 2 ? latticekv::testing::Run(argv[1]) : 2; }
