// What the operations have to do with tensors.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace tiller {

inline at::Tensor contiguous_floats(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat, "float32 expected");
  return x.contiguous();
}

inline at::Tensor empty_like_with_last(const at::Tensor& x, int64_t columns) {
  auto shape = x.sizes().vec();
  shape.back() = columns;
  return at::empty(shape, x.options());
}

}  // namespace tiller
