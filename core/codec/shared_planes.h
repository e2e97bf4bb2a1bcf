// Encoding from memory that others write to.
#ifndef LATTICEKV_CORE_CODEC_SHARED_PLANES_H_
#define LATTICEKV_CORE_CODEC_SHARED_PLANES_H_

#include "core/codec/codec.h"

namespace latticekv {

// As EncodeFrame, for a chunk laid out as RawChunkViews has it whose bytes may change meanwhile:
// each pass reads a byte once. The encoder looks at its input several times and relies on what it
// saw, so it gets a copy of a layer at a time, in memory of the thread's own that stays in the
// cache. What becomes of bytes that do change is unspecified, but the frame is sound.
absl::StatusOr<ByteVector> EncodeSharedFrame(const Layout& layout, uint32_t tokens, ByteSpan raw,
                                             const EncodeOptions& options);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_CODEC_SHARED_PLANES_H_
