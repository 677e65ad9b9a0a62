// Runs AMX machine code on x86-64 Linux where the CPU or the system has no AMX: each instruction then
// raises SIGILL, whose handler carries it out, in some microseconds. For tests only.
//
// A program that links amx_emulator.cpp in the place of native/kernels/amx_permission.cpp has AMX.
#pragma once
#include <cstdint>

namespace amx_emulator {

// Instructions that were carried out so far, by all threads.
uint64_t executed();

}  // namespace amx_emulator
