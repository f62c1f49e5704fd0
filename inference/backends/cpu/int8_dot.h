// Products of rows of int16 activations with columns of int8 weights. Each kGroup consecutive weights of a
// column, a group, have a float32 scale. The int32 sum of a group is exact. Scaled sums are added up in
// float32 in the order of the groups, so a result does not depend on what else is computed at the same time.
#pragma once

#include <cstdint>
#include <cstring>

#include "prefetch.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace tiller::int8 {

constexpr int kPanel = 16;  // columns that are interleaved in memory
constexpr int kPair = 2;    // consecutive weights of a column that are adjacent in memory
constexpr int kGroup = 32;  // weights of a column that share a scale
constexpr int kPairs = kGroup / kPair;

// One group of each column of a panel. Weight i of column c is values[i / kPair][c][i % kPair] * scales[c].
struct alignas(32) Weights {
  int8_t values[kPairs][kPanel][kPair];
  float scales[kPanel];
};

// One group of a row. The scale belongs to the whole row, and is kept elsewhere.
struct Activations {
  int16_t values[kGroup];
};

inline int32_t load_pair(const int16_t* from) {
  int32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return pair;
}

// How many groups ahead `dot` loads weights. For one or a few rows, processors do that well enough by
// themselves.
constexpr int kAhead = 8;

// Each variant below defines kTile, the most rows that `dot` can take, and
//   dot<kRows>(x [kRows, groups], groups, weights [groups] of a panel, out [kRows, kPanel]),
// which multiplies without the scales of the rows.

#if defined(__AVX512BW__)

constexpr int kTile = 12;

// sum + a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1], for int16 a and b, and int32 sums.
inline __m512i add_products(__m512i sum, __m512i a, __m512i b) {
#if defined(__AVX512VNNI__)
  return _mm512_dpwssd_epi32(sum, a, b);
#else
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}

template <int kRows>
void dot(const Activations* x, int64_t groups, const Weights* weights, float (&out)[kRows][kPanel]) {
  constexpr int kChains = kRows <= 4 ? 2 : 1;  // independent sums per row: two hide the latency of additions
  // The compiler must know all indices into `totals`. Else it keeps a copy of them in memory.
  __m512 totals[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) totals[r] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; g++) {
    const Weights& w = weights[g];
    if constexpr (kRows > 4) prefetch(weights + g + kAhead);
    __m512i sums[kChains][kRows];
    for (auto& chain : sums) {
      for (int r = 0; r < kRows; r++) chain[r] = _mm512_setzero_si512();
    }
#pragma GCC unroll 4
    for (int start = 0; start < kPairs; start += kChains) {
      for (int c = 0; c < kChains; c++) {
        const int pair = start + c;
        const auto* from = reinterpret_cast<const __m256i*>(w.values[pair]);
        const __m512i weight = _mm512_cvtepi8_epi16(_mm256_load_si256(from));
        for (int r = 0; r < kRows; r++) {
          const __m512i activation = _mm512_set1_epi32(load_pair(x[r * groups + g].values + pair * kPair));
          sums[c][r] = add_products(sums[c][r], activation, weight);
        }
      }
    }
    const __m512 scale = _mm512_loadu_ps(w.scales);
    for (int r = 0; r < kRows; r++) {
      __m512i sum = sums[0][r];
      for (int c = 1; c < kChains; c++) sum = _mm512_add_epi32(sum, sums[c][r]);
      totals[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, totals[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) _mm512_storeu_ps(out[r], totals[r]);
}

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int kTile = 6;

// sum += product. Assembly keeps the sums in registers and the additions in this order; compilers would spill
// the sums to memory.
inline void add(__m256i& sum, __m256i product) {
  asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
}

template <int kRows>
void dot(const Activations* x, int64_t groups, const Weights* weights, float (&out)[kRows][kPanel]) {
  std::memset(out, 0, sizeof out);
  for (int64_t g = 0; g < groups; g++) {
    const Weights& w = weights[g];
    if constexpr (kRows > 2) prefetch(weights + g + kAhead);
    __m256i low[kRows], high[kRows];
    for (int r = 0; r < kRows; r++) low[r] = high[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int pair = 0; pair < kPairs; pair++) {
      const auto* from = reinterpret_cast<const __m128i*>(w.values[pair]);
      const __m256i first = _mm256_cvtepi8_epi16(_mm_load_si128(from));
      const __m256i second = _mm256_cvtepi8_epi16(_mm_load_si128(from + 1));
      for (int r = 0; r < kRows; r++) {
        const __m256i activation = _mm256_set1_epi32(load_pair(x[r * groups + g].values + pair * kPair));
        add(low[r], _mm256_madd_epi16(activation, first));
        add(high[r], _mm256_madd_epi16(activation, second));
      }
    }
    const __m256 low_scale = _mm256_load_ps(w.scales), high_scale = _mm256_load_ps(w.scales + 8);
    for (int r = 0; r < kRows; r++) {
      float* total = out[r];
      _mm256_storeu_ps(total, _mm256_fmadd_ps(_mm256_cvtepi32_ps(low[r]), low_scale, _mm256_loadu_ps(total)));
      total += 8;
      _mm256_storeu_ps(total,
                       _mm256_fmadd_ps(_mm256_cvtepi32_ps(high[r]), high_scale, _mm256_loadu_ps(total)));
    }
  }
}

#else

constexpr int kTile = 4;

template <int kRows>
void dot(const Activations* x, int64_t groups, const Weights* weights, float (&out)[kRows][kPanel]) {
  std::memset(out, 0, sizeof out);
  for (int64_t g = 0; g < groups; g++) {
    const Weights& w = weights[g];
    int32_t sums[kRows][kPanel] = {};
    for (int pair = 0; pair < kPairs; pair++) {
      for (int r = 0; r < kRows; r++) {
        const int16_t* values = x[r * groups + g].values + pair * kPair;
        const int32_t first = values[0], second = values[1];
        for (int c = 0; c < kPanel; c++) {
          const int8_t* weight = w.values[pair][c];
          sums[r][c] += first * weight[0] + second * weight[1];
        }
      }
    }
    for (int r = 0; r < kRows; r++) {
      for (int c = 0; c < kPanel; c++) out[r][c] += static_cast<float>(sums[r][c]) * w.scales[c];
    }
  }
}

#endif

}  // namespace tiller::int8
