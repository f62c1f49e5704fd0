// Rounds rows of float32 activations to integers, in one format for each format of packed weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

#include "int4_dot.h"
#include "int8_dot.h"
#include "parallel.h"

namespace tiller {

// Smaller magnitudes or ranges count as zero, since their inverse might not be finite.
constexpr float kSmallest = 1e-30f;

// Number of groups of `group` elements that hold `size` elements. The last one may be partly filled.
inline int64_t groups_in(int64_t size, int64_t group) { return (size + group - 1) / group; }

namespace int8 {

// Rows x, approximated by scale * value, with |value| <= 32767 and one scale per row. If an element of a row
// is inf or nan, the row's scale is nan, and so are all of its products.
struct Rows {
  int64_t groups;
  std::unique_ptr<Activations[]> values;  // [rows, groups]; the last group is padded with zeros
  std::vector<float> scales;              // [rows]

  // x: [rows, size], contiguous
  Rows(const float* x, int64_t rows, int64_t size)
      : groups(groups_in(size, kGroup)),
        values(std::make_unique_for_overwrite<Activations[]>(rows * groups)),
        scales(rows) {
    share(rows, kRoundingCost * size, [&](int64_t r) {
      int16_t* row = values[r * groups].values;
      scales[r] = round_row(x + r * size, size, row);
      std::fill(row + size, row + groups * kGroup, int16_t{0});
    });
  }

  // Rounds x [size] to values [size], to the nearest integers. Returns the scale.
  static float round_row(const float* x, int64_t size, int16_t* values) {
    constexpr float kLargest = 32767.0f;
    float largest = 0, poison = 0;  // poison: 0 if all elements are finite, else nan
#pragma omp simd reduction(max : largest) reduction(+ : poison)
    for (int64_t i = 0; i < size; i++) {
      largest = std::max(largest, std::fabs(x[i]));
      poison += x[i] * 0.0f;
    }
    const float inverse = largest > kSmallest ? kLargest / largest : 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
      values[i] = static_cast<int16_t>(static_cast<int32_t>(std::nearbyint(x[i] * inverse)));
    }
    return largest / kLargest + poison;
  }
};

// out[r][c] = row (row + r) of x times column c of the panel.
template <int kRows>
inline void multiply(const Rows& x, int64_t row, const Weights* panel, float (&out)[kRows][kPanel]) {
  dot<kRows>(x.values.get() + row * x.groups, x.groups, panel, out);
  for (int r = 0; r < kRows; r++) {
    for (int c = 0; c < kPanel; c++) out[r][c] *= x.scales[row + r];
  }
}

}  // namespace int8

namespace int4 {

// Rows x, approximated by middle + scale * value, with |value| <= 127, and a middle and a scale per group of
// a row. If an element of a group is inf or nan, the group's sum is nan, and so are all products of the row.
struct Rows {
  int64_t groups;
  std::unique_ptr<Activations[]> values;  // [rows, groups]

  // x: [rows, size], contiguous; size is a multiple of kGroup
  Rows(const float* x, int64_t rows, int64_t size)
      : groups(size / kGroup), values(std::make_unique_for_overwrite<Activations[]>(rows * groups)) {
    share(rows, kRoundingCost * size, [&](int64_t r) {
      for (int64_t g = 0; g < groups; g++) round_group(x + r * size + g * kGroup, values[r * groups + g]);
    });
  }

  // Rounds x [kGroup] to the nearest values.
  static void round_group(const float* x, Activations& rounded) {
    constexpr int kSteps = 254;  // from -127 to 127
    const auto [least, most, poison] = find_extremes(x);
    const float range = most - least;
    const float middle = least + range * 0.5f, inverse = range > kSmallest ? kSteps / range : 0.0f;
    const int32_t sum = round_all(x, middle, inverse, rounded.values);
    rounded.scale = range > kSmallest ? range / kSteps : 0.0f;
    rounded.middle = middle;
    rounded.sum = kGroup * middle + rounded.scale * static_cast<float>(sum) + poison;
  }

 private:
  struct Extremes {
    float least, most, poison;  // poison: 0 if all elements are finite, else nan
  };

#if defined(__AVX512BW__)
  static Extremes find_extremes(const float* x) {
    const __m512 first = _mm512_loadu_ps(x), second = _mm512_loadu_ps(x + 16);
    // inf - inf is nan
    const __mmask16 broken =
        _mm512_cmp_ps_mask(_mm512_sub_ps(first, first), _mm512_sub_ps(second, second), _CMP_UNORD_Q);
    return {_mm512_reduce_min_ps(_mm512_min_ps(first, second)),
            _mm512_reduce_max_ps(_mm512_max_ps(first, second)),
            broken ? std::numeric_limits<float>::quiet_NaN() : 0.0f};
  }

  // values = (x - middle) * inverse, rounded. Returns their sum.
  static int32_t round_all(const float* x, float middle, float inverse, int8_t* values) {
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < kGroup; i += 16) {
      const __m512 shifted = _mm512_sub_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(middle));
      const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(shifted, _mm512_set1_ps(inverse)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(values + i), _mm512_cvtepi32_epi8(integers));
      sum = _mm512_add_epi32(sum, integers);
    }
    return _mm512_reduce_add_epi32(sum);
  }
#else
  static Extremes find_extremes(const float* x) {
    float most = x[0], least = x[0], poison = 0;
#pragma omp simd reduction(max : most) reduction(min : least) reduction(+ : poison)
    for (int i = 0; i < kGroup; i++) {
      most = x[i] > most ? x[i] : most;
      least = x[i] < least ? x[i] : least;
      poison += x[i] * 0.0f;
    }
    return {least, most, poison};
  }

  // values = (x - middle) * inverse, rounded. Returns their sum.
  static int32_t round_all(const float* x, float middle, float inverse, int8_t* values) {
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < kGroup; i++) {
      const int32_t value = static_cast<int32_t>(std::nearbyint((x[i] - middle) * inverse));
      values[i] = static_cast<int8_t>(value);
      sum += value;
    }
    return sum;
  }
#endif
};

// out[r][c] = row (row + r) of x times column c of the panel.
template <int kRows>
inline void multiply(const Rows& x, int64_t row, const Weights* panel, float (&out)[kRows][kPanel]) {
  dot<kRows>(x.values.get() + row * x.groups, x.groups, panel, out);
}

}  // namespace int4
}  // namespace tiller
