// latticekv: compresses KV caches, and stores, reads and looks at them on a daemon.
#include <csignal>
#include <string>
#include <vector>

#include "client/cli/command.h"

int main(int argc, char** argv) {
  // A reader that goes away (`latticekv blocks | head`) is no crash.
  std::signal(SIGPIPE, SIG_IGN);
  return latticekv::RunCommandLine(std::vector<std::string>(argv + 1, argv + argc));
}
