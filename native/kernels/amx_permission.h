// Whether this process may use AMX, the matrix unit of x86-64.
#pragma once

namespace sparsedet {

struct AmxPermission {
  bool bf16 = false, int8 = false;
};

// What the CPU has and the system allows. Linux is asked once; a refusal, by it or by a container,
// means that there is no AMX.
const AmxPermission& amx_permission();

}  // namespace sparsedet
