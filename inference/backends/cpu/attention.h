// Attention for a whole batch: stores keys and values, and shares the queries among threads.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "chunk_attention.h"
#include "paged_attention.h"
#include "parallel.h"

namespace tiller {

// The positions and slots of a batch's tokens, and the blocks of its sequences.
struct Paging {
  const at::Tensor& slot_mapping;  // int64 [tokens]: where each token's key and value are stored
  const at::Tensor& block_tables;  // int32 [sequences, max_blocks]
  const at::Tensor& cu_seqlens;    // int64 [sequences + 1]: first token of each sequence, and the end
  const at::Tensor& positions;     // int64 [tokens]
  int64_t block_size;              // slots per block

  int64_t tokens() const { return positions.size(0); }
  int64_t sequences() const { return block_tables.size(0); }

  void check() const {
    TORCH_CHECK(slot_mapping.scalar_type() == at::kLong && cu_seqlens.scalar_type() == at::kLong &&
                    positions.scalar_type() == at::kLong && block_tables.scalar_type() == at::kInt,
                "slot_mapping, cu_seqlens and positions must be int64, and block_tables int32");
    TORCH_CHECK(cu_seqlens.size(0) == sequences() + 1 && slot_mapping.size(0) == tokens(), "the batch has ",
                sequences(), " block tables and ", tokens(), " positions, but ", cu_seqlens.size(0),
                " entries of cu_seqlens and ", slot_mapping.size(0), " slots");
  }
};

// Copies the heads of a token to its slot. from: [heads, size], by the stride; to: [heads, size], contiguous.
// Rounds to the elements of the cache.
template <typename Element>
inline void store_token(const float* from, int64_t head_stride, int64_t heads, int64_t size, Element* to) {
  for (int64_t h = 0; h < heads; h++) copy(from + h * head_stride, size, to + h * size);
}

// What one thread computes at a time: `tokens` tokens of a sequence from `token` on, with the query heads
// that share the KV heads [first_head, end_head).
struct WorkItem {
  int64_t sequence, token, tokens, first_head, end_head;
};

// Cuts the batch into work items, ordered by sequence and KV head. The last tokens of a sequence have the
// longest contexts, so they come first.
template <typename Element>
inline std::vector<WorkItem> split_work(const Attention<Element>& a, int64_t sequences) {
  const int64_t tile = std::max<int64_t>(1, kTileRows / a.heads_per_kv_head());
  // A single token's item has all KV heads, whose keys are adjacent, unless there are too few sequences for
  // the threads.
  const int64_t heads = sequences >= 2 * at::get_num_threads() ? a.kv_heads : 1;
  std::vector<WorkItem> items;
  for (int64_t s = 0; s < sequences; s++) {
    const int64_t end = a.cu_seqlens[s + 1];
    const bool single = end - a.cu_seqlens[s] == 1;
    const int64_t width = single ? heads : 1;
    for (int64_t head = 0; head < a.kv_heads; head += width) {
      for (int64_t last = end, first; last > a.cu_seqlens[s]; last = first) {
        first = std::max(a.cu_seqlens[s], last - tile);
        items.push_back({s, first, last - first, head, head + width});
      }
    }
  }
  return items;
}

// Attends for all tokens of the batch, after their keys and values have been stored.
template <typename Element>
inline void attend_all(const Attention<Element>& a, int64_t sequences) {
  const std::vector<WorkItem> items = split_work(a, sequences);
  const auto count = static_cast<int64_t>(items.size());
  const auto is_single = [&](const WorkItem& item) {
    return a.cu_seqlens[item.sequence + 1] - a.cu_seqlens[item.sequence] == 1;
  };
  share(count, kMinParallelWork, [&](int64_t i) {
    const WorkItem& item = items[i];
    if (is_single(item)) {
      const WorkItem* next = i + 1 < count ? &items[i + 1] : nullptr;
      const bool follows = next != nullptr && is_single(*next) && next->first_head == item.first_head;
      attend_single(a, item.sequence, item.first_head, item.end_head, follows ? next->sequence : -1);
    } else {
      Tile<Element>(a, item.token, item.tokens, item.first_head).attend(item.sequence);
    }
  });
}

// The keys and values that a batch adds to the cache, and its queries. See paged_attention in kernels.cpp.
struct Queries {
  const float *queries, *keys, *values;  // [tokens, heads, size], by the strides; heads are contiguous
  int64_t query_head_stride, query_token_stride, key_head_stride, key_token_stride, value_head_stride,
      value_token_stride;
  int64_t heads;
};

template <typename Element>
inline void store_and_attend(const Queries& q, const at::Tensor& key_cache, const at::Tensor& value_cache,
                             const Paging& paging, const Scoring& scoring, float* out) {
  const int64_t kv_heads = key_cache.size(1), size = key_cache.size(2), value_size = value_cache.size(2);
  const int64_t* slots = paging.slot_mapping.const_data_ptr<int64_t>();
  auto *keys = key_cache.mutable_data_ptr<Element>(), *values = value_cache.mutable_data_ptr<Element>();
  share(paging.tokens(), kCopyCost * kv_heads * (size + value_size), [&](int64_t t) {
    store_token(q.keys + t * q.key_token_stride, q.key_head_stride, kv_heads, size,
                keys + slots[t] * kv_heads * size);
    store_token(q.values + t * q.value_token_stride, q.value_head_stride, kv_heads, value_size,
                values + slots[t] * kv_heads * value_size);
  });
  attend_all(
      Attention<Element>{
          .queries = q.queries,
          .keys = keys,
          .values = values,
          .block_tables = paging.block_tables.const_data_ptr<int32_t>(),
          .cu_seqlens = paging.cu_seqlens.const_data_ptr<int64_t>(),
          .positions = paging.positions.const_data_ptr<int64_t>(),
          .out = out,
          .head_stride = q.query_head_stride,
          .token_stride = q.query_token_stride,
          .heads = q.heads,
          .kv_heads = kv_heads,
          .size = size,
          .value_size = value_size,
          .max_blocks = paging.block_tables.size(1),
          .block_size = paging.block_size,
          .scoring = scoring,
      },
      paging.sequences());
}

// Stores the keys and values of all tokens. Then each query attends to the slots of its own sequence, up to
// its own position. key_cache: [slots, kv_heads, size], value_cache: [slots, kv_heads, value_size], both
// float32 or both float16. out: [tokens, heads, value_size].
inline void store_and_attend(const Queries& q, const at::Tensor& key_cache, const at::Tensor& value_cache,
                             const Paging& paging, const Scoring& scoring, float* out) {
  TORCH_CHECK(key_cache.is_contiguous() && value_cache.is_contiguous() &&
                  key_cache.scalar_type() == value_cache.scalar_type(),
              "the caches of keys and values must be contiguous, and have the same dtype");
  if (key_cache.scalar_type() == at::kHalf) {
    store_and_attend<c10::Half>(q, key_cache, value_cache, paging, scoring, out);
  } else {
    store_and_attend<float>(q, key_cache, value_cache, paging, scoring, out);
  }
}

}  // namespace tiller
