// Attention for several tokens of one sequence: a prompt, or a chunk of it. The result of a query does not
// depend on which other queries are computed with it. It equals the result of attend_single bit for bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "floats.h"
#include "paged_attention.h"
#include "softmax.h"

namespace tiller {

constexpr int64_t kTileRows = 48;  // queries of a tile: tokens times query heads per KV head
constexpr int kRowsAtOnce = kWideLanes == 16 ? 6 : 3;  // queries; their sums stay in registers
constexpr int kVectors = kKeys / kWideLanes;
static_assert(kTileRows % kRowsAtOnce == 0);

using Sums = Wide[kRowsAtOnce][kVectors];

// sums [kRowsAtOnce, kKeys] += left [kRowsAtOnce, depth] * right [depth, kKeys], for every `step`-th k of the
// depth from `first` on. right(k) returns a row.
template <typename Right>
inline void add_products(const float* left, int64_t left_stride, int64_t first, int64_t depth, int64_t step,
                         const Right& right, Sums& sums) {
  Sums registers;  // compilers would store sums after each addition
  for (int r = 0; r < kRowsAtOnce; r++)
    for (int v = 0; v < kVectors; v++) registers[r][v] = sums[r][v];
  for (int64_t k = first; k < depth; k += step) {
    const float* row = right(k);
    for (int v = 0; v < kVectors; v++) {
      Wide part = load_wide(row + v * kWideLanes);
      keep(part);
      for (int r = 0; r < kRowsAtOnce; r++)
        registers[r][v] = multiply_add(left[r * left_stride + k], part, registers[r][v]);
    }
  }
  for (int r = 0; r < kRowsAtOnce; r++)
    for (int v = 0; v < kVectors; v++) sums[r][v] = registers[r][v];
}

// sums += others
inline void add(Sums& sums, const Sums& others) {
  for (int r = 0; r < kRowsAtOnce; r++)
    for (int v = 0; v < kVectors; v++) sums[r][v] += others[r][v];
}

// sums += the products of kRowsAtOnce queries with kKeys keys, without the last size % kLanes dimensions.
// Adds in the order of multiply_four: first within each of the 2^kLevel lanes from `lane` on, then lanes in
// pairs.
template <int kLevel = 3, typename Key>
inline void multiply_lanes(const float* queries, int64_t size, int64_t lane, const Key& key, Sums& sums) {
  if constexpr (kLevel == 0) {
    add_products(queries, size, lane, size / kLanes * kLanes, kLanes, key, sums);
  } else {
    Sums others = {};
    multiply_lanes<kLevel - 1>(queries, size, lane, key, sums);
    multiply_lanes<kLevel - 1>(queries, size, lane + (1 << (kLevel - 1)), key, others);
    add(sums, others);
  }
}

// The queries of `tokens` tokens of a sequence, from `token` on, that share one KV head. A row is one query
// head of one token.
template <typename Element>
class Tile {
 public:
  Tile(const Attention<Element>& a, int64_t token, int64_t tokens, int64_t kv_head)
      : a_(a),
        token_(token),
        tokens_(tokens),
        kv_head_(kv_head),
        rows_(tokens * a.heads_per_kv_head()),
        padded_rows_((rows_ + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce),
        padded_value_((a.value_size + kKeys - 1) / kKeys * kKeys),
        queries_(padded_rows_ * a.size),
        keys_(a.size * kKeys),
        values_(kKeys * padded_value_),
        weights_(padded_rows_ * kKeys),
        sums_(padded_rows_ * padded_value_),
        heads_(rows_) {
    for (int64_t r = 0; r < rows_; r++) {
      const float* query = a.queries + token_of(r) * a.token_stride + head_of(r) * a.head_stride;
      std::memcpy(queries_.data() + r * a.size, query, a.size * sizeof(float));
    }
  }

  // Attends to the keys of the sequence, which must be that of the tokens. Writes to Attention::out.
  void attend(int64_t sequence) {
    const int64_t last = a_.positions[token_ + tokens_ - 1];
    // Steps start at multiples of kKeys, so that every query gets its keys in the same steps.
    const int64_t first = a_.scoring.first_visible(a_.positions[token_]) / kKeys * kKeys;
    const std::vector<int64_t> slots = find_slots(a_, sequence, first, last);
    const auto length = static_cast<int64_t>(slots.size());
    for (int64_t start = 0; start < length; start += kKeys) {
      gather(slots.data() + start, std::min(kKeys, length - start));
      multiply_keys();
      for (int64_t r = 0; r < rows_; r++) weigh_row(r, first + start);
      add_values();
    }
    for (int64_t r = 0; r < rows_; r++) {
      float* out = a_.out + (token_of(r) * a_.heads + head_of(r)) * a_.value_size;
      for (int64_t i = 0; i < a_.value_size; i++) out[i] = sums_[r * padded_value_ + i] / heads_[r].total;
    }
  }

 private:
  int64_t token_of(int64_t row) const { return token_ + row / a_.heads_per_kv_head(); }
  int64_t head_of(int64_t row) const {
    return kv_head_ * a_.heads_per_kv_head() + row % a_.heads_per_kv_head();
  }

  // Copies the keys (transposed) and values of `count` <= kKeys slots to keys_ and values_. The rest is zero.
  void gather(const int64_t* slots, int64_t count) {
    if (count < kKeys) {
      std::fill(keys_.begin(), keys_.end(), 0.0f);
      std::fill(values_.begin(), values_.end(), 0.0f);
    }
    for (int64_t j = 0; j < count; j++)
      copy(a_.values + head_in(slots[j]) * a_.value_size, a_.value_size, values_.data() + j * padded_value_);
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) gather_keys(slots + j, j);
    for (; j < count; j++) gather_key(slots[j], j, 0);
  }

