// Rounds rows of float32 activations to integers, in one format for each format of packed weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "int4_dot.h"
#include "int4_rounding.h"
#include "int8_dot.h"
#include "parallel.h"

namespace tiller {

// Smaller magnitudes count as zero, since their inverse might not be finite.
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
      const float* from = x + r * size;
      Activations* to = values.get() + r * groups;
      int64_t g = 0;
      for (; g + kBatch <= groups; g += kBatch) round_groups<kBatch>(from + g * kGroup, to + g);
      for (; g < groups; g++) round_groups<1>(from + g * kGroup, to + g);
    });
  }

 private:
  static constexpr int kBatch = 4;  // groups that are rounded together: what is left after them one by one
};

// out[r][c] = row (row + r) of x times column c of the panel.
template <int kRows>
inline void multiply(const Rows& x, int64_t row, const Weights* panel, float (&out)[kRows][kPanel]) {
  dot<kRows>(x.values.get() + row * x.groups, x.groups, panel, out);
}

}  // namespace int4
}  // namespace tiller
