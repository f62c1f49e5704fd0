// Attention over keys and values in the blocks of a paged KV cache, all in float32: what single tokens and
// chunks have in common, and attention of single tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "elementwise.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace tiller {

constexpr int64_t kKeys = 32;  // keys per step of the online softmax
constexpr int64_t kDims = 32;  // dimensions of a value that are added up in registers

// The arguments of attention for a batch. It owns no memory.
struct Attention {
  const float* queries;         // [tokens, heads, size], by the strides below; heads are contiguous
  const float* keys;            // [slots, kv_heads, size]
  const float* values;          // [slots, kv_heads, value_size]
  const int32_t* block_tables;  // [sequences, max_blocks]
  const int64_t* cu_seqlens;    // [sequences + 1]: first token of each sequence, and the end
  const int64_t* positions;     // [tokens], consecutive within a sequence
  float* out;                   // [tokens, heads, value_size]
  int64_t head_stride, token_stride, heads, kv_heads, size, value_size, max_blocks, block_size;
  float scale, softcap;  // softcap: 0 means none
  int64_t window;        // 0 means none

  int64_t heads_per_kv_head() const { return heads / kv_heads; }  // query heads per KV head

  // The score of a key, from its product with the query.
  float score(float product) const {
    product *= scale;
    return softcap > 0 ? std::tanh(product / softcap) * softcap : product;
  }

  // The first position that a query at `position` can see.
  int64_t first_visible(int64_t position) const {
    return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
  }
};

// Eight floats. Compilers make much slower code of plain loops over a size that they do not know.
using Floats = float __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int64_t kLanes = 8;

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline void store(float* to, Floats values) { *reinterpret_cast<Floats*>(to) = values; }

// a * b + c, rounded once if the processor can. For a plain expression, compilers decide anew in each place
// whether to round the product, and equal queries would get different results.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline Floats multiply_add(float a, Floats b, Floats c) { return multiply_add(a - Floats{}, b, c); }

inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

// out[j] = the sum of the lanes of x[j], in pairs: (0 + 1) + (2 + 3), (4 + 5) + (6 + 7), then both.
inline void add_up(const Floats (&x)[4], float* out) {
#if defined(__AVX__)
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
#else
  for (int j = 0; j < 4; j++) {
    out[j] = ((x[j][0] + x[j][1]) + (x[j][2] + x[j][3])) + ((x[j][4] + x[j][5]) + (x[j][6] + x[j][7]));
  }
#endif
}

// out[j] = the product of a query with the key in slots[j], for four keys. The four sums are independent, so
// additions need not wait for each other. stride: from slot to slot.
inline void multiply_four(const float* query, const float* keys, int64_t stride, const int64_t* slots,
                          int64_t size, float* out) {
  const float* rows[4];
  Floats sums[4] = {};
  for (int j = 0; j < 4; j++) rows[j] = keys + slots[j] * stride;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Floats part = load(query + i);
    for (int j = 0; j < 4; j++) sums[j] = multiply_add(part, load(rows[j] + i), sums[j]);
  }
  add_up(sums, out);
  for (; i < size; i++) {
    for (int j = 0; j < 4; j++) out[j] = multiply_add(query[i], rows[j][i], out[j]);
  }
}

// Returns the slots of a sequence's positions from `first` to `last`, both included.
inline std::vector<int64_t> find_slots(const Attention& a, int64_t sequence, int64_t first, int64_t last) {
  const int32_t* blocks = a.block_tables + sequence * a.max_blocks;
  std::vector<int64_t> slots(last - first + 1);
  for (int64_t position = first; position <= last;) {
    const int64_t block = position / a.block_size, end = std::min(last + 1, (block + 1) * a.block_size);
    const int64_t offset = (blocks[block] - block) * a.block_size;
    for (; position < end; position++) slots[position - first] = position + offset;
  }
  return slots;
}

// Prefetches `size` floats of each of `count` slots, since the processor cannot predict where blocks are.
inline void prefetch(const float* cache, const int64_t* slots, int64_t count, int64_t stride, int64_t offset,
                     int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t j = 0; j < count; j++) {
    const float* row = cache + slots[j] * stride + offset;
    for (int64_t i = 0; i < size; i += kLine) __builtin_prefetch(row + i, 0, 2);
  }
}

// sum [kWidth] += weights[j] * the value in slots[j], for `count` slots.
template <int64_t kWidth>
inline void add_values(const float* values, int64_t stride, const int64_t* slots, int64_t count,
                       const float* weights, float* sum) {
  Floats partial[kWidth / kLanes];
  for (int64_t i = 0; i < kWidth / kLanes; i++) partial[i] = load(sum + i * kLanes);
  for (int64_t j = 0; j < count; j++) {
    const float* value = values + slots[j] * stride;
    for (int64_t i = 0; i < kWidth / kLanes; i++)
      partial[i] = multiply_add(weights[j], load(value + i * kLanes), partial[i]);
  }
  for (int64_t i = 0; i < kWidth / kLanes; i++) store(sum + i * kLanes, partial[i]);
}

