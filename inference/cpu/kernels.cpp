// What torch lacks on CPUs: products with int8 weights, and attention that reads the paged KV cache in
// place. A row's result depends on nothing but the row.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "int8_dot.h"

namespace {

constexpr int64_t kMinParallelWork = 1 << 17;  // multiply-adds, below which a second thread does not pay


// e^x for x <= 0, to about two units in the last place; vectorized by the compiler, unlike std::exp.
// Cody and Waite's reduction and the polynomial of Cephes' expf.
inline float exp_negative(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no place for a fraction
  x = x < -87.0f ? -87.0f : x;           // keeps what is not a number
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
      : values(packed.const_data_ptr<int8_t>()), scales(scales.const_data_ptr<float>()),
        panels(packed.size(0)), depth(packed.size(1) * int8::kPair) {}
};

// The products of kRows rows of x, from `row` on, with one panel.
template <int kRows>
void multiply_tile(const QuantizedRows& x, int64_t row, const Weights& w, int64_t panel, float (&out)[kRows][int8::kPanel]) {
  int8::dot<kRows>(x.values.data() + row * x.depth, x.depth, w.values + panel * int8::kPanel * w.depth,
                   w.scales + panel * int8::kPanel * (w.depth / int8::kGroup), out);
  for (int r = 0; r < kRows; r++) {
    for (int c = 0; c < int8::kPanel; c++) out[r][c] *= x.scales[row + r];
  }
}

// Calls tile.template operator()<kRows>(first row) for all rows, a few at a time.
template <int kRows = int8::kTile, typename Tile>
void for_each_tile(int64_t row, int64_t rows, const Tile& tile) {
  for (; row + kRows <= rows; row += kRows) tile.template operator()<kRows>(row);
  if constexpr (kRows > 1) for_each_tile<kRows - 1>(row, rows, tile);
}

// Shares out the panels of a product with `rows` rows among threads.
template <typename Panel>
void for_each_panel(const Weights& w, int64_t rows, const Panel& panel) {
  const int64_t grain = std::max<int64_t>(1, kMinParallelWork / (rows * w.depth * int8::kPanel));
  at::parallel_for(0, w.panels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) panel(i);
  });
}

// out [rows, columns]
void multiply(const QuantizedRows& x, const Weights& w, const float* bias, float* out, int64_t columns) {
  TORCH_CHECK(w.depth == x.depth, "the weights are those of another width");
  for_each_panel(w, x.rows, [&](int64_t panel) {
    const int64_t column = panel * int8::kPanel;
    const int64_t width = std::min<int64_t>(int8::kPanel, columns - column);
    for_each_tile(0, x.rows, [&]<int kRows>(int64_t row) {
      float products[kRows][int8::kPanel];
      multiply_tile<kRows>(x, row, w, panel, products);
      for (int r = 0; r < kRows; r++) {
        float* to = out + (row + r) * columns + column;
        for (int64_t c = 0; c < width; c++) to[c] = products[r][c] + (bias == nullptr ? 0.0f : bias[column + c]);
      }
    });
  });
}

