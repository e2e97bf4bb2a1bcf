// What the fuzz targets' inputs begin with, and the layouts and profiles that frames of the decoder
// target belong to. An input names one of them.
#ifndef LATTICEKV_TESTS_FUZZ_SUBJECTS_H_
#define LATTICEKV_TESTS_FUZZ_SUBJECTS_H_

#include <vector>

#include "core/layout/model_profile.h"
#include "tests/support/sample_chunk.h"

namespace latticekv::testing {

// The first byte of an input of decoder_fuzz: bits 0-1 what follows, bit 2 make checksums right
// first (frames), bits 4-5 the subject.
enum class FuzzInput : uint8_t { kFrame = 0, kLayout = 1, kProfile = 2 };
inline constexpr uint8_t kFuzzReseal = 1 << 2;
inline constexpr int kFuzzSubjectShift = 4;
// The first byte of an input of file_fuzz: this for safetensors, else kFuzzReseal or not.
inline constexpr uint8_t kFuzzSafetensors = 1;

struct FuzzSubject {
  Layout layout;
  ModelProfile profile;
};

inline const std::vector<FuzzSubject>& FuzzSubjects() {
  static const std::vector<FuzzSubject>* subjects = [] {
    auto* out = new std::vector<FuzzSubject>;
    const auto add = [&](Layout layout) {
      ModelProfile profile = MakeSampleProfile(layout, 3, true);
      out->push_back({std::move(layout), std::move(profile)});
    };
    add(MakeUniformLayout("a", 1, 1, 16, DType::kF16, {RopeStyle::kNeox, 16, 10000.0}));
    // State beside keys, interleaved and partly rotated, dtypes of every width.
    LayerSpec layer;
    layer.planes.push_back(
        {"k", PlaneRole::kKey, 2, 16, DType::kF32, {RopeStyle::kInterleaved, 16, 10000.0}});
    layer.planes.push_back({"state", PlaneRole::kOpaque, 1, 5, DType::kF32, RopeSpec{}});
    layer.planes.push_back({"v", PlaneRole::kValue, 2, 8, DType::kBF16, RopeSpec{}});
    add({"b", "", {layer, layer}});
    RopeScaling scaling{RopeScalingKind::kLlama3, 8, 8192};
    scaling.low_freq_factor = 1;
    scaling.high_freq_factor = 4;
    add(MakeUniformLayout("c", 2, 2, 24, DType::kBF16, {RopeStyle::kNeox, 24, 5e5, scaling}));
    add(MakeUniformLayout("d", 1, 1, 64, DType::kF16, RopeSpec{}));
    return out;
  }();
  return *subjects;
}

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_FUZZ_SUBJECTS_H_
