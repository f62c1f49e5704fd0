// Products of float32 rows with packed int8 weights: rounding the rows, and sharing the work among threads.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "elementwise.h"
#include "int8_dot.h"

namespace tiller {

// One row of activations: x = scale * quantized, |quantized| <= 32767. A row that is not finite gets a scale
// that is not, and so do all of its products. The padding up to `padded` is zero.
inline float quantize_row(const float* x, int64_t size, int64_t padded, int16_t* quantized) {
  constexpr float kLargest = 32767.0f;
  float largest = 0, broken = 0;
#pragma omp simd reduction(max : largest) reduction(+ : broken)
  for (int64_t i = 0; i < size; i++) {
    largest = std::max(largest, std::fabs(x[i]));
    broken += x[i] * 0.0f;
  }
  const float inverse = largest > 1e-30f ? kLargest / largest : 0.0f;  // finite
#pragma omp simd
  for (int64_t i = 0; i < size; i++) {
    quantized[i] = static_cast<int16_t>(static_cast<int32_t>(std::nearbyint(x[i] * inverse)));
  }
  std::fill(quantized + size, quantized + padded, 0);
  return largest / kLargest + broken;
}

// Rows of activations, rounded.
struct QuantizedRows {
  std::vector<int16_t> values;  // [rows, depth]
  std::vector<float> scales;    // [rows]
  int64_t rows, depth;

  QuantizedRows(const float* x, int64_t rows, int64_t size)
      : rows(rows), depth((size + int8::kGroup - 1) / int8::kGroup * int8::kGroup) {
    values.resize(rows * depth);
    scales.resize(rows);
    at::parallel_for(0, rows, std::max<int64_t>(1, kMinParallelWork / size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        scales[r] = quantize_row(x + r * size, size, depth, values.data() + r * depth);
      }
    });
  }
};

// Packed weights [panels, depth / kPair, kPanel, kPair] and their scales [panels, depth / kGroup, kPanel].
struct Weights {
  const int8_t* values;
  const float* scales;
  int64_t panels, depth;

  Weights(const at::Tensor& packed, const at::Tensor& scales)
      : values(packed.const_data_ptr<int8_t>()),
        scales(scales.const_data_ptr<float>()),
        panels(packed.size(0)),
        depth(packed.size(1) * int8::kPair) {}
};

// The products of kRows rows of x, from `row` on, with one panel.
template <int kRows>
inline void multiply_tile(const QuantizedRows& x, int64_t row, const Weights& w, int64_t panel,
                          float (&out)[kRows][int8::kPanel]) {
  int8::dot<kRows>(x.values.data() + row * x.depth, x.depth, w.values + panel * int8::kPanel * w.depth,
                   w.scales + panel * int8::kPanel * (w.depth / int8::kGroup), out);
  for (int r = 0; r < kRows; r++) {
    for (int c = 0; c < int8::kPanel; c++) out[r][c] *= x.scales[row + r];
  }
}

// Calls tile.template operator()<its rows>(first row) for all rows, in tiles of nearly the same height.
template <int kRows = int8::kTile, typename Tile>
inline void call_tile(int64_t height, int64_t row, const Tile& tile) {
  if (height == kRows) {
    tile.template operator()<kRows>(row);
  } else if constexpr (kRows > 1) {
    call_tile<kRows - 1>(height, row, tile);
  }
}

template <typename Tile>
inline void for_each_tile(int64_t rows, const Tile& tile) {
  int64_t row = 0;
  for (int64_t left = (rows + int8::kTile - 1) / int8::kTile; left > 0; left--) {
    const int64_t height = (rows - row + left - 1) / left;
    call_tile(height, row, tile);
    row += height;
  }
}

// Shares out the panels of a product with `rows` rows among threads.
template <typename Panel>
inline void for_each_panel(const Weights& w, int64_t rows, const Panel& panel) {
  const int64_t grain = kMinParallelWork / std::max<int64_t>(1, rows * w.depth * int8::kPanel) + 1;
  at::parallel_for(0, w.panels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) panel(i);
  });
}

// out [rows, columns]
inline void multiply(const QuantizedRows& x, const Weights& w, const float* bias, float* out,
                     int64_t columns) {
  TORCH_CHECK(w.depth == x.depth, "the weights are those of another width");
  for_each_panel(w, x.rows, [&](int64_t panel) {
    const int64_t column = panel * int8::kPanel;
    const int64_t width = std::min<int64_t>(int8::kPanel, columns - column);
    for_each_tile(x.rows, [&]<int kRows>(int64_t row) {
      float products[kRows][int8::kPanel];
      multiply_tile<kRows>(x, row, w, panel, products);
      for (int r = 0; r < kRows; r++) {
        float* to = out + (row + r) * columns + column;
        for (int64_t c = 0; c < width; c++)
          to[c] = products[r][c] + (bias == nullptr ? 0.0f : bias[column + c]);
      }
    });
  });
}

// out [rows, columns]: silu(gate(x)) * up(x)
inline void multiply_gated(const QuantizedRows& x, const Weights& gate, const Weights& up, float* out,
                           int64_t columns) {
  TORCH_CHECK(gate.depth == x.depth && up.depth == x.depth, "the weights are those of another width");
  for_each_panel(gate, 2 * x.rows, [&](int64_t panel) {
    const int64_t column = panel * int8::kPanel;
    const int64_t width = std::min<int64_t>(int8::kPanel, columns - column);
    for_each_tile(x.rows, [&]<int kRows>(int64_t row) {
      float gates[kRows][int8::kPanel], ups[kRows][int8::kPanel];
      multiply_tile<kRows>(x, row, gate, panel, gates);
      multiply_tile<kRows>(x, row, up, panel, ups);
      for (int r = 0; r < kRows; r++) {
        float* to = out + (row + r) * columns + column;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
          const float power = exp_negative(-std::fabs(gates[r][c]));
          const float sigmoid = (gates[r][c] < 0 ? power : 1.0f) / (1.0f + power);
          to[c] = gates[r][c] * sigmoid * ups[r][c];
        }
      }
    });
  });
}

}  // namespace tiller
