// CRC32C (Castagnoli polynomial 0x1EDC6F41, reflected), the checksum of frames, segments and parts.
#ifndef LATTICEKV_CORE_BASE_CRC32C_H_
#define LATTICEKV_CORE_BASE_CRC32C_H_

#include <cstdint>

#include "core/base/bytes.h"

namespace latticekv {

// CRC32C of `bytes`, continuing from `crc` (0 to start): Crc32c(b, Crc32c(a)) == Crc32c(a + b).
// Uses the SSE4.2 instruction where the CPU has it. Thread-safe.
uint32_t Crc32c(ByteSpan bytes, uint32_t crc = 0);

// The table version, for tests of the other.
uint32_t Crc32cPortable(ByteSpan bytes, uint32_t crc = 0);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_BASE_CRC32C_H_
