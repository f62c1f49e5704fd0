// Products of float32 rows with packed weights: cut into tiles, which are shared among threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "elementwise.h"
#include "linear.h"
#include "parallel.h"
#include "rows.h"

namespace tiller {

// Calls tile.template operator()<height>(row). height must be in [1, kRows].
template <int kRows, typename Tile>
inline void call_tile(int64_t height, int64_t row, const Tile& tile) {
  if (height == kRows) {
    tile.template operator()<kRows>(row);
  } else if constexpr (kRows > 1) {
    call_tile<kRows - 1>(height, row, tile);
  }
}

// Calls tile.template operator()<number of rows>(first row) for tiles that cover the rows [begin, end). A
// tile has at most kTile rows. All have nearly the same number.
template <int kTile, typename Tile>
inline void for_each_tile(int64_t begin, int64_t end, const Tile& tile) {
  int64_t row = begin;
  for (int64_t tiles_left = (end - begin + kTile - 1) / kTile; tiles_left > 0; tiles_left--) {
    const int64_t height = (end - row + tiles_left - 1) / tiles_left;
    call_tile<kTile>(height, row, tile);
    row += height;
  }
}

// The number of bands that `rows` rows are cut into. A band stays in a core's cache while it meets all
// panels. Each thread gets its own bands, if there are enough rows: fewer in a band would unpack the weights
// too often. Otherwise the threads share the panels. depth: inputs of the product.
template <int kTile>
inline int64_t count_bands(int64_t rows, int64_t depth) {
  constexpr int64_t kCached = 1 << 17;  // activations
  const int64_t threads = at::get_num_threads(), bands = (rows * depth + kCached - 1) / kCached;
  if (bands < threads) return std::max({int64_t{1}, bands, std::min(threads, rows / (2 * kTile))});
  return std::max<int64_t>(1, std::min((bands + threads - 1) / threads * threads, rows / kTile));
}

// Calls tile.template operator()<number of rows>(first row, panel) for all rows and panels. depth: inputs of
// the product.
template <int kTile, typename Tile>
inline void for_each_tile_and_panel(int64_t rows, int64_t panels, int64_t depth, const Tile& tile) {
  const int64_t bands = count_bands<kTile>(rows, depth);
  share(bands * panels, (rows + bands - 1) / bands * depth * kPanel, [&](int64_t i) {
    const int64_t band = i / panels, panel = i % panels;
    for_each_tile<kTile>(rows * band / bands, rows * (band + 1) / bands,
                         [&]<int kRows>(int64_t row) { tile.template operator()<kRows>(row, panel); });
  });
}

// Calls act(c) for each column c of a panel below `width`. For a whole panel, the compiler knows the number.
template <typename Act>
inline void for_each_column(int64_t width, const Act& act) {
  if (width >= kPanel) {
#pragma omp simd
    for (int c = 0; c < kPanel; c++) act(c);
  } else {
    for (int c = 0; c < width; c++) act(c);
  }
}

// out [rows, outputs] = x [rows, inputs] times the weights, plus the bias if there is one.
template <int kTile, typename Weights, typename Rows>
inline void multiply(const Rows& x, int64_t rows, const Linear& w, float* out) {
  for_each_tile_and_panel<kTile>(rows, w.panels(), w.inputs, [&]<int kRows>(int64_t row, int64_t panel) {
    float products[kRows][kPanel];
    multiply<kRows>(x, row, w.panel<Weights>(panel), products);
    const int64_t column = panel * kPanel, width = w.outputs - column;
    const float* bias = w.bias();
    for (int r = 0; r < kRows; r++) {
      float* to = out + (row + r) * w.outputs + column;
      if (bias == nullptr) {
        for_each_column(width, [&](int c) { to[c] = products[r][c]; });
      } else {
        for_each_column(width, [&](int c) { to[c] = products[r][c] + bias[column + c]; });
      }
    }
  });
}

// The same for float32 x. Rounds the rows of x to the format that the weights need.
inline void multiply(const float* x, int64_t rows, const Linear& w, float* out) {
  if (w.is_exact()) {
    multiply<int4::kTile, int4::Weights>(int4::Rows(x, rows, w.inputs), rows, w, out);
  } else {
    multiply<int8::kTile, int8::Weights>(int8::Rows(x, rows, w.inputs), rows, w, out);
  }
}

// x / (1 + e^-x)
inline float silu(float x) {
  const float power = exp_negative(-std::fabs(x));
  return x * (x < 0 ? power : 1.0f) / (1.0f + power);
}

// out [rows, outputs] = silu(gate(x)) * up(x), with x [rows, inputs] and layers without biases.
template <int kTile, typename Weights, typename Rows>
inline void multiply_gated(const Rows& x, int64_t rows, const Linear& gate, const Linear& up, float* out) {
  for_each_tile_and_panel<kTile>(
      rows, gate.panels(), gate.inputs, [&]<int kRows>(int64_t row, int64_t panel) {
        float gates[kRows][kPanel], ups[kRows][kPanel];
        multiply<kRows>(x, row, gate.panel<Weights>(panel), gates);
        multiply<kRows>(x, row, up.panel<Weights>(panel), ups);
        const int64_t column = panel * kPanel;
        for (int r = 0; r < kRows; r++) {
          float* to = out + (row + r) * gate.outputs + column;
          for_each_column(gate.outputs - column, [&](int c) { to[c] = silu(gates[r][c]) * ups[r][c]; });
        }
      });
}

// The same for float32 x. gate and up must have the same format.
inline void multiply_gated(const float* x, int64_t rows, const Linear& gate, const Linear& up, float* out) {
  if (gate.is_exact()) {
    multiply_gated<int4::kTile, int4::Weights>(int4::Rows(x, rows, gate.inputs), rows, gate, up, out);
  } else {
    multiply_gated<int8::kTile, int8::Weights>(int8::Rows(x, rows, gate.inputs), rows, gate, up, out);
  }
}

}  // namespace tiller