// The state of a query's online softmax: the highest score so far, and the sum of the weights so far.
struct Head {
  float highest = -std::numeric_limits<float>::infinity();
  float total = 0;
};

// One step of the online softmax (Milakov and Gimelshein, arXiv:1805.02867). `weights` holds the products of
// a query at `position` with the kKeys keys from position `start` on. They are replaced by the weights
// e^(score - highest); keys that the query cannot see get weight 0. Returns the factor for the values that
// were added up before. Not inlined, so that it rounds alike for single tokens and chunks.
[[gnu::noinline]] inline float weigh_keys(const Attention& a, int64_t position, int64_t start, float* weights,
                                          Head& head) {
  const int64_t begin = std::clamp<int64_t>(a.first_visible(position) - start, 0, kKeys);
  const int64_t end = std::clamp<int64_t>(position + 1 - start, begin, kKeys);
  float top = head.highest;
  for (int64_t j = begin; j < end; j++) {
    weights[j] = a.score(weights[j]);
    top = std::max(top, weights[j]);
  }
  const float shrink = std::isinf(head.highest) ? 0.0f : exp_negative(head.highest - top);
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < kKeys; j++) {
    weights[j] = j >= begin && j < end ? exp_negative(weights[j] - top) : 0.0f;
    total += weights[j];
  }
  head.highest = top;
  head.total = head.total * shrink + total;
  return shrink;
}

// One step of attention for one query head: `count` <= kKeys keys in `slots`, from position `start` on.
// Updates the softmax `head` and the sum [value_size] of weighted values.
inline void attend_keys(const Attention& a, int64_t kv_head, int64_t position, int64_t start,
                        const int64_t* slots, int64_t count, const float* query, Head& head, float* sum) {
  const int64_t key_stride = a.kv_heads * a.size, value_stride = a.kv_heads * a.value_size;
  const float *keys = a.keys + kv_head * a.size, *values = a.values + kv_head * a.value_size;
  float weights[kKeys] = {};
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) multiply_four(query, keys, key_stride, slots + j, a.size, weights + j);
  if (j < count) {  // repeats the last slot up to four; the extra products are not visible
    int64_t four[4];
    for (int64_t i = 0; i < 4; i++) four[i] = slots[std::min(j + i, count - 1)];
    multiply_four(query, keys, key_stride, four, a.size, weights + j);
  }
  const float shrink = weigh_keys(a, position, start, weights, head);
  for (int64_t i = 0; i < a.value_size; i++) sum[i] *= shrink;
  int64_t i = 0;
  for (; i + kDims <= a.value_size; i += kDims)
    add_values<kDims>(values + i, value_stride, slots, count, weights, sum + i);
  for (; i + kLanes <= a.value_size; i += kLanes)
    add_values<kLanes>(values + i, value_stride, slots, count, weights, sum + i);
  for (; i < a.value_size; i++) {
    for (int64_t j = 0; j < count; j++)
      sum[i] = multiply_add(weights[j], values[slots[j] * value_stride + i], sum[i]);
  }
}

// Attends for the only token of a sequence, with the query heads that share the KV heads [begin, end).
inline void attend_single(const Attention& a, int64_t sequence, int64_t begin, int64_t end) {
  const int64_t shared = a.heads_per_kv_head(), token = a.cu_seqlens[sequence];
  const int64_t last = a.positions[token];
  // Steps start at multiples of kKeys, so that every query gets its keys in the same steps.
  const int64_t first = a.first_visible(last) / kKeys * kKeys;
  const std::vector<int64_t> slots = find_slots(a, sequence, first, last);
  const int64_t length = slots.size();
  const float* query = a.queries + token * a.token_stride;
  float* out = a.out + token * a.heads * a.value_size;
  std::vector<Head> heads(a.heads);
  std::fill(out + begin * shared * a.value_size, out + end * shared * a.value_size, 0.0f);
  for (int64_t start = 0; start < length; start += kKeys) {
    const int64_t count = std::min(kKeys, length - start), ahead = std::min(kKeys, length - start - count);
    const int64_t* next = slots.data() + start + count;
    prefetch(a.keys, next, ahead, a.kv_heads * a.size, begin * a.size, (end - begin) * a.size);
    prefetch(a.values, next, ahead, a.kv_heads * a.value_size, begin * a.value_size,
             (end - begin) * a.value_size);
    for (int64_t h = begin * shared; h < end * shared; h++) {
      attend_keys(a, h / shared, last, first + start, slots.data() + start, count, query + h * a.head_stride,
                  heads[h], out + h * a.value_size);
    }
  }
  for (int64_t h = begin * shared; h < end * shared; h++) {
    for (int64_t i = 0; i < a.value_size; i++) out[h * a.value_size + i] /= heads[h].total;
  }
}

}  // namespace tiller
