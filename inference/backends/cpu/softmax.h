// The online softmax of attention (Milakov and Gimelshein, arXiv:1805.02867).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "elementwise.h"
#include "floats.h"

namespace tiller {

constexpr int64_t kKeys = 32;  // keys per step of the online softmax
constexpr int64_t kKeyVectors = kKeys / kLanes;

// How products become scores, and which keys a query can see.
struct Scoring {
  float scale, softcap;  // softcap: 0 means none
  int64_t window;        // 0 means none

  // The first position that a query at `position` can see.
  int64_t first_visible(int64_t position) const {
    return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
  }
};

// The state of a query's online softmax: the highest score so far, and the sum of the weights so far.
struct Head {
  float highest = -std::numeric_limits<float>::infinity();
  float total = 0;
};

// Replaces the products in x [kKeys] by scores.
inline void score(const Scoring& scoring, float* x) {
  for (int64_t v = 0; v < kKeys; v += kLanes) store(x + v, load(x + v) * scoring.scale);
  if (scoring.softcap > 0) {
    for (int64_t j = 0; j < kKeys; j++) x[j] = std::tanh(x[j] / scoring.softcap) * scoring.softcap;
  }
}

// e^x for each lane, see exp_negative.
inline Floats exp_all(Floats x) {
  Floats powers;
#pragma omp simd
  for (int64_t i = 0; i < kLanes; i++) powers[i] = exp_negative(x[i]);
  return powers;
}

// One step of the online softmax. `weights` holds the products of a query at `position` with the kKeys keys
// from position `start` on. They are replaced by the weights e^(score - highest); keys that the query cannot
// see get weight 0. Returns the factor for the values that were added up before. Not inlined, so that it
// rounds alike for single tokens and chunks.
[[gnu::noinline]] inline float weigh_keys(const Scoring& scoring, int64_t position, int64_t start,
                                          float* weights, Head& head) {
  constexpr float kInvisible = -std::numeric_limits<float>::infinity();
  const int64_t begin = std::clamp<int64_t>(scoring.first_visible(position) - start, 0, kKeys);
  const int64_t end = std::clamp<int64_t>(position + 1 - start, begin, kKeys);
  score(scoring, weights);
  for (int64_t j = 0; j < begin; j++) weights[j] = kInvisible;
  for (int64_t j = end; j < kKeys; j++) weights[j] = kInvisible;
  Floats highest = load(weights);
  for (int64_t v = kLanes; v < kKeys; v += kLanes) highest = higher(highest, load(weights + v));
  const float top = std::max(head.highest, highest_of(highest));
  const float shrink = std::isinf(head.highest) ? 0.0f : exp_negative(head.highest - top);
  Floats powers[kKeyVectors];
  for (int64_t v = 0; v < kKeyVectors; v++) {
    powers[v] = exp_all(load(weights + v * kLanes) - top);
    store(weights + v * kLanes, powers[v]);
  }
  // e^-infinity would not be exactly 0.
  for (int64_t j = 0; j < begin; j++) weights[j] = 0;
  for (int64_t j = end; j < kKeys; j++) weights[j] = 0;
  Floats total = load(weights);
  for (int64_t v = kLanes; v < kKeys; v += kLanes) total += load(weights + v);
  head.highest = top;
  head.total = head.total * shrink + add_up(total);
  return shrink;
}

}  // namespace tiller
