// What torch lacks on CPUs, as its operations `tiller_cpu`: products with int8 weights, attention that reads
// the paged KV cache in place, and in one operation what else takes many. All in float32; a row's result
// depends on nothing but the row.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "elementwise.h"
#include "int8_dot.h"
#include "int8_product.h"
#include "paged_attention.h"

namespace tiller {
namespace {

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

// x / sqrt(mean(x^2) + epsilon) * weight over the last dimension (Zhang and Sennrich, arXiv:1910.07467).
at::Tensor rms_norm(const at::Tensor& input, const at::Tensor& weight, double epsilon) {
  const at::Tensor x = contiguous_floats(input);
  at::Tensor out = at::empty_like(x);
  const int64_t size = x.size(-1), rows = x.numel() / size;
  const float* from = x.const_data_ptr<float>();
  const float* weights = weight.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, rows, std::max<int64_t>(1, kMinParallelWork / 4 / size),
                   [&](int64_t begin, int64_t end) {
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

// x [1, heads, tokens, size], angles [1, tokens, size]. Returns the same shape, laid out [tokens, heads,
// size].
at::Tensor rotate(const at::Tensor& x, const float* cosines, const float* sines) {
  const int64_t heads = x.size(1), tokens = x.size(2), size = x.size(3);
  at::Tensor out = at::empty({1, tokens, heads, size}, x.options());
  const float* from = x.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const int64_t head_stride = x.stride(1), token_stride = x.stride(2);
  const int64_t grain = std::max<int64_t>(1, kMinParallelWork / 4 / (heads * size));
  at::parallel_for(0, tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      for (int64_t h = 0; h < heads; h++) {
        rotate_head(from + h * head_stride + t * token_stride, cosines + t * size, sines + t * size, size,
                    to + (t * heads + h) * size);
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

// Stores the keys and values [1, kv_heads, tokens, size] of all tokens in their slots, and attends with the
// first of the queries [1, heads, tokens, size], as many as there are block tables [singles, max_blocks]:
// each to the slots that its blocks name, up to its own position. Returns [tokens, heads, value_size], of
// which the other tokens' part is not set. window and softcap: 0 for none.
at::Tensor paged_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                           const at::Tensor& key_cache, const at::Tensor& value_cache,
                           const at::Tensor& slots, const at::Tensor& blocks, const at::Tensor& positions,
                           int64_t block_size, double scale, int64_t window, double softcap) {
  for (const at::Tensor& tensor : {queries, keys, values}) {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.stride(3) == 1,
                "contiguous float32 heads expected");
  }
  const int64_t heads = queries.size(1), tokens = queries.size(2), singles = blocks.size(0);
  for (const auto& [from, cache] : {std::pair(keys, key_cache), std::pair(values, value_cache)}) {
    store_tokens(from.const_data_ptr<float>(), from.stride(1), from.stride(2), tokens, from.size(1),
                 from.size(3), slots.const_data_ptr<int64_t>(), cache.mutable_data_ptr<float>());
  }
  at::Tensor out = at::empty({tokens, heads, value_cache.size(2)}, queries.options());
  const Attention attention{queries.const_data_ptr<float>(),
                            key_cache.const_data_ptr<float>(),
                            value_cache.const_data_ptr<float>(),
                            blocks.const_data_ptr<int32_t>(),
                            positions.const_data_ptr<int64_t>(),
                            out.mutable_data_ptr<float>(),
                            queries.stride(1),
                            queries.stride(2),
                            heads,
                            keys.size(1),
                            key_cache.size(2),
                            value_cache.size(2),
                            blocks.size(1),
                            block_size,
                            static_cast<float>(scale),
                            static_cast<float>(softcap),
                            window};
  attend_all(attention, singles);
  return out;
}

// The whole attention layer, for a batch of single queries: projections of x [1, tokens, hidden] to queries,
// keys and values (one matrix for all three), rotation, attention as above, and the projection of its output.
at::Tensor int8_attention(const at::Tensor& input, const at::Tensor& cosines, const at::Tensor& sines,
                          const at::Tensor& qkv, const at::Tensor& qkv_scales,
                          const c10::optional<at::Tensor>& qkv_bias, const at::Tensor& projection,
                          const at::Tensor& projection_scales,
                          const c10::optional<at::Tensor>& projection_bias, const at::Tensor& key_cache,
                          const at::Tensor& value_cache, const at::Tensor& slots, const at::Tensor& blocks,
                          const at::Tensor& positions, int64_t block_size, int64_t heads, double scale,
                          int64_t window) {
  const at::Tensor x = contiguous_floats(input), cosine = contiguous_floats(cosines),
                   sine = contiguous_floats(sines);
  const int64_t hidden = x.size(-1), tokens = x.numel() / hidden;
  const int64_t kv_heads = key_cache.size(1), size = key_cache.size(2),
                columns = (heads + 2 * kv_heads) * size;
  TORCH_CHECK(cosine.size(-1) == size && value_cache.size(2) == size, "heads of one size expected");
  TORCH_CHECK(blocks.size(0) == tokens, "a block table per token expected");
  const at::Tensor projected = at::empty({tokens, columns}, x.options());
  float* queries = projected.mutable_data_ptr<float>();
  float *keys = queries + heads * size, *values = keys + kv_heads * size;
  multiply(QuantizedRows(x.const_data_ptr<float>(), tokens, hidden), Weights(qkv, qkv_scales),
           qkv_bias ? qkv_bias->const_data_ptr<float>() : nullptr, queries, columns);
  for (int64_t t = 0; t < tokens; t++) {
    const int64_t angle = t * size;
    for (int64_t h = 0; h < heads + kv_heads; h++) {
      float* head = queries + t * columns + h * size;
      rotate_head(head, cosine.const_data_ptr<float>() + angle, sine.const_data_ptr<float>() + angle, size,
                  head);
    }
  }
  const int64_t* places = slots.const_data_ptr<int64_t>();
  store_tokens(keys, size, columns, tokens, kv_heads, size, places, key_cache.mutable_data_ptr<float>());
  store_tokens(values, size, columns, tokens, kv_heads, size, places, value_cache.mutable_data_ptr<float>());
  const at::Tensor attended = at::empty({tokens, heads * size}, x.options());
  attend_all(Attention{queries, key_cache.const_data_ptr<float>(), value_cache.const_data_ptr<float>(),
                       blocks.const_data_ptr<int32_t>(), positions.const_data_ptr<int64_t>(),
                       attended.mutable_data_ptr<float>(), size, columns, heads, kv_heads, size, size,
                       blocks.size(1), block_size, static_cast<float>(scale), 0.0f, window},
             tokens);
  at::Tensor out = at::empty_like(x);
  multiply(QuantizedRows(attended.const_data_ptr<float>(), tokens, heads * size),
           Weights(projection, projection_scales),
           projection_bias ? projection_bias->const_data_ptr<float>() : nullptr,
           out.mutable_data_ptr<float>(), hidden);
  return out;
}

}  // namespace
}  // namespace tiller

TORCH_LIBRARY(tiller_cpu, library) {
  library.def("int8_layout() -> int[]", []() {
    return std::vector<int64_t>{tiller::int8::kPanel, tiller::int8::kPair, tiller::int8::kGroup};
  });
  library.def("int8_linear(Tensor x, Tensor weights, Tensor scales, Tensor? bias, int columns) -> Tensor");
  library.impl("int8_linear", c10::DispatchKey::CPU, &tiller::int8_linear);
  library.def(
      "int8_gated_mlp(Tensor x, Tensor gate, Tensor gate_scales, Tensor up, Tensor up_scales, Tensor down, "
      "Tensor down_scales, int inner, int columns) -> Tensor");
  library.impl("int8_gated_mlp", c10::DispatchKey::CPU, &tiller::int8_gated_mlp);
  library.def("rms_norm(Tensor x, Tensor weight, float epsilon) -> Tensor");
  library.impl("rms_norm", c10::DispatchKey::CPU, &tiller::rms_norm);
  library.def("rotary(Tensor queries, Tensor keys, Tensor cosines, Tensor sines) -> (Tensor, Tensor)");
  library.impl("rotary", c10::DispatchKey::CPU, &tiller::rotary);
  library.def(
      "paged_attention(Tensor queries, Tensor keys, Tensor values, Tensor(a!) key_cache, Tensor(b!) "
      "value_cache, "
      "Tensor slots, Tensor blocks, Tensor positions, int block_size, float scale, int window, float "
      "softcap) -> Tensor");
  library.impl("paged_attention", c10::DispatchKey::CPU, &tiller::paged_attention);
  library.def(
      "int8_attention(Tensor x, Tensor cosines, Tensor sines, Tensor qkv, Tensor qkv_scales, Tensor? "
      "qkv_bias, "
      "Tensor projection, Tensor projection_scales, Tensor? projection_bias, Tensor(a!) key_cache, "
      "Tensor(b!) value_cache, Tensor slots, Tensor blocks, Tensor positions, int block_size, int heads, "
      "float scale, "
      "int window) -> Tensor");
  library.impl("int8_attention", c10::DispatchKey::CPU, &tiller::int8_attention);
}
