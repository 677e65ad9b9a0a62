// Bytes of packed elements in vectors of 256 or 512 bits; see int8_results.h.
#pragma once
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 in its own header
#endif
#include <immintrin.h>

#include "kernels/vector.h"

#if SPARSEDET_LANES == 16
#define SPARSEDET_MM(name) _mm512_##name
#else
#define SPARSEDET_MM(name) _mm256_##name
#endif

namespace sparsedet {
namespace {

#if SPARSEDET_LANES == 16
typedef __m512i Words;
SPARSEDET_INLINE Words repeat_128(__m128i v) {
  return _mm512_broadcast_i32x4(v);
}
SPARSEDET_INLINE V permuted(V v, I order) {
  return _mm512_permutexvar_ps((Words)order, v);
}
SPARSEDET_INLINE __m128i load_line(const float* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
#else
typedef __m256i Words;
SPARSEDET_INLINE Words repeat_128(__m128i v) {
  return _mm256_broadcastsi128_si256(v);
}
SPARSEDET_INLINE V permuted(V v, I order) {
  return _mm256_permutevar8x32_ps(v, (Words)order);
}
SPARSEDET_INLINE __m128i load_line(const float* p) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
}
#endif

struct X86Bytes {
  // Rounds to int32 and limits to 255; packing then saturates at zero.
  static SPARSEDET_INLINE Words whole(V v) {
    return SPARSEDET_MM(cvtps_epi32)(SPARSEDET_MM(min_ps)(v, broadcast(255.0f)));
  }

  // Each 128 bits of the result: four values of v[0], of v[1], of v[2] and of v[3], as bytes.
  static SPARSEDET_INLINE Words pack(const V (&v)[4]) {
    return SPARSEDET_MM(packus_epi16)(SPARSEDET_MM(packs_epi32)(whole(v[0]), whole(v[1])),
                                      SPARSEDET_MM(packs_epi32)(whole(v[2]), whole(v[3])));
  }

  static SPARSEDET_INLINE V join(const V (&channels)[4]) {
    const Words order =
        repeat_128(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return (V)SPARSEDET_MM(shuffle_epi8)(pack(channels), order);
  }

  static SPARSEDET_INLINE V join_line(const V (&v)[4]) {
    I order;  // pack() puts element L / 4 * j + l into 32-bit lane j of 128-bit lane l
    for (int w = 0; w < L; w++)
      order[w] = w % (L / 4) * 4 + w / (L / 4);
    return permuted((V)pack(v), order);
  }

  // L bytes.
  static SPARSEDET_INLINE V load_bytes(const float* p) {
    return SPARSEDET_MM(cvtepi32_ps)(SPARSEDET_MM(cvtepu8_epi32)(load_line(p)));
  }
};
using Bytes = X86Bytes;

}  // namespace
}  // namespace sparsedet
