// Frames, layouts and profiles from anywhere: parsing and decoding end with a status, whatever the
// bytes. Half of the inputs get right checksums first, or hardly any would get past the door.
#include <cstdlib>

#include "core/codec/codec.h"
#include "core/layout/rope.h"
#include "tests/fuzz/subjects.h"
#include "tests/support/mutation.h"

namespace latticekv::testing {
namespace {

// Fails loudly in release builds too.
void Require(bool condition) {
  if (!condition) std::abort();
}

void DecodeBytes(const FuzzSubject& subject, ByteSpan frame) {
  const auto decoder = FrameDecoder::Open(frame, subject.layout, &subject.profile);
  if (!decoder.ok()) {
    Require(!decoder.status().message().empty());
    return;
  }
  ByteVector raw(subject.layout.token_bytes() * decoder->info().tokens);
  const absl::Status status = DecodeFrame(*decoder, subject.layout, raw);
  Require(status.ok() || !status.message().empty());
}

void ParseLayoutBytes(ByteSpan bytes) {
  const auto layout = ParseLayout(bytes);
  if (!layout.ok()) return;
  const ByteVector again = SerializeLayout(*layout);
  Require(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()));
  for (const PlaneSpec& plane : layout->layers.front().planes) {
    RopeTable(plane.rope, uint64_t{1} << 39, 2);
    Require(RopeAttentionFactor(plane.rope) > 0);
  }
}

void ParseProfileBytes(const FuzzSubject& subject, ByteSpan bytes) {
  const auto profile = ParseProfile(bytes, subject.layout);
  if (!profile.ok()) return;
  // A profile that is accepted must be one that can be encoded with.
  const SampleChunk chunk = MakeSampleChunk(subject.layout, 5, 1);
  EncodeOptions options;
  options.profile = &*profile;
  options.start_position = 64;
  const auto frame = EncodeFrame(subject.layout, 5, chunk.views(), options);
  Require(frame.ok());
  const auto decoder = FrameDecoder::Open(*frame, subject.layout, &*profile);
  ByteVector raw(chunk.raw.size());
  Require(decoder.ok() && DecodeFrame(*decoder, subject.layout, raw).ok());
}

}  // namespace
}  // namespace latticekv::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace latticekv;
  using namespace latticekv::testing;
  if (size < 1) return 0;
  const uint8_t head = data[0];
  const ByteSpan input = std::as_bytes(std::span(data + 1, size - 1));
  const FuzzSubject& subject = FuzzSubjects()[(head >> kFuzzSubjectShift) % FuzzSubjects().size()];
  switch (static_cast<FuzzInput>(head & 3)) {
    case FuzzInput::kLayout:
      ParseLayoutBytes(input);
      return 0;
    case FuzzInput::kProfile:
      ParseProfileBytes(subject, input);
      return 0;
    default:
      break;
  }
  // A copy of its own, so that a read past the end is seen.
  ByteVector frame(input.begin(), input.end());
  if (head & kFuzzReseal) Reseal(frame);
  DecodeBytes(subject, frame);
  return 0;
}
