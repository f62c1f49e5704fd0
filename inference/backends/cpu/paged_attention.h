// Attention over keys and values in the blocks of a paged KV cache: what single tokens and chunks have in
// common, and attention of single tokens. The cache is float32 or float16; everything is computed in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "floats.h"
#include "softmax.h"

namespace tiller {

// The arguments of attention for a batch. It owns no memory. Element: of the KV cache, float or c10::Half.
template <typename Element>
struct Attention {
  const float* queries;         // [tokens, heads, size], by the strides below; heads are contiguous
  const Element* keys;          // [slots, kv_heads, size]
  const Element* values;        // [slots, kv_heads, value_size]
  const int32_t* block_tables;  // [sequences, max_blocks]
  const int64_t* cu_seqlens;    // [sequences + 1]: first token of each sequence, and the end
  const int64_t* positions;     // [tokens], consecutive within a sequence
  float* out;                   // [tokens, heads, value_size]
  int64_t head_stride, token_stride, heads, kv_heads, size, value_size, max_blocks, block_size;
  Scoring scoring;

  int64_t heads_per_kv_head() const { return heads / kv_heads; }  // query heads per KV head
};

constexpr int kMostHeads =
    3;  // that read a key or value together; their sums for four keys stay in registers

// out[h][j] = the product of query h with rows[j], for four keys. queries: [kHeads, size], by the stride. The
// sums are independent, so additions need not wait for each other.
template <int kHeads, typename Element>
inline void multiply_four(const float* queries, int64_t stride, const Element* const (&rows)[4], int64_t size,
                          float* const (&out)[kHeads]) {
  Floats sums[kHeads][4] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    Floats parts[kHeads];
    for (int h = 0; h < kHeads; h++) parts[h] = load(queries + h * stride + i);
    for (int j = 0; j < 4; j++) {
      const Floats key = load(rows[j] + i);
      for (int h = 0; h < kHeads; h++) sums[h][j] = multiply_add(parts[h], key, sums[h][j]);
    }
  }
#pragma GCC unroll 4  // else compilers would store all sums after each addition
  for (int h = 0; h < kHeads; h++) add_up(sums[h][0], sums[h][1], sums[h][2], sums[h][3], out[h]);
  for (; i < size; i++) {
    for (int h = 0; h < kHeads; h++) {
      for (int j = 0; j < 4; j++)
        out[h][j] = multiply_add(queries[h * stride + i], static_cast<float>(rows[j][i]), out[h][j]);
    }
  }
}

// Returns the slots of a sequence's positions from `first` to `last`, both included.
template <typename Element>
inline std::vector<int64_t> find_slots(const Attention<Element>& a, int64_t sequence, int64_t first,
                                       int64_t last) {
  const int32_t* blocks = a.block_tables + sequence * a.max_blocks;
  std::vector<int64_t> slots(last - first + 1);
  for (int64_t position = first; position <= last;) {
    const int64_t block = position / a.block_size, end = std::min(last + 1, (block + 1) * a.block_size);
    const int64_t offset = (blocks[block] - block) * a.block_size;
    for (; position < end; position++) slots[position - first] = position + offset;
  }
  return slots;
}

// Prefetches `size` elements of each of `count` slots, since the processor cannot predict where blocks are.
template <typename Element>
inline void prefetch(const Element* cache, const int64_t* slots, int64_t count, int64_t stride,
                     int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(Element);
  for (int64_t j = 0; j < count; j++) {
    const Element* row = cache + slots[j] * stride;
    for (int64_t i = 0; i < size; i += kLine) __builtin_prefetch(row + i, 0, 2);
  }
}

// sums [kHeads, kWides * kWideLanes] += weights [kHeads, kKeys] * the `count` rows from dimension `offset`
// on. stride: from head to head of the sums
template <int kHeads, int kWides, typename Element>
inline void add_values(const Element* const* rows, int64_t offset, int64_t count,
                       const float (&weights)[kHeads][kKeys], float* sums, int64_t stride) {
  Wide partial[kHeads][kWides];
  for (int h = 0; h < kHeads; h++)
    for (int v = 0; v < kWides; v++) partial[h][v] = load_wide(sums + h * stride + v * kWideLanes);
  for (int64_t j = 0; j < count; j++) {
    for (int v = 0; v < kWides; v++) {
      Wide value = load_wide(rows[j] + offset + v * kWideLanes);
      keep(value);
      for (int h = 0; h < kHeads; h++) partial[h][v] = multiply_add(weights[h][j], value, partial[h][v]);
    }
  }
  for (int h = 0; h < kHeads; h++)
    for (int v = 0; v < kWides; v++) store_wide(sums + h * stride + v * kWideLanes, partial[h][v]);
}

// Up to kKeys keys and values of one KV head, from position `start` on.
template <typename Element>
struct KeyRows {
  int64_t start, count;
  const Element *keys[kKeys], *values[kKeys];
};

