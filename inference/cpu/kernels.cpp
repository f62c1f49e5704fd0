// What torch lacks on CPUs: products with int8 weights, and attention that reads the paged KV cache in
// place. A row's result depends on nothing but the row.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "int8_dot.h"

namespace {

constexpr int64_t kMinParallelWork = 1 << 17;  // multiply-adds, below which a second thread does not pay

// ---------------------------------------------------------------------------------------------- linear

// One row of activations: x = scale * quantized, |quantized| <= 32767. A row that is not finite gets a scale
// that is not, and so do all of its products. The padding up to `padded` is zero.
float quantize_row(const float* x, int64_t size, int64_t padded, int16_t* quantized) {
  constexpr float kLargest = 32767.0f;
  float largest = 0, broken = 0;
#pragma omp simd reduction(max : largest) reduction(+ : broken)
  for (int64_t i = 0; i < size; i++) {
    largest = std::max(largest, std::fabs(x[i]));
    broken += x[i] * 0.0f;
  }
  const float inverse = largest > 0 ? kLargest / largest : 0.0f;
#pragma omp simd
  for (int64_t i = 0; i < size; i++) {
    quantized[i] = static_cast<int16_t>(static_cast<int32_t>(std::nearbyint(x[i] * inverse)));
  }
  std::fill(quantized + size, quantized + padded, 0);
  return largest / kLargest + broken;
}

struct Int8Product {
  const int16_t* activations;      // [rows, depth]
  const float* activation_scales;  // [rows]
  const int8_t* weights;           // [panels][depth / kPair][kPanel][kPair]
  const float* weight_scales;      // [panels][depth / kGroup][kPanel]
  const float* bias;               // [columns] or null
  float* out;                      // [rows, columns]
  int64_t rows, depth, columns;
};

template <int kRows>
void multiply_tile(const Int8Product& p, int64_t row, int64_t panel) {
  float sums[kRows][int8::kPanel];
  int8::dot<kRows>(p.activations + row * p.depth, p.depth, p.weights + panel * int8::kPanel * p.depth,
                   p.weight_scales + panel * int8::kPanel * (p.depth / int8::kGroup), sums);
  const int64_t column = panel * int8::kPanel;
  const int64_t width = std::min<int64_t>(int8::kPanel, p.columns - column);
  for (int r = 0; r < kRows; r++) {
    float* out = p.out + (row + r) * p.columns + column;
    for (int64_t c = 0; c < width; c++) out[c] = sums[r][c] * p.activation_scales[row + r];
    if (p.bias != nullptr) {
      for (int64_t c = 0; c < width; c++) out[c] += p.bias[column + c];
    }
  }
}

template <int kRows>
void multiply_last_tile(const Int8Product& p, int64_t row, int64_t panel, int64_t left) {
  if (left == kRows) {
    multiply_tile<kRows>(p, row, panel);
  } else if constexpr (kRows > 1) {
    multiply_last_tile<kRows - 1>(p, row, panel, left);
  }
}

void multiply_panel(const Int8Product& p, int64_t panel) {
  int64_t row = 0;
  for (; row + int8::kTile <= p.rows; row += int8::kTile) multiply_tile<int8::kTile>(p, row, panel);
  if (row < p.rows) multiply_last_tile<int8::kTile>(p, row, panel, p.rows - row);
}

// x [..., size] float32 times packed weights [panels, depth / kPair, kPanel, kPair] with their scales
// [panels, depth / kGroup, kPanel]; returns [..., columns] float32.
at::Tensor int8_linear(const at::Tensor& input, const at::Tensor& weights, const at::Tensor& weight_scales,
                       const c10::optional<at::Tensor>& bias, int64_t columns) {
  const at::Tensor x = input.contiguous();
  const int64_t size = x.size(-1), rows = x.numel() / size;
  const int64_t panels = weights.size(0), depth = weights.size(1) * int8::kPair;
  TORCH_CHECK(x.scalar_type() == at::kFloat, "float32 activations expected");
  TORCH_CHECK(size <= depth && depth < size + int8::kGroup, "the weights are those of another width");
  auto shape = x.sizes().vec();
  shape.back() = columns;
  at::Tensor out = at::empty(shape, x.options());
  const at::Tensor quantized = at::empty({rows, depth}, x.options().dtype(at::kShort));
  const at::Tensor scales = at::empty({rows}, x.options());
  const float* from = x.const_data_ptr<float>();
  auto* activations = quantized.mutable_data_ptr<int16_t>();
  float* activation_scales = scales.mutable_data_ptr<float>();
  at::parallel_for(0, rows, std::max<int64_t>(1, kMinParallelWork / size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      activation_scales[r] = quantize_row(from + r * size, size, depth, activations + r * depth);
    }
  });
  const Int8Product product{
      activations, activation_scales, weights.const_data_ptr<int8_t>(), weight_scales.const_data_ptr<float>(),
      bias ? bias->const_data_ptr<float>() : nullptr, out.mutable_data_ptr<float>(), rows, depth, columns};
  const int64_t grain = std::max<int64_t>(1, kMinParallelWork / (rows * depth * int8::kPanel));
  at::parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) multiply_panel(product, panel);
  });
  return out;
}

// ------------------------------------------------------------------------------------------- attention

constexpr int64_t kKeys = 32;  // scores that are computed before the maximum is looked at

struct Attention {
  const float* queries;   // [sequences, heads, size]
  const float* keys;      // [slots, kv_heads, size]
  const float* values;    // [slots, kv_heads, value_size]
  const int32_t* blocks;  // [sequences, max_blocks]
  const int64_t* positions;  // [sequences]
  float* out;             // [sequences, heads, value_size]
  int64_t heads, kv_heads, size, value_size, max_blocks, block_size;
  float scale, softcap;
  int64_t window;
};

