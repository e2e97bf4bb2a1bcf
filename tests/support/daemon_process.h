// A real latticekvd, started beside the test's own program, for tests of the client library.
// (Client and server cannot share a process: both have a latticekv::PutResult.)
#ifndef LATTICEKV_TESTS_SUPPORT_DAEMON_PROCESS_H_
#define LATTICEKV_TESTS_SUPPORT_DAEMON_PROCESS_H_

#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/child_process.h"

namespace latticekv::testing {

inline std::string Program(const char* name) {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / name).string();
}

inline void Sleep(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

template <typename Condition>
bool Eventually(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    Sleep(20);
  }
  return true;
}

// latticekvd on a unix socket in a fresh folder.
class DaemonProcess {
 public:
  DaemonProcess() : folder_(*ScratchFolder::Make()) {}
  std::string address() const { return "unix:" + folder_->File("d.sock"); }
  std::string disk() const { return folder_->File("disk"); }
  // False when it ends instead of serving.
  bool Start(const std::vector<std::string>& flags = {}) {
    process_.reset();
    std::filesystem::remove(folder_->File("ports"));
    std::vector<std::string> all = {"--listen=" + address(), "--memory_bytes=67108864",
                                    "--port_file=" + folder_->File("ports"), "--log_level=off"};
    all.insert(all.end(), flags.begin(), flags.end());
    auto process = ChildProcess::Start(Program("latticekvd"), all, folder_->File("log"));
    if (!process.ok()) return false;
    process_ = *std::move(process);
    return Eventually([&] {
             return !process_->running() || std::filesystem::exists(folder_->File("ports"));
           }) &&
           process_->running();
  }
  void Kill() { process_.reset(); }
  pid_t pid() const { return process_->pid(); }

  size_t Descriptors() const { return Count("fd", ""); }
  size_t Regions() const { return Count("fd", "latticekv-region"); }
  size_t Threads() const { return Count("task", ""); }
  size_t ResidentBytes() const {
    std::ifstream in(absl::StrCat("/proc/", pid(), "/statm"));
    size_t total = 0, resident = 0;
    in >> total >> resident;
    return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  }

 private:
  size_t Count(const char* what, const std::string& target) const {
    size_t out = 0;
    std::error_code failed;
    for (const auto& entry :
         std::filesystem::directory_iterator(absl::StrCat("/proc/", pid(), "/", what), failed)) {
      if (target.empty()) {
        ++out;
      } else {
        out += std::filesystem::read_symlink(entry.path(), failed).string().find(target) !=
               std::string::npos;
      }
    }
    return out;
  }
  std::unique_ptr<ScratchFolder> folder_;
  std::unique_ptr<ChildProcess> process_;
};

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_DAEMON_PROCESS_H_
