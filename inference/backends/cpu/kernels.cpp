// Defines torch's operations `tiller_cpu`: products with packed weights, attention that reads the paged KV
// cache in place, steering, and whole layers as one operation. Inputs and outputs are float32. The result for
// a row depends on that row alone.

#include <ATen/ATen.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "attention.h"
#include "elementwise.h"
#include "layers.h"
#include "linear.h"
#include "parallel.h"
#include "sampling.h"
#include "steering.h"
#include "tensors.h"

namespace tiller {
namespace {

// Rotates x [1, heads, tokens, size], whose last dimension is contiguous. cosines, sines: [tokens, size],
// contiguous. Returns x's shape; in memory, the result is [tokens, heads, size].
at::Tensor rotate(const at::Tensor& x, const float* cosines, const float* sines) {
  const int64_t heads = x.size(1), tokens = x.size(2), size = x.size(3);
  at::Tensor out = at::empty({1, tokens, heads, size}, x.options());
  const float* from = x.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const int64_t head_stride = x.stride(1), token_stride = x.stride(2);
  share(tokens, kRotationCost * heads * size, [&](int64_t t) {
    for (int64_t h = 0; h < heads; h++) {
      rotate_head(from + h * head_stride + t * token_stride, cosines + t * size, sines + t * size, size,
                  to + (t * heads + h) * size);
    }
  });
  return out.transpose(1, 2);
}

// Rotates queries [1, heads, tokens, size] and keys [1, kv_heads, tokens, size] by the angles with these
// cosines and sines [1, tokens, size]. Returns the same shapes.
std::tuple<at::Tensor, at::Tensor> rotary(const at::Tensor& queries, const at::Tensor& keys,
                                          const at::Tensor& cosines, const at::Tensor& sines) {
  TORCH_CHECK(queries.stride(3) == 1 && keys.stride(3) == 1,
              "queries and keys must be contiguous in the last dimension");
  TORCH_CHECK(cosines.size(-1) == queries.size(3) && keys.size(3) == queries.size(3),
              "queries, keys and cosines must have the same last dimension, but have ", queries.size(3), ", ",
              keys.size(3), " and ", cosines.size(-1));
  const at::Tensor cosine = contiguous_floats(cosines), sine = contiguous_floats(sines);
  const float *c = cosine.const_data_ptr<float>(), *s = sine.const_data_ptr<float>();
  return {rotate(queries, c, s), rotate(keys, c, s)};
}

// Stores the keys [1, kv_heads, tokens, size] and values [1, kv_heads, tokens, value_size] of all tokens in
// their slots. Then each query of [1, heads, tokens, size] attends to the slots of its own sequence, up to
// its own position. Returns [tokens, heads, value_size]. window, softcap: 0 means none. For the caches and
// the index tensors see Attention and Paging.
at::Tensor paged_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                           const at::Tensor& key_cache, const at::Tensor& value_cache,
                           const at::Tensor& slot_mapping, const at::Tensor& block_tables,
                           const at::Tensor& cu_seqlens, const at::Tensor& positions, int64_t block_size,
                           double scale, int64_t window, double softcap) {
  const Paging paging{slot_mapping, block_tables, cu_seqlens, positions, block_size};
  paging.check();
  for (const at::Tensor& tensor : {queries, keys, values}) {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.stride(3) == 1,
                "queries, keys and values must be float32 and contiguous in the last dimension");
  }
  at::Tensor out = at::empty({queries.size(2), queries.size(1), value_cache.size(2)}, queries.options());
  const Queries all{
      queries.const_data_ptr<float>(),
      keys.const_data_ptr<float>(),
      values.const_data_ptr<float>(),
      queries.stride(1),
      queries.stride(2),
      keys.stride(1),
      keys.stride(2),
      values.stride(1),
      values.stride(2),
      queries.size(1),
  };
  const Scoring scoring{static_cast<float>(scale), static_cast<float>(softcap), window};
  store_and_attend(all, key_cache, value_cache, paging, scoring, out.mutable_data_ptr<float>());
  return out;
}

}  // namespace
}  // namespace tiller

TORCH_LIBRARY(tiller_cpu, library) {
  using tiller::AttentionLayer, tiller::DecoderLayer, tiller::Linear;
  library.class_<Linear>("Linear")
      .def(torch::init<const at::Tensor&, const std::optional<at::Tensor>&>())
      .def("slice", &Linear::slice)
      .def("can_join", [](const tiller::LinearPtr& self,
                          const tiller::LinearPtr& other) { return self->can_join(*other); })
      .def("weight", &Linear::weight)
      .def("bits", &Linear::bits);
  library.class_<AttentionLayer>("AttentionLayer")
      .def(torch::init<tiller::LinearPtr, tiller::LinearPtr, int64_t, double, int64_t>())
      .def("forward", &AttentionLayer::forward);
  library.class_<DecoderLayer>("DecoderLayer")
      .def(torch::init<c10::intrusive_ptr<AttentionLayer>, tiller::LinearPtr, tiller::LinearPtr,
                       tiller::LinearPtr, at::Tensor, double, at::Tensor, double>())
      .def("forward", &DecoderLayer::forward);
  library.def("use_own_threads(bool use) -> ()", [](bool use) { tiller::has_own_threads = use; });
  library.def("join", &Linear::join);
  library.def("linear", &tiller::linear);
  library.def("gated_mlp", &tiller::gated_mlp);
  library.def("rms_norm", &tiller::rms_norm);
  library.def("rotary", &tiller::rotary);
  library.def("weigh", &tiller::weigh);
  library.def("steer(Tensor(a!) hidden, Tensor vectors, Tensor rows) -> ()", &tiller::steer);
  library.def("project(Tensor(a!) hidden, Tensor vectors, Tensor tokens, Tensor reads, Tensor writes) -> ()",
              &tiller::project);
  library.def("read", &tiller::read);
  library.def("paged_attention", &tiller::paged_attention);
}