// e^x for x <= 0, to about two units in the last place; vectorized by the compiler, unlike std::exp.
// Cody and Waite's reduction and the polynomial of Cephes' expf.
inline float exp_negative(float x) {
  x = x < -87.0f ? -87.0f : x;  // keeps what is not a number
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float power = 1.9875691500e-4f;
  power = power * r + 1.3981999507e-3f;
  power = power * r + 8.3334519073e-3f;
  power = power * r + 4.1665795894e-2f;
  power = power * r + 1.6666665459e-1f;
  power = power * r + 5.0000001201e-1f;
  power = power * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return power * scale;
}

inline float dot(const float* a, const float* b, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) sum += a[i] * b[i];
  return sum;
}

// The heads of one sequence that share a key head, by an online softmax (Milakov and Gimelshein,
// arXiv:1805.02867) over its context, from the first key that is visible.
void attend(const Attention& a, int64_t sequence, int64_t kv_head, std::vector<float>& sums) {
  const int64_t group = a.heads / a.kv_heads;
  const int64_t last = a.positions[sequence];
  const int64_t first = a.window > 0 ? std::max<int64_t>(0, last - a.window + 1) : 0;
  const float* queries = a.queries + (sequence * a.heads + kv_head * group) * a.size;
  const int32_t* blocks = a.blocks + sequence * a.max_blocks;
  sums.assign(group * a.value_size, 0.0f);
  std::vector<float> highest(group, -std::numeric_limits<float>::infinity()), totals(group, 0.0f);
  float weights[kKeys];
  int64_t slots[kKeys];
  for (int64_t start = first; start <= last; start += kKeys) {
    const int64_t count = std::min(kKeys, last - start + 1);
    for (int64_t j = 0; j < count; j++) {
      const int64_t position = start + j;
      slots[j] = blocks[position / a.block_size] * a.block_size + position % a.block_size;
    }
    for (int64_t g = 0; g < group; g++) {
      float top = highest[g];
      for (int64_t j = 0; j < count; j++) {
        float score = dot(queries + g * a.size, a.keys + (slots[j] * a.kv_heads + kv_head) * a.size, a.size) * a.scale;
        if (a.softcap > 0) score = std::tanh(score / a.softcap) * a.softcap;
        weights[j] = score;
        top = std::max(top, score);
      }
      float* sum = sums.data() + g * a.value_size;
      const float shrink = start == first ? 0.0f : exp_negative(highest[g] - top);
      highest[g] = top;
      totals[g] *= shrink;
      for (int64_t i = 0; i < a.value_size; i++) sum[i] *= shrink;
      float total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t j = 0; j < count; j++) {
        weights[j] = exp_negative(weights[j] - top);
        total += weights[j];
      }
      totals[g] += total;
      for (int64_t j = 0; j < count; j++) {
        const float* value = a.values + (slots[j] * a.kv_heads + kv_head) * a.value_size;
#pragma omp simd
        for (int64_t i = 0; i < a.value_size; i++) sum[i] += weights[j] * value[i];
      }
    }
  }
  float* out = a.out + (sequence * a.heads + kv_head * group) * a.value_size;
  for (int64_t g = 0; g < group; g++) {
    for (int64_t i = 0; i < a.value_size; i++) out[g * a.value_size + i] = sums[g * a.value_size + i] / totals[g];
  }
}

// Attention of single queries [sequences, heads, size] over the slots that each sequence's blocks
// [sequences, max_blocks] name, up to its own position; returns [sequences, heads, value_size].
// window and softcap: 0 for none.
at::Tensor paged_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                           const at::Tensor& blocks, const at::Tensor& positions, int64_t block_size, double scale,
                           int64_t window, double softcap) {
  TORCH_CHECK(queries.scalar_type() == at::kFloat && keys.scalar_type() == at::kFloat, "float32 expected");
  const at::Tensor contiguous = queries.contiguous();
  const int64_t sequences = queries.size(0), heads = queries.size(1);
  at::Tensor out = at::empty({sequences, heads, values.size(2)}, queries.options());
  const Attention attention{
      contiguous.const_data_ptr<float>(), keys.const_data_ptr<float>(), values.const_data_ptr<float>(),
      blocks.const_data_ptr<int32_t>(), positions.const_data_ptr<int64_t>(), out.mutable_data_ptr<float>(),
      heads, keys.size(1), keys.size(2), values.size(2), blocks.size(1), block_size,
      static_cast<float>(scale), static_cast<float>(softcap), window};
  at::parallel_for(0, sequences * attention.kv_heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sums;
    for (int64_t i = begin; i < end; i++) attend(attention, i / attention.kv_heads, i % attention.kv_heads, sums);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY(tiller_cpu, library) {
  library.def("int8_layout() -> int[]", []() { return std::vector<int64_t>{int8::kPanel, int8::kPair, int8::kGroup}; });
  library.def("int8_linear(Tensor x, Tensor weights, Tensor scales, Tensor? bias, int columns) -> Tensor");
  library.impl("int8_linear", c10::DispatchKey::CPU, &int8_linear);
  library.def(
      "paged_attention(Tensor queries, Tensor keys, Tensor values, Tensor blocks, Tensor positions, int block_size, "
      "float scale, int window, float softcap) -> Tensor");
  library.impl("paged_attention", c10::DispatchKey::CPU, &paged_attention);
}
