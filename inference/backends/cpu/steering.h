// Adds vectors to hidden states, and projects hidden states on vectors. See inference/steering/injection.py.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "parallel.h"
#include "tensors.h"

namespace tiller {

inline float product(const float* x, const float* y, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) sum += x[i] * y[i];
  return sum;
}

inline void add_scaled(const float* x, float factor, int64_t size, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < size; i++) out[i] += factor * x[i];
}

// Hidden states [tokens, size] and a bank of vectors [num_rows, size]. Row 0 of the bank is zero.
struct HiddenStates {
  HiddenStates(const at::Tensor& hidden, const at::Tensor& vectors)
      : vectors(vectors.const_data_ptr<float>()), stride(hidden.stride(0)), size(hidden.size(1)) {
    TORCH_CHECK(hidden.scalar_type() == at::kFloat && hidden.stride(1) == 1,
                "hidden states must be float32 and contiguous in the last dimension");
    TORCH_CHECK(vectors.is_contiguous() && vectors.size(1) == size,
                "vectors must be contiguous, and as long as the hidden states");
  }

  const float* vector(int64_t row) const { return vectors + row * size; }

  const float* vectors;
  int64_t stride, size;
};

// hidden += vectors[rows], rows [tokens].
inline void steer(const at::Tensor& hidden, const at::Tensor& vectors, const at::Tensor& rows) {
  const HiddenStates states(hidden, vectors);
  const int64_t* row = rows.const_data_ptr<int64_t>();
  float* out = hidden.mutable_data_ptr<float>();
  share(hidden.size(0), 2 * states.size, [&](int64_t t) {
    if (row[t] != 0) add_scaled(states.vector(row[t]), 1.0f, states.size, out + t * states.stride);
  });
}

// Adds K terms (read h) * write to each of M different tokens h. tokens [M]; reads, writes [M, K]: rows of
// the bank. All terms read h as it was before.
inline void project(const at::Tensor& hidden, const at::Tensor& vectors, const at::Tensor& tokens,
                    const at::Tensor& reads, const at::Tensor& writes) {
  const HiddenStates states(hidden, vectors);
  const at::Tensor all_reads = reads.contiguous(), all_writes = writes.contiguous();
  const int64_t *token = tokens.const_data_ptr<int64_t>(), *read = all_reads.const_data_ptr<int64_t>(),
                *write = all_writes.const_data_ptr<int64_t>();
  const int64_t count = tokens.size(0), terms = reads.size(1);
  at::Tensor products = at::empty({count, terms}, hidden.options());
  float *h = hidden.mutable_data_ptr<float>(), *products_of = products.mutable_data_ptr<float>();
  share(count, 3 * terms * states.size, [&](int64_t i) {
    float* out = h + token[i] * states.stride;
    const int64_t first = i * terms, last = first + terms;
    for (int64_t k = first; k < last; k++) {
      products_of[k] = product(out, states.vector(read[k]), states.size);
    }
    for (int64_t k = first; k < last; k++) {
      if (read[k] != 0) add_scaled(states.vector(write[k]), products_of[k], states.size, out);
    }
  });
}

// Returns [R]: the products of hidden[tokens] and vectors[rows]. tokens, rows: [R].
inline at::Tensor read(const at::Tensor& hidden, const at::Tensor& vectors, const at::Tensor& tokens,
                       const at::Tensor& rows) {
  const HiddenStates states(hidden, vectors);
  const int64_t *token = tokens.const_data_ptr<int64_t>(), *row = rows.const_data_ptr<int64_t>();
  const float* from = hidden.const_data_ptr<float>();
  at::Tensor out = at::empty({tokens.size(0)}, hidden.options());
  float* to = out.mutable_data_ptr<float>();
  share(tokens.size(0), states.size, [&](int64_t i) {
    to[i] = product(from + token[i] * states.stride, states.vector(row[i]), states.size);
  });
  return out;
}

}  // namespace tiller
