// Command lines: flags before, between or after positional arguments; `--preset high` and
// `--preset=high` alike; `--` ends the flags.
#ifndef LATTICEKV_CLIENT_CLI_ARGUMENTS_H_
#define LATTICEKV_CLIENT_CLI_ARGUMENTS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace latticekv {

struct FlagSpec {
  std::string name;   // without the dashes
  std::string value;  // what the value is called in the help; empty: a switch without value
  std::string help;
};

struct CommandSpec {
  std::string name;         // "compress", "profile learn"
  std::string positionals;  // as the help shows them: "IN.safetensors OUT.lkv"
  size_t min_positionals = 0;
  size_t max_positionals = 0;
  std::string summary;  // one line
  std::vector<FlagSpec> flags;
};

// An error of usage: the program exits with 2 instead of 1.
absl::Status UsageError(const std::string& message);
bool IsUsageError(const absl::Status& status);

class Arguments {
 public:
  // Errors are UsageErrors.
  static absl::StatusOr<Arguments> Parse(const CommandSpec& spec,
                                         const std::vector<std::string>& words);

  const std::vector<std::string>& positionals() const { return positionals_; }
  bool Has(const std::string& flag) const { return flags_.contains(flag); }
  // `otherwise` when the flag was not given.
  std::string Get(const std::string& flag, const std::string& otherwise = "") const;
  // UsageError when the flag was not given.
  absl::StatusOr<std::string> Require(const std::string& flag) const;
  // UsageError unless the value is a number from `low` to `high`.
  absl::StatusOr<uint64_t> GetNumber(const std::string& flag, uint64_t otherwise, uint64_t low,
                                     uint64_t high) const;

 private:
  std::vector<std::string> positionals_;
  std::map<std::string, std::string> flags_;
};

// Help of one command.
std::string CommandHelp(const CommandSpec& spec);

}  // namespace latticekv

#endif  // LATTICEKV_CLIENT_CLI_ARGUMENTS_H_
