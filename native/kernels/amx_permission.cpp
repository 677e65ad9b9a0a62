#include "kernels/amx_permission.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sparsedet {

namespace {

AmxPermission ask() {
  AmxPermission permission;
#if defined(__x86_64__) && defined(__linux__)
  // Source: Intel's manual, CPUID leaf 7, register EDX.
  constexpr unsigned bf16 = 1u << 22, tiles = 1u << 24, int8 = 1u << 25;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & tiles)) return permission;
  // Threads have no memory for tiles until their process asks for it (Linux 5.16). Source: the
  // kernel's Documentation/arch/x86/xstate.rst.
  constexpr long request_permission = 0x1023, tile_data = 18;
  if (syscall(SYS_arch_prctl, request_permission, tile_data) != 0) return permission;
  permission = {(edx & bf16) != 0, (edx & int8) != 0};
#endif
  return permission;
}

}  // namespace

const AmxPermission& amx_permission() {
  static const AmxPermission permission = ask();
  return permission;
}

}  // namespace sparsedet
