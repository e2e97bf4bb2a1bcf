// A program that a benchmark starts beside itself and ends with itself.
#ifndef LATTICEKV_CLIENT_CLI_CHILD_PROCESS_H_
#define LATTICEKV_CLIENT_CLI_CHILD_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace latticekv {

class ChildProcess {
 public:
  // `program` is a path, or a name to look for in $PATH (NOT_FOUND when it is not there). Its
  // output goes to `log_path`.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(
      const std::string& program, const std::vector<std::string>& arguments,
      const std::string& log_path);
  // Ends it with SIGKILL.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  bool running();
  // Until it ends by itself; its status as waitpid gives it.
  int Wait();

 private:
  explicit ChildProcess(pid_t pid) : pid_(pid) {}
  pid_t pid_;
  bool ended_ = false;
};

// User and system time so far, of this process and of another one (0 when it cannot be read).
double OwnCpuSeconds();
double CpuSecondsOf(pid_t pid);
// What a process had the disk read so far, by the kernel's count (0 when it cannot be read).
uint64_t DiskBytesReadBy(pid_t pid);

// A fresh folder, removed with all that is in it.
class ScratchFolder {
 public:
  static absl::StatusOr<std::unique_ptr<ScratchFolder>> Make();
  ~ScratchFolder();
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  explicit ScratchFolder(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_CHILD_PROCESS_H_
