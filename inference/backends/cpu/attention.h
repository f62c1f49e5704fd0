// Attention for a whole batch: stores keys and values, and shares the queries among threads.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
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

// Copies the heads of each token to the token's slot. from: [tokens, heads, size], by the strides; slots:
// [tokens]; cache: [slots, heads, size], contiguous.
inline void store_tokens(const float* from, int64_t head_stride, int64_t token_stride, int64_t tokens,
                         int64_t heads, int64_t size, const int64_t* slots, float* cache) {
  for (int64_t t = 0; t < tokens; t++) {
    for (int64_t h = 0; h < heads; h++) {
      std::memcpy(cache + (slots[t] * heads + h) * size, from + h * head_stride + t * token_stride,
                  size * sizeof(float));
    }
  }
}

// What one thread computes at a time: `tokens` tokens of a sequence from `token` on, with the query heads
// that share the KV heads [first_head, end_head).
struct WorkItem {
  int64_t sequence, token, tokens, first_head, end_head;
};

// Cuts the batch into work items, ordered by sequence, KV head and token.
inline std::vector<WorkItem> split_work(const Attention& a, int64_t sequences) {
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
      for (int64_t token = a.cu_seqlens[s]; token < end; token += tile)
        items.push_back({s, token, std::min(tile, end - token), head, head + width});
    }
  }
  return items;
}

// Attends for all tokens of the batch, after their keys and values have been stored.
inline void attend_all(const Attention& a, int64_t sequences) {
  const std::vector<WorkItem> items = split_work(a, sequences);
  const auto count = static_cast<int64_t>(items.size());
  share(count, kMinParallelWork, [&](int64_t i) {
    // The last items of a sequence have the longest contexts: they come first.
    const WorkItem& item = items[count - 1 - i];
    if (a.cu_seqlens[item.sequence + 1] - a.cu_seqlens[item.sequence] == 1) {
      attend_single(a, item.sequence, item.first_head, item.end_head);
    } else {
      Tile(a, item.token, item.tokens, item.first_head).attend(item.sequence);
    }
  });
}

}  // namespace tiller