// out [rows, columns]: silu(gate(x)) * up(x)
void multiply_gated(const QuantizedRows& x, const Weights& gate, const Weights& up, float* out, int64_t columns) {
  TORCH_CHECK(gate.depth == x.depth && up.depth == x.depth, "the weights are those of another width");
  for_each_panel(gate, 2 * x.rows, [&](int64_t panel) {
    const int64_t column = panel * int8::kPanel;
    const int64_t width = std::min<int64_t>(int8::kPanel, columns - column);
    for_each_tile(0, x.rows, [&]<int kRows>(int64_t row) {
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

at::Tensor contiguous_floats(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat, "float32 expected");
  return x.contiguous();
}

at::Tensor empty_like_with_last(const at::Tensor& x, int64_t columns) {
  auto shape = x.sizes().vec();
  shape.back() = columns;
  return at::empty(shape, x.options());
}

// x [..., size] float32 times weights; returns [..., columns] float32.
at::Tensor int8_linear(const at::Tensor& input, const at::Tensor& weights, const at::Tensor& scales,
                       const c10::optional<at::Tensor>& bias, int64_t columns) {
  const at::Tensor x = contiguous_floats(input);
  at::Tensor out = empty_like_with_last(x, columns);
  const int64_t size = x.size(-1);
  multiply(QuantizedRows(x.const_data_ptr<float>(), x.numel() / size, size), Weights(weights, scales),
           bias ? bias->const_data_ptr<float>() : nullptr, out.mutable_data_ptr<float>(), columns);
  return out;
}

// down(silu(gate(x)) * up(x)), the feed-forward layer of Shazeer, arXiv:2002.05202, without biases.
at::Tensor int8_gated_mlp(const at::Tensor& input, const at::Tensor& gate, const at::Tensor& gate_scales,
                          const at::Tensor& up, const at::Tensor& up_scales, const at::Tensor& down,
                          const at::Tensor& down_scales, int64_t inner, int64_t columns) {
  const at::Tensor x = contiguous_floats(input);
  const int64_t size = x.size(-1), rows = x.numel() / size;
  const at::Tensor gated = at::empty({rows, inner}, x.options());
  multiply_gated(QuantizedRows(x.const_data_ptr<float>(), rows, size), Weights(gate, gate_scales),
                 Weights(up, up_scales), gated.mutable_data_ptr<float>(), inner);
  at::Tensor out = empty_like_with_last(x, columns);
  multiply(QuantizedRows(gated.const_data_ptr<float>(), rows, inner), Weights(down, down_scales), nullptr,
           out.mutable_data_ptr<float>(), columns);
  return out;
}

// ------------------------------------------------------------------------------------- norm and rotation

// x / sqrt(mean(x^2) + epsilon) * weight over the last dimension (Zhang and Sennrich, arXiv:1910.07467).
at::Tensor rms_norm(const at::Tensor& input, const at::Tensor& weight, double epsilon) {
  const at::Tensor x = contiguous_floats(input);
  at::Tensor out = at::empty_like(x);
  const int64_t size = x.size(-1), rows = x.numel() / size;
  const float* from = x.const_data_ptr<float>();
  const float* weights = weight.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, rows, std::max<int64_t>(1, kMinParallelWork / 4 / size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const float* row = from + r * size;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < size; i++) sum += row[i] * row[i];
      const float factor = 1.0f / std::sqrt(sum / size + static_cast<float>(epsilon));
#pragma omp simd
      for (int64_t i = 0; i < size; i++) to[r * size + i] = row[i] * factor * weights[i];
    }
  });
  return out;
}

// Rotates the two halves of each head of x [1, heads, tokens, size] by the angles whose cosines and sines
// are [1, tokens, size] (Su et al., arXiv:2104.09864). Returns the same shape, laid out [tokens, heads, size].
at::Tensor rotate(const at::Tensor& x, const float* cosines, const float* sines) {
  const int64_t heads = x.size(1), tokens = x.size(2), size = x.size(3), half = size / 2;
  at::Tensor out = at::empty({1, tokens, heads, size}, x.options());
  const float* from = x.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const int64_t head_stride = x.stride(1), token_stride = x.stride(2);
  at::parallel_for(0, tokens, std::max<int64_t>(1, kMinParallelWork / 4 / (heads * size)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const float *cosine = cosines + t * size, *sine = sines + t * size;
      for (int64_t h = 0; h < heads; h++) {
        const float* in = from + h * head_stride + t * token_stride;
        float* result = to + (t * heads + h) * size;
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
          result[i] = in[i] * cosine[i] - in[i + half] * sine[i];
          result[i + half] = in[i + half] * cosine[i + half] + in[i] * sine[i + half];
        }
      }
    }
  });
  return out.transpose(1, 2);
}

