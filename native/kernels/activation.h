// The specification of the activations (kernels.h), one number at a time. Only for sources that are
// compiled without flags of an instruction set.
#pragma once
#include "kernels/kernels.h"

namespace sparsedet {

// exp(x) of x in [-87, 87], up to 2 ulp: 2^n times a polynomial of what is left, which is at most
// log(2) / 2. Source: Cephes, expf.
static inline float exp_of(float x) {
  x = x > -87 ? x : -87;
  x = x < 87 ? x : 87;
  constexpr float shift = 0x1.8p23f;  // the sum's lowest bits are the whole number n
  const float shifted = __builtin_fmaf(x, 0x1.715476p0f, shift), n = shifted - shift;
  const float high = __builtin_fmaf(n, -0x1.63p-1f, x);
  const float r = __builtin_fmaf(n, 0x1.bd0106p-13f, high);
  float p = 1.9875691500e-4f;
  constexpr float exponential[] = {1.3981999507e-3f,
                                   8.3334519073e-3f,
                                   4.1665795894e-2f,
                                   1.6666665459e-1f,
                                   5.0000001201e-1f,
                                   1.0f,
                                   1.0f};
  for (const float c : exponential)
    p = __builtin_fmaf(p, r, c);
  const uint32_t exponent = __builtin_bit_cast(uint32_t, shifted) << 23;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, p) + exponent);
}

// erf by Abramowitz and Stegun, 7.1.26.
static inline float gelu_of(float x) {
  const float a = (x > 0 ? x : -x) * 0.70710678f;
  const float t = 1 / __builtin_fmaf(a, 0.3275911f, 1.0f);
  float p = 1.061405429f;
  constexpr float error_function[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
  for (const float c : error_function)
    p = __builtin_fmaf(p, t, c);
  const float rest = p * t * exp_of(a * -a) * 0.5f;  // (1 - erf(a)) / 2
  return x * (x > 0 ? 1 - rest : rest);
}

// Apart, so that nothing that follows is fused with its last step.
__attribute__((noinline)) static float bent(float x, Activation activation) {
  if (activation == Activation::gelu) return gelu_of(x);
  const float sigmoid = 1 / (1 + exp_of(-x));
  return activation == Activation::silu ? x * sigmoid : sigmoid;
}

static inline float activated(float x, Activation activation) {
  if (activation == Activation::none) return x;
  if (activation == Activation::relu) return x > 0 ? x : 0;
  if (activation == Activation::relu6) return x > 0 ? (x < 6 ? x : 6) : 0;
  if (activation > Activation::relu6) return bent(x, activation);
  const float above = x + 3 > 0 ? x + 3 : 0;
  const float sigmoid = (above < 6 ? above : 6) * (1.0f / 6);
  return activation == Activation::hardswish ? x * sigmoid : sigmoid;
}

}  // namespace sparsedet
