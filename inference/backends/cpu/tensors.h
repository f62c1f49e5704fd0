// Helpers for tensors.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace tiller {

// Returns x itself if it is contiguous, else a contiguous copy. x must be float32.
inline at::Tensor contiguous_floats(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat, "a float32 tensor is required, not ", x.scalar_type());
  return x.contiguous();
}

// Returns an uninitialized tensor with x's type and shape, except that the last dimension is `columns`.
inline at::Tensor empty_like_with_last(const at::Tensor& x, int64_t columns) {
  auto shape = x.sizes().vec();
  shape.back() = columns;
  return at::empty(shape, x.options());
}

}  // namespace tiller
