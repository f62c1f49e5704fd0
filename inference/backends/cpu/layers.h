// Layers of a transformer as one operation each: at one token, an operation costs more to start than to
// compute.
#pragma once

#include <ATen/ATen.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <utility>

#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include "parallel.h"
#include "products.h"
#include "tensors.h"

namespace tiller {

using LinearPtr = c10::intrusive_ptr<Linear>;

// out = the RMS norm of x, both [rows, size] float32.
inline void normalize(const float* x, int64_t rows, int64_t size, const float* weight, float epsilon,
                      float* out) {
  share(rows, kNormCost * size,
        [&](int64_t r) { normalize_row(x + r * size, size, weight, epsilon, out + r * size); });
}

// Returns x / sqrt(mean(x^2) + epsilon) * weight, for x [..., size] and weight [size].
inline at::Tensor rms_norm(const at::Tensor& input, const at::Tensor& weight, double epsilon) {
  const at::Tensor x = contiguous_floats(input);
  at::Tensor out = at::empty_like(x);
  const int64_t size = x.size(-1);
  TORCH_CHECK(weight.numel() == size, "the norm has ", weight.numel(), " weights, but x has ", size,
              " columns");
  normalize(x.const_data_ptr<float>(), x.numel() / size, size, weight.const_data_ptr<float>(),
            static_cast<float>(epsilon), out.mutable_data_ptr<float>());
  return out;
}

// sum += x, both [..., size] float32. torch's own addition would start OpenMP's threads between two products.
inline void add_to(const at::Tensor& sum, const at::Tensor& input) {
  const at::Tensor x = contiguous_floats(input);
  TORCH_CHECK(x.numel() == sum.numel() && sum.is_contiguous(),
              "the sum must be contiguous and have as many elements as x (", x.numel(), "), but has ",
              sum.numel());
  const int64_t size = x.size(-1);
  float* to = sum.mutable_data_ptr<float>();
  const float* from = x.const_data_ptr<float>();
  share(x.numel() / size, kAddingCost * size, [&](int64_t r) {
#pragma omp simd
    for (int64_t i = r * size; i < (r + 1) * size; i++) to[i] += from[i];
  });
}

// Multiplies x [..., inputs] float32 with the weights and adds the bias. Returns [..., outputs] float32.
inline at::Tensor linear(const at::Tensor& input, const LinearPtr& weights) {
  const at::Tensor x = contiguous_floats(input);
  TORCH_CHECK(x.size(-1) == weights->inputs, "x has ", x.size(-1), " columns, but the weights have ",
              weights->inputs, " inputs");
  at::Tensor out = empty_like_with_last(x, weights->outputs);
  multiply(x.const_data_ptr<float>(), x.numel() / weights->inputs, *weights, out.mutable_data_ptr<float>());
  return out;
}

// Returns down(silu(gate(x)) * up(x)) for x [..., inputs], without biases (Shazeer, arXiv:2002.05202).
inline at::Tensor gated_mlp(const at::Tensor& input, const LinearPtr& gate, const LinearPtr& up,
                            const LinearPtr& down) {
  const at::Tensor x = contiguous_floats(input);
  TORCH_CHECK(up->can_join(*gate) && up->outputs == gate->outputs && x.size(-1) == gate->inputs &&
                  gate->outputs == down->inputs,
              "gate, up and down do not fit each other or x: x has ", x.size(-1),
              " columns, and the layers have ", gate->inputs, " to ", gate->outputs, ", ", up->inputs, " to ",
              up->outputs, " and ", down->inputs, " to ", down->outputs, " features");
  const int64_t rows = x.numel() / gate->inputs;
  const at::Tensor gated = at::empty({rows, gate->outputs}, x.options());
  multiply_gated(x.const_data_ptr<float>(), rows, *gate, *up, gated.mutable_data_ptr<float>());
  at::Tensor out = empty_like_with_last(x, down->outputs);
  multiply(gated.const_data_ptr<float>(), rows, *down, out.mutable_data_ptr<float>());
  return out;
}

// Attention with its projections: to queries, keys and values (one matrix for all three), rotation, attention
// over the paged KV cache, and the projection of its output.
class AttentionLayer : public torch::CustomClassHolder {
 public:
  // qkv: outputs [queries, keys, values], each of them head by head. scale: factor of the scores. window: 0
  // means no sliding window.
  AttentionLayer(LinearPtr qkv, LinearPtr projection, int64_t heads, double scale, int64_t window)
      : qkv_(std::move(qkv)),
        projection_(std::move(projection)),
        heads_(heads),
        scoring_{.scale = static_cast<float>(scale), .softcap = 0, .window = window} {}

