#include "client/examples/llama_cpp/sequence_state.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr uint32_t kMagic = 0xaf143cd8;
constexpr uint32_t kOneStream = 1;

// ggml's numbers of the element types this code knows.
int32_t GgmlType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kBF16:
      return 30;
  }
  return -1;
}

absl::Status CheckVersion(uint32_t version) {
  if (version == kKnownStateVersion) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(
      "this llama.cpp writes sequence states of version ", version, ", this program knows version ",
      kKnownStateVersion, "; build it against a release that writes that version"));
}

absl::Status CheckLayout(const Layout& layout) {
  for (const LayerSpec& layer : layout.layers) {
    if (layer.planes.size() != 2 || layer.planes[0].role != PlaneRole::kKey ||
        layer.planes[1].role != PlaneRole::kValue) {
      return absl::InvalidArgumentError(
          "a llama.cpp state needs a layout of one key and one value plane a layer");
    }
  }
  return absl::OkStatus();
}

absl::Status Truncated() { return absl::DataLossError("the llama.cpp state is cut short"); }

// Reads a state from its front. Expectations that fail become the first error.
class StateReader {
 public:
  explicit StateReader(ByteSpan bytes) : bytes_(bytes), reader_(bytes) {}

  // Reads a number that must be `expected`.
  template <typename T>
  void Expect(T expected, absl::StatusCode code, std::string_view what) {
    const T value = reader_.Get<T>();
    if (!status_.ok()) return;
    if (!reader_.ok()) {
      status_ = Truncated();
    } else if (value != expected) {
      status_ = absl::Status(code, absl::StrCat("the llama.cpp state has ", std::string(what), " ",
                                                value, ", not ", expected));
    }
  }
  template <typename T>
  T Get() {
    const T value = reader_.Get<T>();
    if (status_.ok() && !reader_.ok()) status_ = Truncated();
    return value;
  }
  // Skips `size` bytes; their offset.
  size_t Skip(size_t size) {
    const size_t at = bytes_.size() - reader_.remaining();
    reader_.GetBytes(size);
    if (status_.ok() && !reader_.ok()) status_ = Truncated();
    return at;
  }
  size_t remaining() const { return reader_.remaining(); }
  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }

 private:
  ByteSpan bytes_;
  ByteReader reader_;
  absl::Status status_;
};

constexpr auto kUnknown = absl::StatusCode::kUnimplemented;
constexpr auto kMisfit = absl::StatusCode::kInvalidArgument;

}  // namespace

SequenceState::SequenceState(const Layout& layout, uint32_t tokens, bool values_transposed)
    : layout_(layout), tokens_(tokens), values_transposed_(values_transposed) {
  for (size_t l = 0; values_transposed && l < layout_.layers.size(); ++l) {
    values_.emplace_back(value_bytes(l) * tokens);
  }
}

absl::StatusOr<SequenceState> SequenceState::Parse(ByteVector bytes, uint32_t version,
                                                   const Layout& layout) {
  LKV_RETURN_IF_ERROR(CheckVersion(version));
  LKV_RETURN_IF_ERROR(CheckLayout(layout));
  StateReader in(bytes);
  in.Expect<uint32_t>(kMagic, kUnknown, "magic");
  in.Get<int32_t>();
  in.Expect<uint32_t>(kOneStream, kUnknown, "streams");
  const auto cells = in.Get<uint32_t>();
  for (uint32_t i = 0; i < cells && in.ok(); ++i) {
    in.Expect<int32_t>(static_cast<int32_t>(i), kUnknown, "at the next cell position");
    in.Expect<uint32_t>(1, kUnknown, "sequences in a cell");
    in.Get<int32_t>();
  }
  if (in.ok() && cells == 0) return absl::InvalidArgumentError("the llama.cpp state is empty");
  const auto transposed = in.Get<uint32_t>();
  if (in.ok() && transposed > 1) {
    return absl::UnimplementedError(
        absl::StrCat("the llama.cpp state has transposition ", transposed));
  }
  in.Expect<uint32_t>(static_cast<uint32_t>(layout.layers.size()), kMisfit, "layers");
  LKV_RETURN_IF_ERROR(in.status());

  // Memory for the values is taken only when the bytes are known to hold so many.
  if (layout.token_bytes() > in.remaining() / cells) return Truncated();
  SequenceState state(layout, cells, transposed == 1);
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    in.Expect<int32_t>(GgmlType(layout.layers[l].planes[0].dtype), kMisfit, "key type");
    in.Expect<uint64_t>(state.key_bytes(l), kMisfit, "bytes of keys in a cell");
    state.key_at_.push_back(in.Skip(state.key_bytes(l) * cells));
  }
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    const PlaneSpec& plane = layout.layers[l].planes[1];
    in.Expect<int32_t>(GgmlType(plane.dtype), kMisfit, "value type");
    if (transposed == 1) {
      in.Expect<uint32_t>(static_cast<uint32_t>(DTypeBytes(plane.dtype)), kMisfit,
                          "bytes of a value");
      in.Expect<uint32_t>(plane.heads * plane.head_dim, kMisfit, "values in a cell");
    } else {
      in.Expect<uint64_t>(state.value_bytes(l), kMisfit, "bytes of values in a cell");
    }
    state.value_at_.push_back(in.Skip(state.value_bytes(l) * cells));
  }
  LKV_RETURN_IF_ERROR(in.status());
  if (in.remaining() != 0) {
    return absl::UnimplementedError(absl::StrCat("the llama.cpp state has ", in.remaining(),
                                                 " bytes more than keys and values"));
  }
  state.bytes_ = std::move(bytes);
  if (state.values_transposed_) state.Transpose(true);
  return state;
}

