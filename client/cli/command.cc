#include "client/cli/command.h"

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr int kExitError = 1;
constexpr int kExitUsage = 2;

std::string Overview() {
  std::string out = "usage: latticekv COMMAND [arguments and flags]\n\ncommands:\n";
  size_t width = 0;
  const std::vector<Command> commands = AllCommands();
  for (const Command& command : commands) width = std::max(width, command.spec.name.size());
  for (const Command& command : commands) {
    std::string name = command.spec.name;
    name.resize(width, ' ');
    absl::StrAppend(&out, "  ", name, "  ", command.spec.summary, "\n");
  }
  absl::StrAppend(&out, "\n'latticekv COMMAND --help' tells more. Exit codes: 0 done, 1 an error, ",
                  "2 wrong usage.\n");
  return out;
}

// One line, whatever the message holds.
void PrintError(std::string message) {
  std::replace_if(
      message.begin(), message.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  std::cerr << "latticekv: " << message << std::endl;
}

std::vector<std::string> Split(const std::string& name) {
  const size_t space = name.find(' ');
  if (space == std::string::npos) return {name};
  return {name.substr(0, space), name.substr(space + 1)};
}

// The command that `words` begin with, and how many words name it; null when there is none.
const Command* FindCommand(const std::vector<Command>& commands,
                           const std::vector<std::string>& words, size_t& name_words) {
  for (const Command& command : commands) {
    const std::vector<std::string> name = Split(command.spec.name);
    if (words.size() >= name.size() && std::equal(name.begin(), name.end(), words.begin())) {
      name_words = name.size();
      return &command;
    }
  }
  return nullptr;
}

bool IsHelp(const std::string& word) { return word == "--help" || word == "-h"; }

// For the first half of a two-word command: "profile", "bench".
std::string Subcommands(const std::vector<Command>& commands, const std::string& first) {
  std::string out;
  for (const Command& command : commands) {
    const std::vector<std::string> name = Split(command.spec.name);
    if (name.size() == 2 && name[0] == first) {
      absl::StrAppend(&out, out.empty() ? "" : ", ", name[1]);
    }
  }
  return out;
}

absl::Status RunOne(const Command& command, const std::vector<std::string>& words) {
  LKV_ASSIGN_OR_RETURN(const Arguments arguments, Arguments::Parse(command.spec, words));
  const absl::Status status = command.run(arguments);
  if (absl::IsUnavailable(status) && arguments.Has("server")) {
    return absl::UnavailableError(absl::StrCat("the daemon at ", arguments.Get("server"),
                                               " does not answer; is latticekvd running there? (",
                                               std::string(status.message()), ")"));
  }
  LKV_RETURN_IF_ERROR(status);
  std::cout.flush();
  if (!std::cout.good()) return absl::UnavailableError("cannot write to standard output");
  return absl::OkStatus();
}

}  // namespace

FlagSpec JsonFlag() { return {"json", "", "print the result as JSON"}; }
FlagSpec ServerFlag() { return {"server", "ADDR", "the daemon: unix:PATH or HOST:PORT"}; }

std::vector<Command> AllCommands() {
  std::vector<Command> out = {CompressCommand(),     DecompressCommand(), InspectCommand(),
                              ProfileLearnCommand(), PutCommand(),        GetCommand()};
  for (Command& command : AdminCommands()) out.push_back(std::move(command));
  out.push_back(BenchCodecCommand());
  out.push_back(BenchServiceCommand());
  out.push_back(BenchBatchingCommand());
  return out;
}

int RunCommandLine(const std::vector<std::string>& words) {
  if (words.empty()) {
    std::cerr << Overview();
    return kExitUsage;
  }
  if (IsHelp(words[0]) || words[0] == "help") {
    std::cout << Overview();
    return 0;
  }
  const std::vector<Command> commands = AllCommands();
  size_t name_words = 0;
  const Command* command = FindCommand(commands, words, name_words);
  if (command == nullptr) {
    const std::string subcommands = Subcommands(commands, words[0]);
    const std::string help = "; see latticekv --help";
    PrintError(subcommands.empty() ? absl::StrCat("there is no command '", words[0], "'", help)
                                   : absl::StrCat(words[0], " needs one of: ", subcommands, help));
    return kExitUsage;
  }
  const std::vector<std::string> rest(words.begin() + static_cast<std::ptrdiff_t>(name_words),
                                      words.end());
  if (std::any_of(rest.begin(), rest.end(), IsHelp)) {
    std::cout << CommandHelp(command->spec);
    return 0;
  }
  const absl::Status status = RunOne(*command, rest);
  if (status.ok()) return 0;
  const std::string message(status.message());
  if (IsUsageError(status)) {
    PrintError(absl::StrCat(message, "; see latticekv ", command->spec.name, " --help"));
    return kExitUsage;
  }
  PrintError(message.empty() ? std::string(absl::StatusCodeToString(status.code())) : message);
  return kExitError;
}

}  // namespace latticekv
