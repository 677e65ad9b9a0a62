// Vectors of one instruction set, in GCC vector extensions. The source file of an instruction set
// defines SPARSEDET_LANES and includes this header once, directly or through another header.
// Everything is in an unnamed namespace and uses no library code: the linker can then never pick
// code with this file's flags for another file.
#pragma once
#include "kernels/kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__x86_64__)
#define SPARSEDET_REGISTER(v) "+v"(v)
#else
#define SPARSEDET_REGISTER(v) "+w"(v)
#endif
#define SPARSEDET_INLINE inline __attribute__((always_inline))

namespace sparsedet {
namespace {

constexpr int L = SPARSEDET_LANES;
typedef float V __attribute__((vector_size(L * 4)));
typedef float VU __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(L * 4)));

SPARSEDET_INLINE V broadcast(float x) {
  return x - (V){};
}
// Loads and broadcasts in one instruction. Next to intrinsics the compiler would load a scalar and
// broadcast it by a second instruction, which competes with the multiplications.
[[maybe_unused]] SPARSEDET_INLINE V broadcast_from(const float* p) {
#if defined(__x86_64__)
  V v;
  __asm__("vbroadcastss %1, %0" : "=v"(v) : "m"(*p));
  return v;
#elif defined(__aarch64__)
  return (V)vld1q_dup_f32(p);
#else
  return broadcast(*p);
#endif
}
// a * b + c, rounded once.
[[maybe_unused]] SPARSEDET_INLINE V fused(V a, V b, V c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  V v;
  for (int k = 0; k < L; k++)
    v[k] = __builtin_fmaf(a[k], b[k], c[k]);
  return v;
#endif
}
SPARSEDET_INLINE V load(const float* p) {
  return *reinterpret_cast<const VU*>(p);
}
SPARSEDET_INLINE void store(float* p, V v) {
  *reinterpret_cast<VU*>(p) = v;
}
SPARSEDET_INLINE V relu(V v) {
  return v > 0 ? v : (V){};
}

// exp(x), and the activations that need it, as scalar.cpp specifies them.
SPARSEDET_INLINE V exp_of(V x) {
  const V least = broadcast(-87.0f), most = broadcast(87.0f), shift = broadcast(0x1.8p23f);
  x = x > least ? x : least;
  x = x < most ? x : most;
  const V shifted = fused(x, broadcast(0x1.715476p0f), shift), n = shifted - shift;
  const V high = fused(n, broadcast(-0x1.63p-1f), x);
  const V r = fused(n, broadcast(0x1.bd0106p-13f), high);
  V p = broadcast(1.9875691500e-4f);
  p = fused(p, r, broadcast(1.3981999507e-3f));
  p = fused(p, r, broadcast(8.3334519073e-3f));
  p = fused(p, r, broadcast(4.1665795894e-2f));
  p = fused(p, r, broadcast(1.6666665459e-1f));
  p = fused(p, r, broadcast(5.0000001201e-1f));
  p = fused(p, r, broadcast(1.0f));
  p = fused(p, r, broadcast(1.0f));
  return (V)((I)p + ((I)shifted << 23));
}

SPARSEDET_INLINE V sigmoid_of(V x) {
  return 1.0f / (1.0f + exp_of(-x));
}

SPARSEDET_INLINE V gelu_of(V x) {
  const V a = (x > 0 ? x : -x) * 0.70710678f;
  const V t = 1.0f / fused(a, broadcast(0.3275911f), broadcast(1.0f));
  V p = broadcast(1.061405429f);
  p = fused(p, t, broadcast(-1.453152027f));
  p = fused(p, t, broadcast(1.421413741f));
  p = fused(p, t, broadcast(-0.284496736f));
  p = fused(p, t, broadcast(0.254829592f));
  const V rest = p * t * exp_of(a * -a) * 0.5f;
  return x * (x > 0 ? 1.0f - rest : rest);
}

// The activations that take many steps, apart from kernels: they would crowd their registers.
[[maybe_unused]] __attribute__((noinline)) void bend(V* v, int count, Activation activation) {
  for (int i = 0; i < count; i++) {
    if (activation == Activation::gelu) {
      v[i] = gelu_of(v[i]);
    } else {
      const V sigmoid = sigmoid_of(v[i]);
      v[i] = activation == Activation::silu ? v[i] * sigmoid : sigmoid;
    }
  }
}

// Applies an activation to N vectors; one branch decides for all of them.
template <int N>
SPARSEDET_INLINE void activate(V (&v)[N], Activation activation) {
  if (activation == Activation::none) return;
  if (activation == Activation::relu) {
#pragma GCC unroll 8
    for (int i = 0; i < N; i++)
      v[i] = relu(v[i]);
    return;
  }
  if (activation > Activation::relu6) {
    V bent[N];  // a copy: an array that has an address does not stay in registers
#pragma GCC unroll 8
    for (int i = 0; i < N; i++)
      bent[i] = v[i];
    bend(bent, N, activation);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++)
      v[i] = bent[i];
    return;
  }
  if (activation == Activation::relu6) {
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      const V six = broadcast(6.0f);
      v[i] = relu(v[i] < six ? v[i] : six);
    }
    return;
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) {
    const V six = broadcast(6.0f), above = relu(v[i] + 3.0f);
    const V sigmoid = (above < six ? above : six) * (1.0f / 6);
    v[i] = activation == Activation::hardswish ? v[i] * sigmoid : sigmoid;
  }
}

