// llama.cpp's sequence state, parsed and made again, against states written here by its
// description.
#include <gtest/gtest.h>

#include "client/examples/llama_cpp/sequence_state.h"

namespace latticekv {
namespace {

constexpr uint32_t kCells = 5, kLayers = 3, kHeads = 2, kKeyDim = 16, kValueDim = 8;
constexpr size_t kElement = 2;

Layout TestLayout() {
  Layout layout = MakeUniformLayout("test", kLayers, kHeads, kKeyDim, DType::kF16,
                                    RopeSpec{RopeStyle::kInterleaved, kKeyDim, 10000});
  for (LayerSpec& layer : layout.layers) layer.planes[1].head_dim = kValueDim;
  return layout;
}

// A number for every element, so that one out of place is seen.
uint16_t Element(uint32_t plane, uint32_t layer, uint32_t cell, uint32_t channel) {
  return static_cast<uint16_t>(((plane * kLayers + layer) * kCells + cell) * 64 + channel);
}

struct StateFields {
  uint32_t magic = 0xaf143cd8, streams = 1, transposed = 0, layers = kLayers;
  int32_t first_position = 0, key_type = 1, value_type = 1;
  uint32_t sequences = 1, cells = kCells;
  uint64_t key_bytes = kHeads * kKeyDim * kElement;
};

ByteVector WriteState(const StateFields& fields) {
  ByteWriter out;
  out.Put(fields.magic);
  out.Put<int32_t>(0);
  out.Put(fields.streams);
  out.Put(fields.cells);
  for (uint32_t i = 0; i < kCells; ++i) {
    out.Put<int32_t>(fields.first_position + static_cast<int32_t>(i));
    out.Put(fields.sequences);
    out.Put<int32_t>(0);
  }
  out.Put(fields.transposed);
  out.Put(fields.layers);
  for (uint32_t l = 0; l < kLayers; ++l) {
    out.Put(fields.key_type);
    out.Put(fields.key_bytes);
    for (uint32_t t = 0; t < kCells; ++t) {
      for (uint32_t c = 0; c < kHeads * kKeyDim; ++c) out.Put(Element(0, l, t, c));
    }
  }
  for (uint32_t l = 0; l < kLayers; ++l) {
    out.Put(fields.value_type);
    const uint32_t channels = kHeads * kValueDim;
    if (fields.transposed == 0) {
      out.Put<uint64_t>(channels * kElement);
      for (uint32_t t = 0; t < kCells; ++t) {
        for (uint32_t c = 0; c < channels; ++c) out.Put(Element(1, l, t, c));
      }
    } else {
      out.Put<uint32_t>(kElement);
      out.Put(channels);
      for (uint32_t c = 0; c < channels; ++c) {
        for (uint32_t t = 0; t < kCells; ++t) out.Put(Element(1, l, t, c));
      }
    }
  }
  return out.Take();
}

absl::StatusOr<SequenceState> ParseFields(const StateFields& fields) {
  return SequenceState::Parse(WriteState(fields), kKnownStateVersion, TestLayout());
}

TEST(LlamaStateTest, EveryElementIsWhereItsPositionHeadAndChannelSay) {
  for (uint32_t transposed : {0u, 1u}) {
    const auto state = ParseFields({.transposed = transposed});
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_EQ(state->tokens(), kCells);
    EXPECT_EQ(state->values_transposed(), transposed == 1);
    const auto views = state->Views();
    for (uint32_t l = 0; l < kLayers; ++l) {
      for (uint32_t p = 0; p < 2; ++p) {
        const uint32_t dim = p == 0 ? kKeyDim : kValueDim;
        for (uint32_t t = 0; t < kCells; ++t) {
          for (uint32_t c = 0; c < kHeads * dim; ++c) {
            const PlaneView& view = views[l][p];
            EXPECT_EQ(LoadLe<uint16_t>(view.data + t * view.token_stride +
                                       c / dim * view.head_stride + c % dim * kElement),
                      Element(p, l, t, c));
          }
        }
      }
    }
  }
}

TEST(LlamaStateTest, AStateThatIsFilledPlaneByPlaneHasTheSameBytes) {
  for (uint32_t transposed : {0u, 1u}) {
    const ByteVector bytes = WriteState({.transposed = transposed});
    const auto source = ParseFields({.transposed = transposed});
    ASSERT_TRUE(source.ok());
    auto made = SequenceState::Make(kKnownStateVersion, TestLayout(), kCells, transposed == 1);
    ASSERT_TRUE(made.ok());
    const Layout layout = TestLayout();
    for (uint32_t l = 0; l < kLayers; ++l) {
      for (uint32_t p = 0; p < 2; ++p) {
        std::memcpy(made->Destination(l, p).data, source->Views()[l][p].data,
                    layout.layers[l].planes[p].token_bytes() * kCells);
      }
    }
    EXPECT_EQ(made->Take(), bytes);
  }
}

TEST(LlamaStateTest, WhatItDoesNotKnowIsRefusedWithASentence) {
  const auto code = [](const StateFields& fields) { return ParseFields(fields).status().code(); };
  constexpr auto kUnknown = absl::StatusCode::kUnimplemented;
  constexpr auto kMisfit = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code({.magic = 1}), kUnknown);
  EXPECT_EQ(code({.streams = 2}), kUnknown);
  EXPECT_EQ(code({.transposed = 2}), kUnknown);
  EXPECT_EQ(code({.first_position = 1}), kUnknown);
  EXPECT_EQ(code({.sequences = 2}), kUnknown);
  EXPECT_EQ(code({.layers = 4}), kMisfit);
  EXPECT_EQ(code({.key_type = 8}), kMisfit);  // quantised
  EXPECT_EQ(code({.value_type = 0}), kMisfit);
  EXPECT_EQ(code({.key_bytes = 3}), kMisfit);

  const auto newer = SequenceState::Parse(WriteState({}), kKnownStateVersion + 1, TestLayout());
  EXPECT_EQ(newer.status().code(), kUnknown);
  EXPECT_NE(newer.status().message().find("version 4"), std::string::npos) << newer.status();
  EXPECT_EQ(SequenceState::Make(2, TestLayout(), 1, false).status().code(), kUnknown);
  Layout latent = TestLayout();
  latent.layers[1].planes.pop_back();
  EXPECT_EQ(SequenceState::Parse(WriteState({}), kKnownStateVersion, latent).status().code(),
            kMisfit);
}

TEST(LlamaStateTest, EveryTruncationAndBytesTooManyAreRefused) {
  for (uint32_t transposed : {0u, 1u}) {
    const ByteVector whole = WriteState({.transposed = transposed});
    for (size_t size = 0; size < whole.size(); ++size) {
      const ByteVector cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
      EXPECT_FALSE(SequenceState::Parse(cut, kKnownStateVersion, TestLayout()).ok()) << size;
    }
    ByteVector longer = whole;
    longer.push_back(std::byte{0});
    EXPECT_FALSE(SequenceState::Parse(longer, kKnownStateVersion, TestLayout()).ok());
  }
  EXPECT_FALSE(ParseFields({.cells = 0xFFFFFFFF}).ok());
}

}  // namespace
}  // namespace latticekv