std::tuple<at::Tensor, at::Tensor> rotary(const at::Tensor& queries, const at::Tensor& keys,
                                          const at::Tensor& cosines, const at::Tensor& sines) {
  TORCH_CHECK(queries.stride(3) == 1 && keys.stride(3) == 1, "heads must be contiguous");
  TORCH_CHECK(cosines.size(-1) == queries.size(3) && keys.size(3) == queries.size(3), "whole heads expected");
  const at::Tensor cosine = contiguous_floats(cosines), sine = contiguous_floats(sines);
  const float *c = cosine.const_data_ptr<float>(), *s = sine.const_data_ptr<float>();
  return {rotate(queries, c, s), rotate(keys, c, s)};
}

// ------------------------------------------------------------------------------------------- attention

constexpr int64_t kKeys = 32;  // scores that are computed before the maximum is looked at
constexpr int64_t kDims = 32;  // of a value, added up in registers

struct Attention {
  const float* queries;   // [sequences, heads, size], by the strides below
  const float* keys;      // [slots, kv_heads, size]
  const float* values;    // [slots, kv_heads, value_size]
  const int32_t* blocks;  // [sequences, max_blocks]
  const int64_t* positions;  // [sequences]
  float* out;             // [sequences, heads, value_size]
  int64_t head_stride, token_stride, heads, kv_heads, size, value_size, max_blocks, block_size;
  float scale, softcap;
  int64_t window;
};

// Eight at a time: what compilers make of plain loops over a size that they do not know is many times slower.
using Floats = float __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int64_t kLanes = 8;

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline void store(float* to, Floats values) { *reinterpret_cast<Floats*>(to) = values; }

inline float add_up(Floats x) { return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])); }

// The products of one query with kKeys keys, side by side so that none waits for its own sum.
template <int kKeys>
inline void dots(const float* query, const float* keys, int64_t stride, const int64_t* slots, int64_t size, float* out) {
  const float* rows[kKeys];
  Floats sums[kKeys] = {};
  for (int j = 0; j < kKeys; j++) rows[j] = keys + slots[j] * stride;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Floats part = load(query + i);
    for (int j = 0; j < kKeys; j++) sums[j] = part * load(rows[j] + i) + sums[j];
  }
  for (int j = 0; j < kKeys; j++) out[j] = add_up(sums[j]);
  for (; i < size; i++) {
    for (int j = 0; j < kKeys; j++) out[j] += query[i] * rows[j][i];
  }
}

// The slots of a sequence's positions from `first` to `last`.
std::vector<int64_t> find_slots(const Attention& a, int64_t sequence, int64_t first, int64_t last) {
  const int32_t* blocks = a.blocks + sequence * a.max_blocks;
  std::vector<int64_t> slots(last - first + 1);
  for (int64_t position = first; position <= last;) {
    const int64_t block = position / a.block_size, end = std::min(last + 1, (block + 1) * a.block_size);
    const int64_t offset = (blocks[block] - block) * a.block_size;
    for (; position < end; position++) slots[position - first] = position + offset;
  }
  return slots;
}

// Asks for what will be read soon: blocks lie anywhere, so the processor cannot guess.
void prefetch(const float* cache, const int64_t* slots, int64_t count, int64_t stride, int64_t offset, int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t j = 0; j < count; j++) {
    const float* row = cache + slots[j] * stride + offset;
    for (int64_t i = 0; i < size; i += kLine) __builtin_prefetch(row + i, 0, 2);
  }
}

// Adds to sum the weighted values of `count` slots, in kWidth dimensions.
template <int64_t kWidth>
inline void add_values(const float* values, int64_t stride, const int64_t* slots, int64_t count, const float* weights,
                       float* sum) {
  Floats partial[kWidth / kLanes];
  for (int64_t i = 0; i < kWidth / kLanes; i++) partial[i] = load(sum + i * kLanes);
  for (int64_t j = 0; j < count; j++) {
    const float* value = values + slots[j] * stride;
    for (int64_t i = 0; i < kWidth / kLanes; i++) partial[i] += weights[j] * load(value + i * kLanes);
  }
  for (int64_t i = 0; i < kWidth / kLanes; i++) store(sum + i * kLanes, partial[i]);
}

