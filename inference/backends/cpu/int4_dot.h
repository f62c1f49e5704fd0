// Products of rows of int8 activations with columns of 4-bit weights. In each group of kGroup inputs
//   weight = minimum + step * level, with 0 <= level <= 15 and float16 minimum and step,
//   activation = middle + scale * value, with |value| <= 127 and float32 middle and scale,
// and the sum of the products of both is
//   minimum * sum(activation) + step * (scale * sum(value * level) + middle * sum(level)).
// The integer sums are exact. The rest is computed in float32, in the order of the groups, so a result does
// not depend on what else is computed at the same time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "prefetch.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace tiller::int4 {

constexpr int kPanel = 16;  // columns that are interleaved in memory
constexpr int kQuad = 4;    // consecutive weights of a column that are adjacent in memory
constexpr int kGroup = 32;  // weights of a column that share a minimum and a step
constexpr int kQuads = kGroup / kQuad;

// One group of each column of a panel. The level of weight i of column c < 8 is in the low four bits of
// levels[i / kQuad][c][i % kQuad]; the high four bits are the level of weight i of column c + 8.
struct alignas(32) Weights {
  uint8_t levels[kQuads][kPanel / 2][kQuad];
  uint16_t steps[kPanel], minima[kPanel];  // float16
  int16_t sums[kPanel];                    // of the levels of each column
};

// One group of a row.
struct Activations {
  float scale, middle, sum;  // sum: of middle + scale * value over the group
  int8_t values[kGroup];     // -127 to 127
};

inline int32_t load_quad(const int8_t* from) {
  int32_t quad;
  std::memcpy(&quad, from, sizeof quad);
  return quad;
}

// How many groups ahead `dot` loads weights. For one or a few rows, processors do that well enough by
// themselves.
constexpr int kAhead = 16;

// Each variant below defines kTile, the most rows that `dot` can take, and
//   dot<kRows>(x [kRows, groups], groups, weights [groups] of a panel, out [kRows, kPanel]).

#if defined(__AVX512BW__) && defined(__F16C__)

constexpr int kTile = 12;

// Adds the products of unsigned 8-bit levels and signed 8-bit values: with VNNI to an int32 sum of each four,
// else to an int16 sum of each two.
inline __m512i add_products(__m512i sum, __m512i levels, __m512i values) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(sum, levels, values);
#else
  return _mm512_add_epi16(sum, _mm512_maddubs_epi16(levels, values));  // at most 8 * 2 * 15 * 127 = 30480
#endif
}

// Makes int32 sums of each four products out of the result of add_products.
inline __m512i to_int32_sums(__m512i sum) {
#if defined(__AVX512VNNI__)
  return sum;
#else
  return _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
#endif
}

// The levels of a quad of all columns, as bytes [kPanel][kQuad].
inline __m512i load_levels(const Weights& w, int quad) {
  const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(w.levels[quad]));
  const __m512i all = _mm512_inserti64x4(_mm512_castsi256_si512(both), _mm256_srli_epi16(both, 4), 1);
  return _mm512_and_si512(all, _mm512_set1_epi8(15));
}

