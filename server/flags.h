// The daemon's command line.
#ifndef LATTICEKV_SERVER_FLAGS_H_
#define LATTICEKV_SERVER_FLAGS_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/config.h"

namespace latticekv {

struct DaemonFlags {
  ServerConfig server;
  std::string port_file;
  std::string log_level;
};

// Parses argv; --help and --version print and exit 0, unknown flags exit 1. INVALID_ARGUMENT with a
// sentence for values that do not make sense.
absl::StatusOr<DaemonFlags> ParseFlags(int argc, char** argv);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_FLAGS_H_
