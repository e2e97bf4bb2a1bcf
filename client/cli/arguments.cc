#include "client/cli/arguments.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace latticekv {
namespace {

constexpr absl::string_view kUsageUrl = "latticekv/usage";

const FlagSpec* FindFlag(const CommandSpec& spec, std::string_view name) {
  for (const FlagSpec& flag : spec.flags) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

std::string FlagUsage(const FlagSpec& flag) {
  return flag.value.empty() ? absl::StrCat("--", flag.name)
                            : absl::StrCat("--", flag.name, " ", flag.value);
}

}  // namespace

absl::Status UsageError(const std::string& message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kUsageUrl, absl::Cord());
  return status;
}

bool IsUsageError(const absl::Status& status) { return status.GetPayload(kUsageUrl).has_value(); }

absl::StatusOr<Arguments> Arguments::Parse(const CommandSpec& spec,
                                           const std::vector<std::string>& words) {
  Arguments out;
  bool only_positionals = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (only_positionals || word.size() < 2 || word[0] != '-') {
      out.positionals_.push_back(word);
      continue;
    }
    if (word == "--") {
      only_positionals = true;
      continue;
    }
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals).substr(word.starts_with("--") ? 2 : 1);
    const FlagSpec* flag = word.starts_with("--") ? FindFlag(spec, name) : nullptr;
    if (flag == nullptr) {
      return UsageError(absl::StrCat(spec.name, " knows no flag ", word.substr(0, equals)));
    }
    std::string value;
    if (flag->value.empty()) {
      if (equals != std::string::npos) {
        return UsageError(absl::StrCat("--", name, " takes no value"));
      }
    } else if (equals != std::string::npos) {
      value = word.substr(equals + 1);
    } else if (i + 1 < words.size()) {
      value = words[++i];
    } else {
      return UsageError(absl::StrCat("--", name, " needs a value: ", flag->value));
    }
    if (!out.flags_.emplace(name, value).second) {
      return UsageError(absl::StrCat("--", name, " is given twice"));
    }
  }
  if (out.positionals_.size() < spec.min_positionals ||
      out.positionals_.size() > spec.max_positionals) {
    return UsageError(spec.positionals.empty()
                          ? absl::StrCat(spec.name, " takes no argument")
                          : absl::StrCat(spec.name, " needs ", spec.positionals));
  }
  return out;
}

std::string Arguments::Get(const std::string& flag, const std::string& otherwise) const {
  const auto it = flags_.find(flag);
  return it == flags_.end() ? otherwise : it->second;
}

absl::StatusOr<std::string> Arguments::Require(const std::string& flag) const {
  const auto it = flags_.find(flag);
  if (it != flags_.end() && !it->second.empty()) return it->second;
  return UsageError(absl::StrCat("--", flag, " is missing"));
}

absl::StatusOr<uint64_t> Arguments::GetNumber(const std::string& flag, uint64_t otherwise,
                                              uint64_t low, uint64_t high) const {
  const auto it = flags_.find(flag);
  if (it == flags_.end()) return otherwise;
  uint64_t number = 0;
  if (!absl::SimpleAtoi(it->second, &number) || number < low || number > high) {
    return UsageError(absl::StrCat("--", flag, " is '", it->second,
                                   "', must be a whole number from ", low, " to ", high));
  }
  return number;
}

std::string CommandHelp(const CommandSpec& spec) {
  std::string out = absl::StrCat("usage: latticekv ", spec.name);
  if (!spec.positionals.empty()) absl::StrAppend(&out, " ", spec.positionals);
  if (!spec.flags.empty()) absl::StrAppend(&out, " [flags]");
  absl::StrAppend(&out, "\n\n", spec.summary, "\n");
  size_t width = 0;
  for (const FlagSpec& flag : spec.flags) width = std::max(width, FlagUsage(flag).size());
  if (!spec.flags.empty()) absl::StrAppend(&out, "\nflags:\n");
  for (const FlagSpec& flag : spec.flags) {
    std::string usage = FlagUsage(flag);
    usage.resize(width, ' ');
    absl::StrAppend(&out, "  ", usage, "  ", flag.help, "\n");
  }
  return out;
}

}  // namespace latticekv
