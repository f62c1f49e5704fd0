// Rounds groups of float32 activations to int8, for products with 4-bit weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

#include "int4_dot.h"

namespace tiller::int4 {

// Smaller ranges count as zero, since their inverse might not be finite.
constexpr float kSmallestRange = 1e-30f;

template <int kCount>
struct Extremes {
  float least[kCount], most[kCount], poison[kCount];  // poison: 0 if all elements are finite, else nan
};

#if defined(__AVX512BW__)
// Writes op of all elements of each row to out.
template <int kCount, typename Op>
inline void reduce(const __m512 (&rows)[kCount], void* out, const Op& op) {
  static_assert(kCount == 1 || kCount == 4);
  __m512 all = rows[0];
  if constexpr (kCount == 4) {
    const __m512 ab = op(_mm512_unpacklo_ps(rows[0], rows[1]), _mm512_unpackhi_ps(rows[0], rows[1]));
    const __m512 cd = op(_mm512_unpacklo_ps(rows[2], rows[3]), _mm512_unpackhi_ps(rows[2], rows[3]));
    all = op(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  } else {
    all = op(all, _mm512_permute_ps(all, 0x4e));
    all = op(all, _mm512_permute_ps(all, 0xb1));
  }
  all = op(all, _mm512_shuffle_f32x4(all, all, 0x4e));
  all = op(all, _mm512_shuffle_f32x4(all, all, 0xb1));
  const __m128 result = _mm512_castps512_ps128(all);
  std::memcpy(out, &result, kCount * sizeof(float));
}

template <int kCount>
inline Extremes<kCount> find_extremes(const float* x) {
  constexpr int kNotFinite = 0x99;  // the categories of _mm512_fpclass_ps_mask: nan and infinity
  Extremes<kCount> result;
  __m512 least[kCount], most[kCount];
  for (int g = 0; g < kCount; g++) {
    const __m512 first = _mm512_loadu_ps(x + g * kGroup), second = _mm512_loadu_ps(x + g * kGroup + 16);
    least[g] = _mm512_min_ps(first, second);
    most[g] = _mm512_max_ps(first, second);
    const auto broken =
        _mm512_fpclass_ps_mask(first, kNotFinite) | _mm512_fpclass_ps_mask(second, kNotFinite);
    result.poison[g] = broken ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  }
  reduce(least, result.least, [](__m512 a, __m512 b) { return _mm512_min_ps(a, b); });
  reduce(most, result.most, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
  return result;
}

// Each group's values = (x - middle) * inverse, rounded. Writes their sums, too.
template <int kCount>
inline void round_all(const float* x, const float* middles, const float* inverses, Activations* rounded,
                      int32_t* sums) {
  __m512 totals[kCount];  // of int32
  for (int g = 0; g < kCount; g++) {
    const __m512 middle = _mm512_set1_ps(middles[g]), inverse = _mm512_set1_ps(inverses[g]);
    __m512i total = _mm512_setzero_si512();
    for (int i = 0; i < kGroup; i += 16) {
      const __m512 shifted = _mm512_sub_ps(_mm512_loadu_ps(x + g * kGroup + i), middle);
      const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(shifted, inverse));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(rounded[g].values + i), _mm512_cvtepi32_epi8(integers));
      total = _mm512_add_epi32(total, integers);
    }
    totals[g] = _mm512_castsi512_ps(total);
  }
  reduce(totals, sums, [](__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  });
}
#else
template <int kCount>
inline Extremes<kCount> find_extremes(const float* x) {
  Extremes<kCount> result;
  for (int g = 0; g < kCount; g++, x += kGroup) {
    float most = x[0], least = x[0], poison = 0;
#pragma omp simd reduction(max : most) reduction(min : least) reduction(+ : poison)
    for (int i = 0; i < kGroup; i++) {
      most = x[i] > most ? x[i] : most;
      least = x[i] < least ? x[i] : least;
      poison += x[i] * 0.0f;
    }
    result.least[g] = least;
    result.most[g] = most;
    result.poison[g] = poison;
  }
  return result;
}

// Each group's values = (x - middle) * inverse, rounded. Writes their sums, too.
template <int kCount>
inline void round_all(const float* x, const float* middles, const float* inverses, Activations* rounded,
                      int32_t* sums) {
  for (int g = 0; g < kCount; g++, x += kGroup) {
    const float middle = middles[g], inverse = inverses[g];
    int8_t* values = rounded[g].values;
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < kGroup; i++) {
      const int32_t value = static_cast<int32_t>(std::nearbyint((x[i] - middle) * inverse));
      values[i] = static_cast<int8_t>(value);
      sum += value;
    }
    sums[g] = sum;
  }
}
#endif

// Rounds x [kCount, kGroup] to the nearest values.
template <int kCount>
inline void round_groups(const float* x, Activations* rounded) {
  constexpr int kSteps = 254;  // from -127 to 127
  const Extremes<kCount> extremes = find_extremes<kCount>(x);
  float middles[kCount], scales[kCount], inverses[kCount];
  for (int g = 0; g < kCount; g++) {
    const float range = extremes.most[g] - extremes.least[g];
    middles[g] = extremes.least[g] + range * 0.5f;
    scales[g] = range > kSmallestRange ? range / kSteps : 0.0f;
    inverses[g] = range > kSmallestRange ? kSteps / range : 0.0f;
  }
  int32_t sums[kCount];
  round_all<kCount>(x, middles, inverses, rounded, sums);
  for (int g = 0; g < kCount; g++) {
    rounded[g].scale = scales[g];
    rounded[g].middle = middles[g];
    rounded[g].sum = kGroup * middles[g] + scales[g] * static_cast<float>(sums[g]) + extremes.poison[g];
  }
}

}  // namespace tiller::int4
