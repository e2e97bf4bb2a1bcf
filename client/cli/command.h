// The commands of `latticekv`.
#ifndef LATTICEKV_CLIENT_CLI_COMMAND_H_
#define LATTICEKV_CLIENT_CLI_COMMAND_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/cli/arguments.h"

namespace latticekv {

// Flags that every command has, or every command that talks to a server.
FlagSpec JsonFlag();
FlagSpec ServerFlag();

// Prints its result on stdout. Errors become one line on stderr.
struct Command {
  CommandSpec spec;
  std::function<absl::Status(const Arguments&)> run;
};

Command CompressCommand();
Command DecompressCommand();
Command InspectCommand();
Command ProfileLearnCommand();
Command PutCommand();
Command GetCommand();
// sessions, session, blocks, stats, explain, verify
std::vector<Command> AdminCommands();
Command BenchCodecCommand();
Command BenchServiceCommand();
Command BenchBatchingCommand();

// All commands in the order of the help.
std::vector<Command> AllCommands();

// Runs one command line (without the program's name). Returns the exit code: 0 done, 1 an error, 2
// wrong usage.
int RunCommandLine(const std::vector<std::string>& words);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_COMMAND_H_
