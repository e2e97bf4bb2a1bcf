#include "core/store/disk_index.h"

#include <algorithm>

#include "core/base/bytes.h"
#include "core/store/segment_format.h"

namespace latticekv {

DiskIndex::Prefix DiskIndex::PrefixOf(const Digest& key) {
  return {LoadLe<uint64_t>(key.data()), LoadLe<uint64_t>(key.data() + 8)};
}

size_t DiskIndex::Home(const Prefix& prefix) const {
  // Keys are uniform: the high part of a product spreads them over a table of any size.
  return static_cast<size_t>((static_cast<unsigned __int128>(prefix[0]) * table_.size()) >> 64);
}

DiskIndex::Slot DiskIndex::Lookup(const Prefix& prefix) const {
  if (table_.empty()) return kNone;
  for (size_t i = Home(prefix);; i = i + 1 == table_.size() ? 0 : i + 1) {
    const Slot slot = table_[i];
    if (slot == kNone || At(slot).prefix == prefix) return slot;
  }
}

DiskIndex::Slot DiskIndex::Find(const Digest& key) const {
  const Slot slot = Lookup(PrefixOf(key));
  return slot == kNone || !present(slot) ? kNone : slot;
}

bool DiskIndex::Prepare(size_t blocks) {
  // With each may come a ghost of its parent.
  return GrowTable(2 * blocks) && GrowChunks(2 * blocks);
}

bool DiskIndex::GrowTable(size_t more) {
  // At most nine tenths full, and small steps, so that a block's share stays below eight bytes.
  if (used_ + more <= table_.size() / 10 * 9) return true;
  const size_t size =
      std::max({table_.size() + table_.size() / 4, (used_ + more) / 9 * 10 + 10, size_t{320}});
  Reservation reservation;
  if (!budget_->TryReserve(size * sizeof(Slot), &reservation)) return false;
  std::vector<Slot> old(size, kNone);
  old.swap(table_);
  for (const Slot slot : old) {
    if (slot == kNone) continue;
    size_t i = Home(At(slot).prefix);
    while (table_[i] != kNone) i = i + 1 == table_.size() ? 0 : i + 1;
    table_[i] = slot;
  }
  reservation_bytes_ += reservation.bytes() - table_reservation_.bytes();
  table_reservation_ = std::move(reservation);
  return true;
}

bool DiskIndex::GrowChunks(size_t more) {
  while (chunks_.size() * kChunkSlots - used_ < more) {
    Reservation reservation;
    if (!budget_->TryReserve(kChunkSlots * sizeof(Entry), &reservation)) return false;
    chunks_.push_back(std::make_unique<Entry[]>(kChunkSlots));
    reservation_bytes_ += reservation.bytes();
    reservations_.push_back(std::move(reservation));
  }
  return true;
}

DiskIndex::Slot DiskIndex::Add(const Prefix& prefix) {
  if (!GrowTable(1) || !GrowChunks(1)) return kNone;
  Slot slot = free_;
  if (slot != kNone) {
    free_ = At(slot).parent;
  } else {
    slot = slots_++;
  }
  At(slot) = Entry{};
  At(slot).prefix = prefix;
  At(slot).parent = At(slot).first_child = At(slot).next_sibling = kNone;
  size_t i = Home(prefix);
  while (table_[i] != kNone) i = i + 1 == table_.size() ? 0 : i + 1;
  table_[i] = slot;
  ++used_;
  return slot;
}

void DiskIndex::Free(Slot slot) {
  const size_t size = table_.size();
  size_t hole = Home(At(slot).prefix);
  while (table_[hole] != slot) hole = hole + 1 == size ? 0 : hole + 1;
  // Entries behind the hole move up, unless that would put them before their home.
  for (size_t i = hole;;) {
    i = i + 1 == size ? 0 : i + 1;
    if (table_[i] == kNone) break;
    const size_t home = Home(At(table_[i]).prefix);
    const bool stays = hole < i ? (home > hole && home <= i) : (home > hole || home <= i);
    if (stays) continue;
    table_[hole] = table_[i];
    hole = i;
  }
  table_[hole] = kNone;
  At(slot).flags = 0;
  At(slot).parent = free_;
  free_ = slot;
  --used_;
}

DiskIndex::Slot DiskIndex::Insert(const Digest& key, const std::optional<Digest>& parent,
                                  const DiskPlace& place, uint32_t quality_rank) {
  Slot slot = Lookup(PrefixOf(key));
  const bool was_ghost = slot != kNone;
  if (!was_ghost) slot = Add(PrefixOf(key));
  if (slot == kNone) return kNone;
  if (parent && *parent != key) {
    Slot above = Lookup(PrefixOf(*parent));
    if (above == kNone) above = Add(PrefixOf(*parent));
    if (above == kNone) {
      if (!was_ghost) Free(slot);
      return kNone;
    }
    At(slot).parent = above;
    At(slot).next_sibling = At(above).first_child;
    At(above).first_child = slot;
  }
  Entry& entry = At(slot);
  entry.flags = kPresent;
  entry.expires_ms = 0;
  entry.last_used = 0;
  ++present_;
  Move(slot, place, quality_rank);
  return slot;
}

void DiskIndex::Move(Slot slot, const DiskPlace& place, uint32_t quality_rank) {
  Entry& entry = At(slot);
  const uint64_t old_bytes = entry.bytes * kRecordAlignment;  // 0 for a new one
  record_bytes_ += place.bytes - old_bytes;
  if ((entry.flags & kPinned) != 0) pinned_bytes_ += place.bytes - old_bytes;
  entry.segment = place.segment;
  entry.offset = place.offset / kRecordAlignment;
  entry.bytes = place.bytes / kRecordAlignment;
  entry.quality_rank = quality_rank;
}

void DiskIndex::Unlink(Slot slot) {
  const Slot above = At(slot).parent;
  if (above == kNone) return;
  Slot* link = &At(above).first_child;
  while (*link != slot) link = &At(*link).next_sibling;
  *link = At(slot).next_sibling;
  At(slot).parent = At(slot).next_sibling = kNone;
  Prune(above);
}

void DiskIndex::Prune(Slot slot) {
  // A ghost is no child of anything, so this ends here.
  if (!present(slot) && At(slot).first_child == kNone) Free(slot);
}

void DiskIndex::Remove(Slot slot) {
  SetPins(slot, {});
  record_bytes_ -= At(slot).bytes * kRecordAlignment;
  At(slot).bytes = 0;
  At(slot).flags = 0;
  --present_;
  Unlink(slot);
  Prune(slot);
}

void DiskIndex::Clear() {
  chunks_.clear();
  table_.clear();
  free_ = kNone;
  slots_ = 0;
  used_ = present_ = 0;
  record_bytes_ = pinned_bytes_ = 0;
  pins_.clear();
  reservations_.clear();
  table_reservation_.Release();
  reservation_bytes_ = 0;
}

DiskPlace DiskIndex::PlaceOf(Slot slot) const {
  const Entry& entry = At(slot);
  return {static_cast<uint32_t>(entry.segment), entry.offset * kRecordAlignment,
          entry.bytes * kRecordAlignment};
}

void DiskIndex::SetExpiry(Slot slot, int64_t expires_ms) {
  constexpr int64_t kMax = (int64_t{1} << 48) - 1;  // nine thousand years: never
  At(slot).expires_ms = expires_ms > kMax ? 0 : static_cast<uint64_t>(expires_ms);
}

const PinSet* DiskIndex::Pins(Slot slot) const {
  if ((At(slot).flags & kPinned) == 0) return nullptr;
  return &pins_.at(slot);
}

void DiskIndex::SetPins(Slot slot, PinSet pins) {
  Entry& entry = At(slot);
  const bool was = (entry.flags & kPinned) != 0, is = pins.size() > 0;
  const uint64_t bytes = entry.bytes * kRecordAlignment;
  if (was && !is) {
    pins_.erase(slot);
    pinned_bytes_ -= bytes;
    entry.flags &= static_cast<uint8_t>(~kPinned);
    return;
  }
  if (!is) return;
  if (!was) pinned_bytes_ += bytes;
  entry.flags |= kPinned;
  pins_[slot] = std::move(pins);
}

size_t DiskIndex::CountPins(Slot slot, int64_t now_ms) {
  if ((At(slot).flags & kPinned) == 0) return 0;
  PinSet pins = pins_.at(slot);
  if (std::erase_if(pins.timed, [now_ms](int64_t at) { return at <= now_ms; }) > 0) {
    SetPins(slot, pins);
  }
  return pins.size();
}

void DiskIndex::DropLapsedPins(int64_t now_ms) {
  std::vector<Slot> slots;
  for (const auto& [slot, pins] : pins_) slots.push_back(slot);
  for (const Slot slot : slots) CountPins(slot, now_ms);
}

std::vector<DiskIndex::Slot> DiskIndex::Children(const Digest& parent) const {
  std::vector<Slot> out;
  const Slot above = Lookup(PrefixOf(parent));
  if (above == kNone) return out;
  for (Slot s = At(above).first_child; s != kNone; s = At(s).next_sibling) out.push_back(s);
  return out;
}

void DiskIndex::KeyPrefix(Slot slot, Digest* out) const {
  StoreLe(out->data(), At(slot).prefix[0]);
  StoreLe(out->data() + 8, At(slot).prefix[1]);
}

DiskIndex::Slot DiskIndex::Visit(Slot from, uint32_t count,
                                 const std::function<void(Slot)>& visit) const {
  const Slot end = static_cast<Slot>(std::min<uint64_t>(slots_, uint64_t{from} + count));
  for (Slot slot = from; slot < end; ++slot) {
    if (present(slot)) visit(slot);
  }
  return end < slots_ ? end : 0;
}

}  // namespace latticekv