// One head's softmax so far over the keys that it has seen: its weights' sum, and the weighted values' sum.
struct Head {
  float highest = -std::numeric_limits<float>::infinity();
  float total = 0;
};

// Goes on with `count` slots, by an online softmax (Milakov and Gimelshein, arXiv:1805.02867).
void see(const Attention& a, int64_t kv_head, const int64_t* slots, int64_t count, const float* query, Head& head, float* sum) {
  const int64_t key_stride = a.kv_heads * a.size, value_stride = a.kv_heads * a.value_size;
  const float *keys = a.keys + kv_head * a.size, *values = a.values + kv_head * a.value_size;
  float weights[kKeys];
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) dots<4>(query, keys, key_stride, slots + j, a.size, weights + j);
  for (; j < count; j++) dots<1>(query, keys, key_stride, slots + j, a.size, weights + j);
  float top = head.highest;
  for (j = 0; j < count; j++) {
    weights[j] *= a.scale;
    if (a.softcap > 0) weights[j] = std::tanh(weights[j] / a.softcap) * a.softcap;
    top = std::max(top, weights[j]);
  }
  const float shrink = std::isinf(head.highest) ? 0.0f : exp_negative(head.highest - top);
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (j = 0; j < count; j++) {
    weights[j] = exp_negative(weights[j] - top);
    total += weights[j];
  }
  head.highest = top;
  head.total = head.total * shrink + total;
  for (int64_t i = 0; i < a.value_size; i++) sum[i] *= shrink;
  int64_t i = 0;
  for (; i + kDims <= a.value_size; i += kDims) add_values<kDims>(values + i, value_stride, slots, count, weights, sum + i);
  for (; i + kLanes <= a.value_size; i += kLanes) add_values<kLanes>(values + i, value_stride, slots, count, weights, sum + i);
  for (; i < a.value_size; i++) {
    for (int64_t j = 0; j < count; j++) sum[i] += weights[j] * values[slots[j] * value_stride + i];
  }
}

// The query heads of one sequence that share the key heads from `begin` to `end`.
void attend(const Attention& a, int64_t sequence, int64_t begin, int64_t end) {
  const int64_t shared = a.heads / a.kv_heads;
  const int64_t last = a.positions[sequence];
  const int64_t first = a.window > 0 ? std::max<int64_t>(0, last - a.window + 1) : 0;
  const std::vector<int64_t> slots = find_slots(a, sequence, first, last);
  const int64_t length = slots.size();
  const float* query = a.queries + sequence * a.token_stride;
  float* out = a.out + sequence * a.heads * a.value_size;
  std::vector<Head> heads(a.heads);
  std::fill(out + begin * shared * a.value_size, out + end * shared * a.value_size, 0.0f);
  for (int64_t start = 0; start < length; start += kKeys) {
    const int64_t count = std::min(kKeys, length - start), ahead = std::min(kKeys, length - start - count);
    const int64_t* next = slots.data() + start + count;
    prefetch(a.keys, next, ahead, a.kv_heads * a.size, begin * a.size, (end - begin) * a.size);
    prefetch(a.values, next, ahead, a.kv_heads * a.value_size, begin * a.value_size, (end - begin) * a.value_size);
    for (int64_t h = begin * shared; h < end * shared; h++) {
      see(a, h / shared, slots.data() + start, count, query + h * a.head_stride, heads[h], out + h * a.value_size);
    }
  }
  for (int64_t h = begin * shared; h < end * shared; h++) {
    for (int64_t i = 0; i < a.value_size; i++) out[h * a.value_size + i] /= heads[h].total;
  }
}

