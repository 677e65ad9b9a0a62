// The list of the instruction sets: one line for each table of kernels, the best set first.
// dispatch.cpp, CMakeLists.txt and the tests read it, and nothing else names them all.
//
//   architecture  where the file is compiled: x86_64, aarch64, or any
//   set           name of the instruction set, as SPARSEDET_ISA has it
//   table         member of Kernels (kernels.h) that the table becomes
//   file          native/kernels/<file>.cpp, which defines kernels_<set>_<table>
//   features      the file's compiler flags without their -m
//
// A set without a table f32 extends the next set of the list that has one, and takes the tables that
// it lacks from there.
#pragma once

#define SPARSEDET_KERNELS(X)                                                                       \
  X(x86_64, amx, bf16_matrix, amx_bf16,                                                            \
    "avx512f avx512vl avx512bw avx512dq avx512bf16 fma prefer-vector-width=512 amx-tile amx-bf16") \
  X(x86_64, amx, int8_matrix, amx_int8,                                                            \
    "avx512f avx512vl avx512bw avx512dq fma prefer-vector-width=512 amx-tile amx-int8")            \
  X(x86_64, avx512, f32, avx512, "avx512f avx512vl avx512bw avx512dq fma prefer-vector-width=512") \
  X(x86_64, avx512, bf16, avx512_bf16,                                                             \
    "avx512f avx512vl avx512bw avx512dq avx512bf16 fma prefer-vector-width=512")                   \
  X(x86_64, avx512, int8, avx512_vnni,                                                             \
    "avx512f avx512vl avx512bw avx512dq avx512vnni fma prefer-vector-width=512")                   \
  X(x86_64, avxvnni, int8, avxvnni, "avx2 fma avxvnni")                                            \
  X(x86_64, avx2, f32, avx2, "avx2 fma")                                                           \
  X(x86_64, avx2, int8, avx2_int8, "avx2 fma")                                                     \
  X(aarch64, neon_i8mm, bf16, neon_bf16, "arch=armv8.2-a+bf16")                                    \
  X(aarch64, neon_i8mm, int8, neon_i8mm, "arch=armv8.2-a+i8mm")                                    \
  X(aarch64, neon_dotprod, int8, neon_dotprod, "arch=armv8.2-a+dotprod")                           \
  X(aarch64, neon, f32, neon, "")                                                                  \
  X(any, scalar, f32, scalar, "")                                                                  \
  X(any, scalar, bf16, scalar, "")                                                                 \
  X(any, scalar, int8, scalar, "")

#if defined(__x86_64__)
#define SPARSEDET_IF_x86_64(...) __VA_ARGS__
#else
#define SPARSEDET_IF_x86_64(...)
#endif
#if defined(__aarch64__)
#define SPARSEDET_IF_aarch64(...) __VA_ARGS__
#else
#define SPARSEDET_IF_aarch64(...)
#endif
#define SPARSEDET_IF_any(...) __VA_ARGS__