absl::StatusOr<SequenceState> SequenceState::Make(uint32_t version, const Layout& layout,
                                                  uint32_t tokens, bool values_transposed) {
  LKV_RETURN_IF_ERROR(CheckVersion(version));
  LKV_RETURN_IF_ERROR(CheckLayout(layout));
  if (tokens == 0) return absl::InvalidArgumentError("a llama.cpp state needs a token");
  SequenceState state(layout, tokens, values_transposed);
  ByteWriter out;
  out.Put<uint32_t>(kMagic);
  out.Put<int32_t>(0);
  out.Put<uint32_t>(kOneStream);
  out.Put<uint32_t>(tokens);
  for (uint32_t i = 0; i < tokens; ++i) {
    out.Put<int32_t>(static_cast<int32_t>(i));
    out.Put<uint32_t>(1);
    out.Put<int32_t>(0);
  }
  out.Put<uint32_t>(values_transposed ? 1 : 0);
  out.Put<uint32_t>(static_cast<uint32_t>(layout.layers.size()));
  ByteVector bytes = out.Take();
  bytes.reserve(bytes.size() + layout.layers.size() * 32 + layout.token_bytes() * tokens);
  const auto put = [&](auto value) {
    bytes.resize(bytes.size() + sizeof(value));
    StoreLe(bytes.data() + bytes.size() - sizeof(value), value);
  };
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    put(GgmlType(layout.layers[l].planes[0].dtype));
    put(uint64_t{state.key_bytes(l)});
    state.key_at_.push_back(bytes.size());
    bytes.resize(bytes.size() + state.key_bytes(l) * tokens);
  }
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    const PlaneSpec& plane = layout.layers[l].planes[1];
    put(GgmlType(plane.dtype));
    if (values_transposed) {
      put(static_cast<uint32_t>(DTypeBytes(plane.dtype)));
      put(uint32_t{plane.heads * plane.head_dim});
    } else {
      put(uint64_t{state.value_bytes(l)});
    }
    state.value_at_.push_back(bytes.size());
    bytes.resize(bytes.size() + state.value_bytes(l) * tokens);
  }
  state.bytes_ = std::move(bytes);
  return state;
}

std::vector<std::vector<PlaneView>> SequenceState::Views() const {
  std::vector<std::vector<PlaneView>> out;
  for (size_t l = 0; l < layout_.layers.size(); ++l) {
    const std::vector<PlaneSpec>& planes = layout_.layers[l].planes;
    const std::byte* values = values_transposed_ ? values_[l].data() : bytes_.data() + value_at_[l];
    out.push_back({ContiguousPlane(planes[0], bytes_.data() + key_at_[l]),
                   ContiguousPlane(planes[1], values)});
  }
  return out;
}

MutablePlaneView SequenceState::Destination(uint32_t layer, uint32_t plane) {
  const PlaneSpec& spec = layout_.layers[layer].planes[plane];
  if (plane == 0) return ContiguousPlane(spec, bytes_.data() + key_at_[layer]);
  return ContiguousPlane(
      spec, values_transposed_ ? values_[layer].data() : bytes_.data() + value_at_[layer]);
}

ByteVector SequenceState::Take() {
  if (values_transposed_) Transpose(false);
  return std::exchange(bytes_, {});
}

void SequenceState::Transpose(bool to_planes) {
  for (size_t l = 0; l < layout_.layers.size(); ++l) {
    const size_t size = DTypeBytes(layout_.layers[l].planes[1].dtype);
    const size_t channels = value_bytes(l) / size;
    std::byte* transposed = bytes_.data() + value_at_[l];
    std::byte* plane = values_[l].data();
    for (size_t c = 0; c < channels; ++c) {
      for (size_t t = 0; t < tokens_; ++t) {
        std::byte* there = transposed + (c * tokens_ + t) * size;
        std::byte* here = plane + (t * channels + c) * size;
        std::memcpy(to_planes ? here : there, to_planes ? there : here, size);
      }
    }
  }
}

}  // namespace latticekv