void store(const at::Tensor& from, const at::Tensor& cache, const int64_t* slots) {  // from [1, heads, tokens, size]
  const int64_t heads = from.size(1), tokens = from.size(2), size = from.size(3);
  const float* values = from.const_data_ptr<float>();
  float* to = cache.mutable_data_ptr<float>();
  for (int64_t t = 0; t < tokens; t++) {
    for (int64_t h = 0; h < heads; h++) {
      std::memcpy(to + (slots[t] * heads + h) * size, values + h * from.stride(1) + t * from.stride(2), size * sizeof(float));
    }
  }
}

// Stores the keys and values [1, kv_heads, tokens, size] of all tokens in their slots, and attends with the
// first of the queries [1, heads, tokens, size], as many as there are block tables [singles, max_blocks]: each
// to the slots that its blocks name, up to its own position. Returns [tokens, heads, value_size], of which
// the other tokens' part is not set. window and softcap: 0 for none.
at::Tensor paged_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                           const at::Tensor& key_cache, const at::Tensor& value_cache, const at::Tensor& slots,
                           const at::Tensor& blocks, const at::Tensor& positions, int64_t block_size, double scale,
                           int64_t window, double softcap) {
  for (const at::Tensor& tensor : {queries, keys, values}) {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.stride(3) == 1, "contiguous float32 heads expected");
  }
  const int64_t heads = queries.size(1), tokens = queries.size(2), singles = blocks.size(0);
  store(keys, key_cache, slots.const_data_ptr<int64_t>());
  store(values, value_cache, slots.const_data_ptr<int64_t>());
  at::Tensor out = at::empty({tokens, heads, value_cache.size(2)}, queries.options());
  const Attention attention{
      queries.const_data_ptr<float>(), key_cache.const_data_ptr<float>(), value_cache.const_data_ptr<float>(),
      blocks.const_data_ptr<int32_t>(), positions.const_data_ptr<int64_t>(), out.mutable_data_ptr<float>(),
      queries.stride(1), queries.stride(2), heads, keys.size(1), key_cache.size(2), value_cache.size(2),
      blocks.size(1), block_size, static_cast<float>(scale), static_cast<float>(softcap), window};
  // Whole sequences, whose keys lie side by side, unless there are too few to share out.
  const int64_t parts = singles >= 2 * at::get_num_threads() ? 1 : attention.kv_heads;
  const int64_t width = attention.kv_heads / parts;
  at::parallel_for(0, singles * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) attend(attention, i / parts, i % parts * width, (i % parts + 1) * width);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY(tiller_cpu, library) {
  library.def("int8_layout() -> int[]", []() { return std::vector<int64_t>{int8::kPanel, int8::kPair, int8::kGroup}; });
  library.def("int8_linear(Tensor x, Tensor weights, Tensor scales, Tensor? bias, int columns) -> Tensor");
  library.impl("int8_linear", c10::DispatchKey::CPU, &int8_linear);
  library.def(
      "int8_gated_mlp(Tensor x, Tensor gate, Tensor gate_scales, Tensor up, Tensor up_scales, Tensor down, "
      "Tensor down_scales, int inner, int columns) -> Tensor");
  library.impl("int8_gated_mlp", c10::DispatchKey::CPU, &int8_gated_mlp);
  library.def("rms_norm(Tensor x, Tensor weight, float epsilon) -> Tensor");
  library.impl("rms_norm", c10::DispatchKey::CPU, &rms_norm);
  library.def("rotary(Tensor queries, Tensor keys, Tensor cosines, Tensor sines) -> (Tensor, Tensor)");
  library.impl("rotary", c10::DispatchKey::CPU, &rotary);
  library.def(
      "paged_attention(Tensor queries, Tensor keys, Tensor values, Tensor(a!) key_cache, Tensor(b!) value_cache, "
      "Tensor slots, Tensor blocks, Tensor positions, int block_size, float scale, int window, float softcap) -> Tensor");
  library.impl("paged_attention", c10::DispatchKey::CPU, &paged_attention);
}