  // The index of this tile's KV head among those of all slots.
  int64_t head_in(int64_t slot) const { return slot * a_.kv_heads + kv_head_; }

  // Copies the keys of kLanes slots to the columns of keys_ from `column` on.
  void gather_keys(const int64_t* slots, int64_t column) {
    int64_t i = 0;
    for (; i + kLanes <= a_.size; i += kLanes) {
      Floats square[kLanes];
      for (int64_t j = 0; j < kLanes; j++) square[j] = load(a_.keys + head_in(slots[j]) * a_.size + i);
      transpose(square);
      for (int64_t j = 0; j < kLanes; j++) store(keys_.data() + (i + j) * kKeys + column, square[j]);
    }
    for (int64_t j = 0; j < kLanes; j++) gather_key(slots[j], column + j, i);
  }

  // Copies the dimensions of a key from `first` on to a column of keys_.
  void gather_key(int64_t slot, int64_t column, int64_t first) {
    const Element* key = a_.keys + head_in(slot) * a_.size;
    for (int64_t i = first; i < a_.size; i++) keys_[i * kKeys + column] = static_cast<float>(key[i]);
  }

  // weights_ = the products of all queries with keys_.
  void multiply_keys() {
    const auto key = [&](int64_t i) { return keys_.data() + i * kKeys; };
    for (int64_t r = 0; r < padded_rows_; r += kRowsAtOnce) {
      const float* queries = queries_.data() + r * a_.size;
      Sums sums = {};
      multiply_lanes(queries, a_.size, 0, key, sums);
      add_products(queries, a_.size, a_.size / kLanes * kLanes, a_.size, 1, key, sums);
      for (int i = 0; i < kRowsAtOnce; i++)
        for (int v = 0; v < kVectors; v++)
          store_wide(weights_.data() + (r + i) * kKeys + v * kWideLanes, sums[i][v]);
    }
  }

  // Replaces a row's products in weights_ by weights. The first key is that of position `start`.
  void weigh_row(int64_t row, int64_t start) {
    const float shrink = weigh_keys(a_.scoring, a_.positions[token_of(row)], start,
                                    weights_.data() + row * kKeys, heads_[row]);
    if (shrink == 1.0f) return;
    float* sum = sums_.data() + row * padded_value_;
    for (int64_t i = 0; i < padded_value_; i++) sum[i] *= shrink;
  }

  // sums_ += weights_ * values_
  void add_values() {
    for (int64_t column = 0; column < padded_value_; column += kKeys) {
      const auto value = [&](int64_t j) { return values_.data() + j * padded_value_ + column; };
      for (int64_t r = 0; r < padded_rows_; r += kRowsAtOnce) {
        float* out = sums_.data() + r * padded_value_ + column;
        Sums sums;
        for (int i = 0; i < kRowsAtOnce; i++)
          for (int v = 0; v < kVectors; v++) sums[i][v] = load_wide(out + i * padded_value_ + v * kWideLanes);
        add_products(weights_.data() + r * kKeys, kKeys, 0, kKeys, 1, value, sums);
        for (int i = 0; i < kRowsAtOnce; i++)
          for (int v = 0; v < kVectors; v++) store_wide(out + i * padded_value_ + v * kWideLanes, sums[i][v]);
      }
    }
  }

  const Attention<Element>& a_;
  int64_t token_, tokens_, kv_head_, rows_;
  int64_t padded_rows_, padded_value_;  // rows_ and value_size, rounded up to kRowsAtOnce and kKeys
  std::vector<float> queries_;          // [padded rows, size]
  std::vector<float> keys_;             // [size, kKeys]
  std::vector<float> values_;           // [kKeys, padded value]
  std::vector<float> weights_;          // [padded rows, kKeys]
  std::vector<float> sums_;             // [padded rows, padded value]
  std::vector<Head> heads_;             // [rows]
};

}  // namespace tiller