  // x: [..., tokens, hidden size]; cosines, sines: [..., tokens, head size]. For the other tensors see Paging
  // and Attention. Returns the shape of x.
  at::Tensor forward(const at::Tensor& input, const at::Tensor& cosines, const at::Tensor& sines,
                     const at::Tensor& key_cache, const at::Tensor& value_cache,
                     const at::Tensor& slot_mapping, const at::Tensor& block_tables,
                     const at::Tensor& cu_seqlens, const at::Tensor& positions, int64_t block_size) const {
    const at::Tensor x = contiguous_floats(input);
    const Paging paging{slot_mapping, block_tables, cu_seqlens, positions, block_size};
    paging.check();
    const int64_t tokens = paging.tokens();
    const at::Tensor projected = at::empty({tokens, qkv_->outputs}, x.options());
    check(x, cosines, projected, key_cache, value_cache);
    multiply(x.const_data_ptr<float>(), tokens, *qkv_, projected.mutable_data_ptr<float>());
    rotate(projected, contiguous_floats(cosines), contiguous_floats(sines), key_cache);
    at::Tensor attended = attend(projected, key_cache, value_cache, paging);
    at::Tensor out = at::empty_like(x);
    multiply(attended.const_data_ptr<float>(), tokens, *projection_, out.mutable_data_ptr<float>());
    return out;
  }

 private:
  void check(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& projected,
             const at::Tensor& key_cache, const at::Tensor& value_cache) const {
    const int64_t kv_heads = key_cache.size(1), size = key_cache.size(2), tokens = projected.size(0);
    TORCH_CHECK(x.size(-1) == qkv_->inputs && x.numel() == tokens * qkv_->inputs, "x must have ", tokens,
                " rows of ", qkv_->inputs, " columns");
    TORCH_CHECK(cosines.size(-1) == size && cosines.numel() == tokens * size && value_cache.size(2) == size,
                "cosines, keys and values must have the same head size, and cosines one row per token");
    TORCH_CHECK(qkv_->outputs == (heads_ + 2 * kv_heads) * size && projection_->inputs == heads_ * size &&
                    projection_->outputs == qkv_->inputs,
                "the inputs and outputs of the projections do not fit the heads or each other");
  }

  // Rotates the queries and keys of `projected` [tokens, outputs of qkv] in place.
  void rotate(const at::Tensor& projected, const at::Tensor& cosines, const at::Tensor& sines,
              const at::Tensor& key_cache) const {
    const int64_t size = key_cache.size(2), rotated = heads_ + key_cache.size(1);
    float* tokens = projected.mutable_data_ptr<float>();
    const float *cosine = cosines.const_data_ptr<float>(), *sine = sines.const_data_ptr<float>();
    share(projected.size(0), kRotationCost * rotated * size, [&](int64_t t) {
      for (int64_t h = 0; h < rotated; h++) {
        float* head = tokens + t * qkv_->outputs + h * size;
        rotate_head(head, cosine + t * size, sine + t * size, size, head);
      }
    });
  }

  // Stores the keys and values of `projected`, and attends with its queries. Returns [tokens, heads * size].
  at::Tensor attend(const at::Tensor& projected, const at::Tensor& key_cache, const at::Tensor& value_cache,
                    const Paging& paging) const {
    const int64_t kv_heads = key_cache.size(1), size = key_cache.size(2), columns = qkv_->outputs;
    const float* queries = projected.const_data_ptr<float>();
    const float *keys = queries + heads_ * size, *values = keys + kv_heads * size;
    at::Tensor attended = at::empty({paging.tokens(), heads_ * size}, projected.options());
    const Queries all{queries, keys, values, size, columns, size, columns, size, columns, heads_};
    store_and_attend(all, key_cache, value_cache, paging, scoring_, attended.mutable_data_ptr<float>());
    return attended;
  }

  LinearPtr qkv_, projection_;
  int64_t heads_;
  Scoring scoring_;
};

// Computes h = x + attention(norm(x)) and returns h + mlp(norm(h)).
class DecoderLayer : public torch::CustomClassHolder {
 public:
  DecoderLayer(c10::intrusive_ptr<AttentionLayer> attention, LinearPtr gate, LinearPtr up, LinearPtr down,
               at::Tensor first_norm, double first_epsilon, at::Tensor second_norm, double second_epsilon)
      : attention_(std::move(attention)),
        gate_(std::move(gate)),
        up_(std::move(up)),
        down_(std::move(down)),
        first_norm_(std::move(first_norm)),
        second_norm_(std::move(second_norm)),
        first_epsilon_(first_epsilon),
        second_epsilon_(second_epsilon) {}

  // See AttentionLayer::forward.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& sines,
                     const at::Tensor& key_cache, const at::Tensor& value_cache,
                     const at::Tensor& slot_mapping, const at::Tensor& block_tables,
                     const at::Tensor& cu_seqlens, const at::Tensor& positions, int64_t block_size) const {
    at::Tensor hidden =
        attention_->forward(rms_norm(x, first_norm_, first_epsilon_), cosines, sines, key_cache, value_cache,
                            slot_mapping, block_tables, cu_seqlens, positions, block_size);
    add_to(hidden, x);
    at::Tensor out = gated_mlp(rms_norm(hidden, second_norm_, second_epsilon_), gate_, up_, down_);
    add_to(out, hidden);
    return out;
  }

 private:
  c10::intrusive_ptr<AttentionLayer> attention_;
  LinearPtr gate_, up_, down_;
  at::Tensor first_norm_, second_norm_;
  double first_epsilon_, second_epsilon_;
};

}  // namespace tiller
