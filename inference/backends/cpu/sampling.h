// The part of sampling that reads the logits of the whole vocabulary.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>

#include "elementwise.h"
#include "parallel.h"

namespace tiller {

// Returns the highest of x [size], or nan if any of them is nan.
inline float find_highest(const float* x, int64_t size) {
  float highest = -std::numeric_limits<float>::infinity();
  int has_nan = 0;
#pragma omp simd reduction(max : highest) reduction(| : has_nan)
  for (int64_t i = 0; i < size; i++) {
    highest = x[i] > highest ? x[i] : highest;
    has_nan |= x[i] != x[i];
  }
  return has_nan ? std::numeric_limits<float>::quiet_NaN() : highest;
}

// Replaces each x by e^((x - highest) / temperature), and returns their sum. Powers below e^-87 become 0, so
// forbidden tokens (-inf) have weight 0.
inline double weigh_piece(float* x, int64_t size, float highest, float temperature) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) {
    const float power = (x[i] - highest) / temperature;
    x[i] = power < -87.0f ? 0.0f : exp_negative(power);
    sum += x[i];
  }
  return sum;
}

// Replaces logits [rows, size] float32 by unnormalised probabilities. temperature: [rows, 1] float32. Returns
// the highest logits [rows] float32, and the sums [rows, ceil(size / piece)] float64 of each `piece`
// probabilities; the last piece of a row may be shorter.
inline std::tuple<at::Tensor, at::Tensor> weigh(const at::Tensor& logits, const at::Tensor& temperature,
                                                int64_t piece) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous() && logits.scalar_type() == at::kFloat,
              "logits must be a contiguous float32 matrix");
  const int64_t rows = logits.size(0), size = logits.size(1), pieces = (size + piece - 1) / piece;
  TORCH_CHECK(
      temperature.is_contiguous() && temperature.scalar_type() == at::kFloat && temperature.numel() == rows,
      "temperature must be contiguous float32, with one number per row of logits");
  at::Tensor highest = at::empty({rows}, logits.options());
  at::Tensor sums = at::empty({rows, pieces}, logits.options().dtype(at::kDouble));
  auto* x = logits.mutable_data_ptr<float>();
  auto* tops = highest.mutable_data_ptr<float>();
  auto* totals = sums.mutable_data_ptr<double>();
  const float* temperatures = temperature.const_data_ptr<float>();
  share(rows, 8 * size, [&](int64_t r) {
    tops[r] = find_highest(x + r * size, size);
    for (int64_t p = 0; p < pieces; p++) {
      const int64_t start = p * piece;
      totals[r * pieces + p] =
          weigh_piece(x + r * size + start, std::min(piece, size - start), tops[r], temperatures[r]);
    }
  });
  return {highest, sums};
}

}  // namespace tiller
