// Functions of single numbers, heads and rows, all in float32.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace tiller {

// Returns e^x for x <= 0, with an error of about two units in the last place; e^-87 for x below -87; nan for
// nan. Compilers can vectorize it, unlike std::exp. Cody and Waite's range reduction, and the polynomial of
// Cephes' expf.
[[gnu::always_inline]] inline float exp_negative(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -87.0f ? -87.0f : x;           // nan stays nan
  const float n = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float power = 1.9875691500e-4f;
  power = power * r + 1.3981999507e-3f;
  power = power * r + 8.3334519073e-3f;
  power = power * r + 4.1665795894e-2f;
  power = power * r + 1.6666665459e-1f;
  power = power * r + 5.0000001201e-1f;
  power = power * r * r + r + 1.0f;
  return power * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

// Rotates the two halves of a head [size] by the angles with these cosines and sines [size] (Su et al.,
// arXiv:2104.09864). out may be the same memory as in.
inline void rotate_head(const float* in, const float* cosines, const float* sines, int64_t size, float* out) {
  const int64_t half = size / 2;
#pragma omp simd
  for (int64_t i = 0; i < half; i++) {
    const float first = in[i], second = in[i + half];
    out[i] = first * cosines[i] - second * sines[i];
    out[i + half] = second * cosines[i + half] + first * sines[i + half];
  }
}

// out = x / sqrt(mean(x^2) + epsilon) * weight, all of them [size] (Zhang and Sennrich, arXiv:1910.07467).
inline void normalize_row(const float* x, int64_t size, const float* weight, float epsilon, float* out) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) sum += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(sum / static_cast<float>(size) + epsilon);
#pragma omp simd
  for (int64_t i = 0; i < size; i++) out[i] = x[i] * factor * weight[i];
}

}  // namespace tiller
