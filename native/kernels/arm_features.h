// Whether this CPU has an optional part of AArch64, as the system tells it. Elsewhere: no.
#pragma once
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace sparsedet {
namespace {

enum class ArmFeature { dot_product, int8_products, bfloat16 };

// Source: Linux, arch/arm64/include/uapi/asm/hwcap.h; Apple, "Determining instruction set
// characteristics".
[[maybe_unused]] bool has_feature(ArmFeature feature) {
#if defined(__linux__)
  constexpr unsigned long asimddp = 1ul << 20;                 // of AT_HWCAP
  constexpr unsigned long i8mm = 1ul << 13, bf16 = 1ul << 14;  // of AT_HWCAP2
  if (feature == ArmFeature::dot_product) return getauxval(AT_HWCAP) & asimddp;
  return getauxval(AT_HWCAP2) & (feature == ArmFeature::bfloat16 ? bf16 : i8mm);
#elif defined(__APPLE__)
  const char* const name = feature == ArmFeature::dot_product ? "hw.optional.arm.FEAT_DotProd"
                           : feature == ArmFeature::bfloat16  ? "hw.optional.arm.FEAT_BF16"
                                                              : "hw.optional.arm.FEAT_I8MM";
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
#else
  return feature != feature;
#endif
}

}  // namespace
}  // namespace sparsedet
