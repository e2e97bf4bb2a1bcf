// CRC32C (Castagnoli polynomial 0x1EDC6F41, reflected), the checksum of frames, segments and parts.
#ifndef LATTICEKV_CORE_BASE_CRC32C_H_
#define LATTICEKV_CORE_BASE_CRC32C_H_

#include <cstdint>
#include <vector>

#include "core/base/bytes.h"

namespace latticekv {

// CRC32C of `bytes`, continuing from `crc` (0 to start): Crc32c(b, Crc32c(a)) == Crc32c(a + b).
// Uses carry-less products of AVX-512 or the SSE4.2 instruction where the CPU has them.
// Thread-safe.
uint32_t Crc32c(ByteSpan bytes, uint32_t crc = 0);

// For tests: the table version, and all versions that run on this CPU, the fastest first.
uint32_t Crc32cPortable(ByteSpan bytes, uint32_t crc = 0);
using Crc32cFunction = uint32_t (*)(ByteSpan bytes, uint32_t crc);
std::vector<Crc32cFunction> Crc32cVersions();

}  // namespace latticekv

#endif  // LATTICEKV_CORE_BASE_CRC32C_H_
