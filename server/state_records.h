// What the daemon writes into its journal, record by record (docs/format/journal.md).
#ifndef LATTICEKV_SERVER_STATE_RECORDS_H_
#define LATTICEKV_SERVER_STATE_RECORDS_H_

#include <string_view>

#include "absl/status/status.h"
#include "core/base/bytes.h"
#include "core/layout/layout.h"
#include "core/layout/model_profile.h"
#include "server/session_registry.h"

namespace latticekv {

class LayoutRegistry;

ByteVector LayoutRecord(const Layout& layout);
// The layout's current profile from this record on: registered, or learnt.
ByteVector ProfileRecord(const Digest& fingerprint, const ModelProfile& profile);
ByteVector LearntProfileRecord(const Digest& fingerprint, uint32_t version,
                               const ModelProfile& profile);
ByteVector ProfileGoneRecord(const Digest& fingerprint, const Digest& profile_hash);
ByteVector NamespaceRecord(std::string_view name_space, uint32_t chunk_tokens);
ByteVector LayoutUseRecord(std::string_view name_space, const Digest& fingerprint);

// All but its blocks.
ByteVector SessionRecord(const Session& session);
ByteVector SessionBlockRecord(const SessionId& id, const SessionBlock& block);
ByteVector SessionBlockGoneRecord(const SessionId& id, uint64_t start_position);
ByteVector SessionEndRecord(const SessionId& id);

// Applies a record to the state. DATA_LOSS for one that does not parse or refers to what is not
// there (its own record was damaged, say).
absl::Status ApplyRecord(ByteSpan record, LayoutRegistry& layouts, SessionRegistry& sessions);

}  // namespace latticekv

#endif  // LATTICEKV_SERVER_STATE_RECORDS_H_
