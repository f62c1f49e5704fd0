// Attention of a whole batch: storing its keys and values, and sharing its queries among threads.
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

// Where a batch's tokens and their sequences' contexts lie.
struct Paging {
  const at::Tensor &slot_mapping, &block_tables, &cu_seqlens,
      &positions;  // int64, int32, int64, int64, as Attention has them
  int64_t block_size;

  int64_t tokens() const { return positions.size(0); }
  int64_t sequences() const { return block_tables.size(0); }

  void check() const {
    TORCH_CHECK(slot_mapping.scalar_type() == at::kLong && cu_seqlens.scalar_type() == at::kLong &&
                    positions.scalar_type() == at::kLong && block_tables.scalar_type() == at::kInt,
                "int64 and int32 expected");
    TORCH_CHECK(cu_seqlens.size(0) == sequences() + 1 && slot_mapping.size(0) == tokens(),
                "a batch of another shape");
  }
};

// Copies each token's heads to its slot.
inline void store_tokens(const float* from, int64_t head_stride, int64_t token_stride, int64_t tokens,
                         int64_t heads, int64_t size, const int64_t* slots, float* cache) {
  for (int64_t t = 0; t < tokens; t++) {
    for (int64_t h = 0; h < heads; h++) {
      std::memcpy(cache + (slots[t] * heads + h) * size, from + h * head_stride + t * token_stride,
                  size * sizeof(float));
    }
  }
}

// What one thread does at a time: some tokens of a sequence, and the queries of some of its key heads.
struct Piece {
  int64_t sequence, token, tokens, first_head, last_head;
};

inline std::vector<Piece> cut(const Attention& a, int64_t sequences) {
  const int64_t tile = std::max<int64_t>(1, kTileRows / a.shared());
  // Whole sequences, whose keys lie side by side, unless there are too few to share out.
  const int64_t heads = sequences >= 2 * at::get_num_threads() ? a.kv_heads : 1;
  std::vector<Piece> pieces;
  for (int64_t s = 0; s < sequences; s++) {
    const int64_t end = a.cu_seqlens[s + 1];
    const bool single = end - a.cu_seqlens[s] == 1;
    const int64_t width = single ? heads : 1;
    for (int64_t head = 0; head < a.kv_heads; head += width) {
      for (int64_t token = a.cu_seqlens[s]; token < end; token += tile)
        pieces.push_back({s, token, std::min(tile, end - token), head, head + width});
    }
  }
  return pieces;
}

inline void attend_all(const Attention& a, int64_t sequences) {
  const std::vector<Piece> pieces = cut(a, sequences);
  const auto count = static_cast<int64_t>(pieces.size());
  share(count, kMinParallelWork, [&](int64_t i) {
    // The last pieces of a sequence look back on most: they come first.
    const Piece& piece = pieces[count - 1 - i];
    if (a.cu_seqlens[piece.sequence + 1] - a.cu_seqlens[piece.sequence] == 1) {
      attend_single(a, piece.sequence, piece.first_head, piece.last_head);
    } else {
      Tile(a, piece.token, piece.tokens, piece.first_head).attend(piece.sequence);
    }
  });
}

}  // namespace tiller