SPARSEDET_INLINE I iota() {
  I i;
  for (int k = 0; k < L; k++)
    i[k] = k;
  return i;
}

// Sets the lanes from `valid` on to zero.
SPARSEDET_INLINE V keep(V v, int valid) {
  const I limit = valid - (I){};
  return iota() < limit ? v : (V){};
}

// Stores the lanes [first, end) alone.
SPARSEDET_INLINE void store_lanes(float* p, V v, int first, int end) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << end) - (1u << first)), v);
#elif defined(__AVX2__)
  const I lane = iota(), low = first - (I){}, high = end - (I){};
  _mm256_maskstore_ps(p, (__m256i)((lane >= low) & (lane < high)), v);
#else
  for (int i = first; i < end; i++)
    p[i] = v[i];
#endif
}

// A vector whose lanes are in runs. Lanes without a run have any value.
SPARSEDET_INLINE V load_runs(const float* base, const LaneRuns& runs) {
  V v = load(base + runs.offset[0]);
#pragma GCC unroll 1
  for (int k = 1; k < runs.count; k++) {
    const I limit = runs.end[k - 1] - (I){};
    v = iota() < limit ? v : load(base + runs.offset[k]);
  }
  return v;
}

SPARSEDET_INLINE void store_runs(float* base, const LaneRuns& runs, V v) {
  if (runs.end[0] == L) return store(base + runs.offset[0], v);
  int first = 0;
#pragma GCC unroll 1
  for (int k = 0; k < runs.count; first = runs.end[k++])
    store_lanes(base + runs.offset[k], v, first, runs.end[k]);
}

SPARSEDET_INLINE ptrdiff_t first_pixel(const SparseArgs& a, int p) {
  return a.runs ? a.runs[p].offset[0] : a.offset[p];
}

// The residual of vector p in a row of the output; and where its result is stored.
SPARSEDET_INLINE V load_pixels(const SparseArgs& a, const float* row, int p) {
  return a.runs ? load_runs(row, a.runs[p]) : load(row + a.offset[p]);
}
SPARSEDET_INLINE void store_pixels(const SparseArgs& a, float* row, int p, V v) {
  if (a.runs) return store_runs(row, a.runs[p], v);
  store(row + a.offset[p], a.valid[p] < L ? keep(v, a.valid[p]) : v);
}
// Lane k of the result is lane Order::lane(k) of a, or of b, whose lanes count from L on.
#if defined(__clang__)
template <class T, T... K>
struct Lanes {
  template <class Order>
  static SPARSEDET_INLINE V shuffle(V a, V b) {
    return __builtin_shufflevector(a, b, Order::lane(K)...);
  }
};
template <class Order>
SPARSEDET_INLINE V shuffle(V a, V b) {
  return __make_integer_seq<Lanes, int, L>::template shuffle<Order>(a, b);
}
#else
template <class Order>
SPARSEDET_INLINE V shuffle(V a, V b) {
  I lanes;
  for (int k = 0; k < L; k++)
    lanes[k] = Order::lane(k);
  return __builtin_shuffle(a, b, lanes);
}
#endif

struct EverySecond {
  static constexpr int lane(int k) { return 2 * k; }
};

SPARSEDET_INLINE V every_second(const float* p) {
  return shuffle<EverySecond>(load(p), load(p + L));
}

SPARSEDET_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}

template <int STEP>
struct LowHalves {
  static constexpr int lane(int k) { return k & STEP ? (k ^ STEP) + L : k; }
};
template <int STEP>
struct HighHalves {
  static constexpr int lane(int k) { return k & STEP ? k + L : k ^ STEP; }
};

// Transposes L vectors as an L x L matrix: log2(L) rounds of pairwise exchanges.
template <int STEP>
SPARSEDET_INLINE void exchange(V (&t)[L]) {
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) {
    if (i & STEP) continue;
    const V a = t[i], b = t[i | STEP];
    t[i] = shuffle<LowHalves<STEP>>(a, b);
    t[i | STEP] = shuffle<HighHalves<STEP>>(a, b);
  }
  if constexpr (STEP * 2 < L) exchange<STEP * 2>(t);
}

// Calls body.operator()<P>() with P = vectors, 1..kVectors.
template <class Body>
SPARSEDET_INLINE void with_vectors(int vectors, const Body& body) {
  switch (vectors) {
    case 1:
      return body.template operator()<1>();
    case 2:
      return body.template operator()<2>();
    case 3:
      return body.template operator()<3>();
    default:
      return body.template operator()<4>();
  }
}

// Maximum of the 3x3 taps of each of L output pixels, from pixel x on; see PoolArgs.
SPARSEDET_INLINE V largest(const float* const rows[3], int x) {
  V best = every_second(rows[0] + 2 * x);
  for (int r = 0; r < 3; r++)
    for (int t = 0; t < 3; t++)
      best = larger(best, every_second(rows[r] + 2 * x + t));
  return best;
}

// Stores B vectors of channels of each of L RoIs, from channel c on, with RoIs as lanes.
template <int B>
SPARSEDET_INLINE void store_rois(const RoiArgs& a, int c, V (&t)[B][L]) {
#pragma GCC unroll 8
  for (int j = 0; j < B; j++) {
    exchange<1>(t[j]);
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) {
      if (c + j * L + i >= a.channels) break;
      store(a.out + (c + j * L + i) * a.channel_stride, t[j][i]);
    }
  }
}

}  // namespace
}  // namespace sparsedet