// One step of attention for kHeads query heads at `position` that share the rows' KV head. queries: [kHeads,
// size], by the head stride. Updates the softmax of each head, and the sums [kHeads, value_size] of weighted
// values.
template <int kHeads, typename Element>
inline void attend_keys(const Attention<Element>& a, int64_t position, const KeyRows<Element>& rows,
                        const float* queries, Head* heads, float* sums) {
  float weights[kHeads][kKeys] = {};
  for (int64_t j = 0; j < rows.count; j += 4) {
    const Element* four[4];  // repeats the last key up to four; the extra products are not visible
    for (int64_t i = 0; i < 4; i++) four[i] = rows.keys[std::min(j + i, rows.count - 1)];
    float* out[kHeads];
    for (int h = 0; h < kHeads; h++) out[h] = weights[h] + j;
    multiply_four<kHeads>(queries, a.head_stride, four, a.size, out);
  }
  for (int h = 0; h < kHeads; h++) {
    const float shrink = weigh_keys(a.scoring, position, rows.start, weights[h], heads[h]);
    for (int64_t i = 0; i < a.value_size; i++) sums[h * a.value_size + i] *= shrink;
  }
  constexpr int kWides = 4;
  int64_t i = 0;
  for (; i + kWides * kWideLanes <= a.value_size; i += kWides * kWideLanes)
    add_values<kHeads, kWides>(rows.values, i, rows.count, weights, sums + i, a.value_size);
  for (; i + kWideLanes <= a.value_size; i += kWideLanes)
    add_values<kHeads, 1>(rows.values, i, rows.count, weights, sums + i, a.value_size);
  for (; i < a.value_size; i++) {
    for (int h = 0; h < kHeads; h++) {
      float& sum = sums[h * a.value_size + i];
      for (int64_t j = 0; j < rows.count; j++)
        sum = multiply_add(weights[h][j], static_cast<float>(rows.values[j][i]), sum);
    }
  }
}

// The same for any number of heads, some at a time.
template <typename Element>
inline void attend_keys(const Attention<Element>& a, int64_t position, const KeyRows<Element>& rows,
                        const float* queries, int64_t count, Head* heads, float* sums) {
  for (int64_t h = 0; h < count; h += kMostHeads) {
    const float* some = queries + h * a.head_stride;
    float* out = sums + h * a.value_size;
    if (count - h >= 3) attend_keys<3>(a, position, rows, some, heads + h, out);
    if (count - h == 2) attend_keys<2>(a, position, rows, some, heads + h, out);
    if (count - h == 1) attend_keys<1>(a, position, rows, some, heads + h, out);
  }
}

// The slots that the only new token of a sequence attends to. The first one is that of position `first`, a
// multiple of kKeys, so that every query gets its keys in the same steps.
struct Context {
  int64_t first, last;
  std::vector<int64_t> slots;

  // most: at most so many slots
  template <typename Element>
  Context(const Attention<Element>& a, int64_t sequence, int64_t most = std::numeric_limits<int32_t>::max())
      : first(0), last(a.positions[a.cu_seqlens[sequence]]) {
    first = a.scoring.first_visible(last) / kKeys * kKeys;
    slots = find_slots(a, sequence, first, std::min(last, first + most - 1));
  }

  int64_t length() const { return static_cast<int64_t>(slots.size()); }
};

// Attends for the only token of a sequence, with the query heads that share the KV heads [begin, end).
// Prefetches the first keys and values that `following`, another sequence with one token, needs; -1: none.
template <typename Element>
inline void attend_single(const Attention<Element>& a, int64_t sequence, int64_t begin, int64_t end,
                          int64_t following) {
  const int64_t shared = a.heads_per_kv_head(), token = a.cu_seqlens[sequence];
  const Context context(a, sequence);
  const std::vector<int64_t>& slots = context.slots;
  const int64_t length = context.length(), first = context.first, last = context.last;
  const std::vector<int64_t> others =
      following < 0 ? std::vector<int64_t>() : Context(a, following, kKeys).slots;
  const float* query = a.queries + token * a.token_stride;
  float* out = a.out + token * a.heads * a.value_size;
  const int64_t key_stride = a.kv_heads * a.size, value_stride = a.kv_heads * a.value_size;
  std::vector<Head> heads(a.heads);
  std::fill(out + begin * shared * a.value_size, out + end * shared * a.value_size, 0.0f);
  for (int64_t start = 0; start < length; start += kKeys) {
    const int64_t count = std::min(kKeys, length - start);
    const bool is_last = start + count == length;
    const int64_t* next = is_last ? others.data() : slots.data() + start + count;
    const int64_t ahead =
        is_last ? static_cast<int64_t>(others.size()) : std::min(kKeys, length - start - count);
    for (int64_t kv_head = begin; kv_head < end; kv_head++) {
      const Element *keys = a.keys + kv_head * a.size, *values = a.values + kv_head * a.value_size;
      // One KV head at a time: the processor cannot wait for all of these lines at once.
      prefetch(keys, next, ahead, key_stride, a.size);
      prefetch(values, next, ahead, value_stride, a.value_size);
      KeyRows<Element> rows{.start = first + start, .count = count};
      for (int64_t j = 0; j < count; j++) {
        rows.keys[j] = keys + slots[start + j] * key_stride;
        rows.values[j] = values + slots[start + j] * value_stride;
      }
      const int64_t h = kv_head * shared;
      attend_keys(a, last, rows, query + h * a.head_stride, shared, &heads[h], out + h * a.value_size);
    }
  }
  for (int64_t h = begin * shared; h < end * shared; h++) {
    for (int64_t i = 0; i < a.value_size; i++) out[h * a.value_size + i] /= heads[h].total;
  }
}

}  // namespace tiller
