// Which kernels run: asked for, named by LATTICEKV_CPU_LEVEL, or the best that the processor has.
#if defined(LKV_X86_KERNELS)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/codec/cpu/kernels.h"

namespace latticekv {
namespace {

#if defined(LKV_X86_KERNELS)
// clang 14's __builtin_cpu_supports does not know f16c. The registers are those of AVX, which the
// builtin's avx2 has asked the operating system about.
bool HasF16c() {
  unsigned a, b, c = 0, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// Null for what this processor, or this build, lacks.
const CpuKernels* Available(CodecBackend backend) {
  if (backend == CodecBackend::kScalar) return &kScalarKernels;
#if defined(LKV_X86_KERNELS)
  // The builtin also asks the operating system whether it saves the registers.
  __builtin_cpu_init();
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && HasF16c();
  static const bool has_avx512 =
      has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (backend == CodecBackend::kAvx2 && has_avx2) return &kAvx2Kernels;
  if (backend == CodecBackend::kAvx512 && has_avx512) return &kAvx512Kernels;
#endif
  return nullptr;
}

absl::StatusOr<const CpuKernels*> Named(CodecBackend backend, std::string_view who) {
  if (const CpuKernels* kernels = Available(backend)) return kernels;
  return absl::FailedPreconditionError(absl::StrCat(
      std::string(who), ": this processor or build lacks ", std::string(CodecBackendName(backend)),
      "; use auto or scalar, which give the same bytes"));
}

}  // namespace

std::string_view CodecBackendName(CodecBackend backend) {
  switch (backend) {
    case CodecBackend::kAuto:
      return "auto";
    case CodecBackend::kScalar:
      return "scalar";
    case CodecBackend::kAvx2:
      return "avx2";
    case CodecBackend::kAvx512:
      return "avx512";
  }
  return "unknown";
}

absl::StatusOr<CodecBackend> ParseCodecBackend(std::string_view name) {
  for (CodecBackend backend :
       {CodecBackend::kAuto, CodecBackend::kScalar, CodecBackend::kAvx2, CodecBackend::kAvx512}) {
    if (name == CodecBackendName(backend)) return backend;
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown codec backend '", std::string(name),
                                                 "'; use auto, scalar, avx2 or avx512"));
}

absl::StatusOr<CodecBackend> ResolveCodecBackend(CodecBackend backend) {
  LKV_ASSIGN_OR_RETURN(const CpuKernels* kernels, KernelsFor(backend));
  return kernels->backend;
}

absl::StatusOr<const CpuKernels*> KernelsFor(CodecBackend backend) {
  if (backend != CodecBackend::kAuto) return Named(backend, "codec backend");
  const char* level = std::getenv("LATTICEKV_CPU_LEVEL");
  if (level != nullptr && *level != '\0') {
    const auto named = ParseCodecBackend(level);
    if (!named.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("LATTICEKV_CPU_LEVEL is '", level,
                                                     "'; set it to auto, scalar, avx2 or avx512"));
    }
    if (*named != CodecBackend::kAuto) return Named(*named, "LATTICEKV_CPU_LEVEL");
  }
  for (CodecBackend best : {CodecBackend::kAvx512, CodecBackend::kAvx2}) {
    if (const CpuKernels* kernels = Available(best)) return kernels;
  }
  return &kScalarKernels;
}

}  // namespace latticekv