template <int kRows>
void dot(const Activations* x, int64_t groups, const Weights* weights, float (&out)[kRows][kPanel]) {
  // The compiler must know all indices into `totals`. Else it keeps a copy of them in memory.
  __m512 totals[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) totals[r] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; g++) {
    const Weights& w = weights[g];
    if constexpr (kRows > 4) prefetch(weights + g + kAhead);
    __m512i products[kRows];
    for (int r = 0; r < kRows; r++) products[r] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int quad = 0; quad < kQuads; quad++) {
      const __m512i levels = load_levels(w, quad);
      for (int r = 0; r < kRows; r++) {
        const __m512i values = _mm512_set1_epi32(load_quad(x[r * groups + g].values + quad * kQuad));
        products[r] = add_products(products[r], levels, values);
      }
    }
    const __m512 steps = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(w.steps)));
    const __m512 minima = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(w.minima)));
    const __m512 sums = _mm512_cvtepi32_ps(
        _mm512_cvtepi16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(w.sums))));
    for (int r = 0; r < kRows; r++) {
      const Activations& a = x[r * groups + g];
      const __m512 level_products =
          _mm512_fmadd_ps(_mm512_cvtepi32_ps(to_int32_sums(products[r])), _mm512_set1_ps(a.scale),
                          _mm512_mul_ps(_mm512_set1_ps(a.middle), sums));
      totals[r] = _mm512_fmadd_ps(_mm512_set1_ps(a.sum), minima, totals[r]);
      totals[r] = _mm512_fmadd_ps(level_products, steps, totals[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) _mm512_storeu_ps(out[r], totals[r]);
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

constexpr int kTile = 6;

// sum += product, of int16. Assembly keeps the sums in registers and the additions in this order; compilers
// would spill the sums to memory.
inline void add(__m256i& sum, __m256i product) {
  asm volatile("vpaddw %1, %0, %0" : "+x"(sum) : "x"(product));
}

// The factors of eight columns of a group, as float32. They are the same for all rows.
struct Columns {
  __m256 steps, minima, sums;

  Columns(const Weights& w, int first)
      : steps(_mm256_cvtph_ps(load(w.steps + first))),
        minima(_mm256_cvtph_ps(load(w.minima + first))),
        sums(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(load(w.sums + first)))) {}

  static __m128i load(const void* from) { return _mm_load_si128(static_cast<const __m128i*>(from)); }
};

// Adds the products of a row's group with eight columns to totals [8]. products: the sums of values times
// levels, two int16 for each column.
inline void finish(__m256i products, const Activations& x, const Columns& w, float* totals) {
  const __m256 exact = _mm256_cvtepi32_ps(_mm256_madd_epi16(products, _mm256_set1_epi16(1)));
  const __m256 level_products =
      _mm256_fmadd_ps(exact, _mm256_set1_ps(x.scale), _mm256_mul_ps(_mm256_set1_ps(x.middle), w.sums));
  const __m256 total = _mm256_fmadd_ps(_mm256_set1_ps(x.sum), w.minima, _mm256_loadu_ps(totals));
  _mm256_storeu_ps(totals, _mm256_fmadd_ps(level_products, w.steps, total));
}

template <int kRows>
void dot(const Activations* x, int64_t groups, const Weights* weights, float (&out)[kRows][kPanel]) {
  std::memset(out, 0, sizeof out);
  for (int64_t g = 0; g < groups; g++) {
    const Weights& w = weights[g];
    if constexpr (kRows > 2) prefetch(weights + g + kAhead);
    __m256i low[kRows], high[kRows];
    for (int r = 0; r < kRows; r++) low[r] = high[r] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int quad = 0; quad < kQuads; quad++) {
      const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(w.levels[quad]));
      const __m256i mask = _mm256_set1_epi8(15);
      const __m256i first = _mm256_and_si256(both, mask);
      const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
      for (int r = 0; r < kRows; r++) {
        const __m256i values = _mm256_set1_epi32(load_quad(x[r * groups + g].values + quad * kQuad));
        add(low[r], _mm256_maddubs_epi16(first, values));  // at most 8 * 2 * 15 * 127 = 30480
        add(high[r], _mm256_maddubs_epi16(second, values));
      }
    }
    const Columns first(w, 0), second(w, kPanel / 2);
    for (int r = 0; r < kRows; r++) {
      finish(low[r], x[r * groups + g], first, out[r]);
      finish(high[r], x[r * groups + g], second, out[r] + kPanel / 2);
    }
  }
}

#else

constexpr int kTile = 4;

// Converts the bits of a finite float16.
inline float half_to_float(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float magnitude = std::ldexp(exponent == 0 ? fraction : fraction + 1024, std::max(exponent, 1) - 25);
  return half >> 15 ? -magnitude : magnitude;
}

template <int kRows>
void dot(const Activations* x, int64_t groups, const Weights* weights, float (&out)[kRows][kPanel]) {
  std::memset(out, 0, sizeof out);
  for (int64_t g = 0; g < groups; g++) {
    const Weights& w = weights[g];
    for (int r = 0; r < kRows; r++) {
      const Activations& a = x[r * groups + g];
      int32_t products[kPanel] = {};
      for (int quad = 0; quad < kQuads; quad++) {
        for (int c = 0; c < kPanel / 2; c++) {
          for (int i = 0; i < kQuad; i++) {
            const int32_t value = a.values[quad * kQuad + i], both = w.levels[quad][c][i];
            products[c] += value * (both & 15);
            products[c + kPanel / 2] += value * (both >> 4);
          }
        }
      }
      for (int c = 0; c < kPanel; c++) {
        const float level_products = static_cast<float>(products[c]) * a.scale + a.middle * w.sums[c];
        out[r][c] += a.sum * half_to_float(w.minima[c]) + level_products * half_to_float(w.steps[c]);
      }
    }
  }
}

#endif

}  // namespace tiller::int4
