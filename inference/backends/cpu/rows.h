// Rows of float32 activations, rounded to integers in the two ways that weights are multiplied with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "int4_dot.h"
#include "int8_dot.h"
#include "parallel.h"

namespace tiller {

constexpr float kSmallest = 1e-30f;  // what is nearer to zero is taken for zero: it has no finite inverse

inline int64_t groups_in(int64_t size, int64_t group) { return (size + group - 1) / group; }

namespace int8 {

// x = scale * value, |value| <= 32767, with one scale per row. A row that is not finite gets a scale that is
// not, and so do all of its products.
struct Rows {
  int64_t groups;
  std::vector<Activations> values;  // [rows, groups]; the padding is zero
  std::vector<float> scales;        // [rows]

  Rows(const float* x, int64_t rows, int64_t size)
      : groups(groups_in(size, kGroup)), values(rows * groups), scales(rows) {
    share(rows, size,
          [&](int64_t r) { scales[r] = round_row(x + r * size, size, values[r * groups].values); });
  }

  static float round_row(const float* x, int64_t size, int16_t* values) {
    constexpr float kLargest = 32767.0f;
    float largest = 0, broken = 0;
#pragma omp simd reduction(max : largest) reduction(+ : broken)
    for (int64_t i = 0; i < size; i++) {
      largest = std::max(largest, std::fabs(x[i]));
      broken += x[i] * 0.0f;
    }
    const float inverse = largest > kSmallest ? kLargest / largest : 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
      values[i] = static_cast<int16_t>(static_cast<int32_t>(std::nearbyint(x[i] * inverse)));
    }
    return largest / kLargest + broken;
  }
};

template <int kRows>
inline void multiply(const Rows& x, int64_t row, const Weights* panel, float (&out)[kRows][kPanel]) {
  dot<kRows>(x.values.data() + row * x.groups, x.groups, panel, out);
  for (int r = 0; r < kRows; r++) {
    for (int c = 0; c < kPanel; c++) out[r][c] *= x.scales[row + r];
  }
}

}  // namespace int8

namespace int4 {

// x = middle + scale * value, |value| <= 127, with a middle and a scale for each kGroup of a row. A group
// that is not finite gets a sum that is not, and so do all of the row's products.
struct Rows {
  int64_t groups;
  std::vector<Activations> values;  // [rows, groups]

  Rows(const float* x, int64_t rows, int64_t size) : groups(size / kGroup), values(rows * groups) {
    share(rows, 2 * size, [&](int64_t r) {
      for (int64_t g = 0; g < groups; g++) round_group(x + r * size + g * kGroup, values[r * groups + g]);
    });
  }

  static void round_group(const float* x, Activations& rounded) {
    constexpr int kLevels = 254;
    float most = x[0], least = x[0], broken = 0;
#pragma omp simd reduction(max : most) reduction(min : least) reduction(+ : broken)
    for (int i = 0; i < kGroup; i++) {
      most = x[i] > most ? x[i] : most;
      least = x[i] < least ? x[i] : least;
      broken += x[i] * 0.0f;
    }
    const float range = most - least;
    const float middle = least + range * 0.5f, inverse = range > kSmallest ? kLevels / range : 0.0f;
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < kGroup; i++) {
      const int32_t value = static_cast<int32_t>(std::nearbyint((x[i] - middle) * inverse));
      rounded.values[i] = static_cast<int8_t>(value);
      sum += value;
    }
    rounded.scale = range > kSmallest ? range / kLevels : 0.0f;
    rounded.middle = middle;
    rounded.sum = kGroup * middle + rounded.scale * static_cast<float>(sum) + broken;
  }
};

template <int kRows>
inline void multiply(const Rows& x, int64_t row, const Weights* panel, float (&out)[kRows][kPanel]) {
  dot<kRows>(x.values.data() + row * x.groups, x.groups, panel, out);
}

}  // namespace int4
}  // namespace tiller
