// Why blocks left, for those who ask for them later: in a fixed amount of memory.
#ifndef LATTICEKV_SERVER_REMOVAL_MEMORY_H_
#define LATTICEKV_SERVER_REMOVAL_MEMORY_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/limits.h"
#include "core/store/tiered_store.h"
#include "latticekv/v1/blocks.pb.h"

namespace latticekv {

enum class Removal : uint8_t {
  kNone = 0,
  kEvicted,
  kExpired,
  kCorrupt,
  kLost,
  kDeleted,
  kSuperseded,
};

// What a reader is told.
struct RemovalText {
  v1::Reason reason;
  std::string_view message;
};
RemovalText TextOf(Removal why);

// The last limits::kMaxRememberedRemovals removals, or nearly: keys fall into sets of eight, and
// the oldest of a set makes room for the next. All of it is taken at the start, since millions of
// blocks leave a busy store and none of them may make the process grow. Not thread-safe.
class RemovalMemory {
 public:
  RemovalMemory() : sets_(limits::kMaxRememberedRemovals / kWays) {}

  void Remember(const BlockKey& key, Removal why);
  void Forget(const BlockKey& key);
  std::optional<Removal> Find(const BlockKey& key) const;

 private:
  static constexpr size_t kWays = 8;
  struct Entry {
    std::array<std::byte, 16> key{};  // its first bytes
    uint32_t when = 0;
    Removal why = Removal::kNone;
  };
  using Set = std::array<Entry, kWays>;

  size_t SetOf(const BlockKey& key) const;
  // Null when absent.
  const Entry* EntryOf(const BlockKey& key) const;
  Entry* EntryOf(const BlockKey& key) {
    return const_cast<Entry*>(std::as_const(*this).EntryOf(key));
  }

  std::vector<Set> sets_;
  uint32_t now_ = 0;  // counts removals, and wraps around
};

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_REMOVAL_MEMORY_H_
