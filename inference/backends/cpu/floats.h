// Eight float32 numbers at a time, and the numbers of a KV cache: float32 or float16.
#pragma once

#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace tiller {

// Eight floats. Compilers make much slower code of plain loops over a size that they do not know.
using Floats = float __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int64_t kLanes = 8;

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline void store(float* to, Floats values) { *reinterpret_cast<Floats*>(to) = values; }

inline Floats load(const c10::Half* from) {
#if defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Floats values;
  for (int64_t i = 0; i < kLanes; i++) values[i] = static_cast<float>(from[i]);
  return values;
#endif
}

// Copies `size` numbers.
inline void copy(const float* from, int64_t size, float* to) { std::memcpy(to, from, size * sizeof(float)); }

// Rounds `size` numbers to the nearest float16. Larger ones become the largest finite float16.
inline void copy(const float* from, int64_t size, c10::Half* to) {
  constexpr float kLargest = 65504.0f;
  int64_t i = 0;
#if defined(__F16C__)
  const __m256 most = _mm256_set1_ps(kLargest), least = _mm256_set1_ps(-kLargest);
  for (; i + kLanes <= size; i += kLanes) {
    // The second operand is the result if one of the two is nan.
    const __m256 finite = _mm256_min_ps(most, _mm256_max_ps(least, _mm256_loadu_ps(from + i)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(finite, _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < size; i++) to[i] = std::isnan(from[i]) ? from[i] : std::clamp(from[i], -kLargest, kLargest);
}

// The exact values of `size` float16 numbers.
inline void copy(const c10::Half* from, int64_t size, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, load(from + i));
  for (; i < size; i++) to[i] = static_cast<float>(from[i]);
}

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

// As many floats as the processor has in a register.
#if defined(__AVX512F__)
using Wide = float __attribute__((vector_size(64), aligned(4), may_alias));
inline Wide multiply_add(float a, Wide b, Wide c) { return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c); }
#else
using Wide = Floats;
#endif
constexpr int64_t kWideLanes = sizeof(Wide) / sizeof(float);

inline Wide load_wide(const float* from) { return *reinterpret_cast<const Wide*>(from); }
inline Wide load_wide(const c10::Half* from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
  return load(from);
#endif
}
// Keeps a number in a register. Else compilers would load it from memory again for each operation.
inline void keep(Wide& value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__AVX__)
  asm("" : "+x"(value));
#endif
}
inline void store_wide(float* to, Wide values) { *reinterpret_cast<Wide*>(to) = values; }

// The sum of the lanes, in pairs: (0 + 1) + (2 + 3), (4 + 5) + (6 + 7), then both.
inline float add_up(Floats x) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }

// out[0] to out[3] = the sums of the lanes of a, b, c and d, in the same order.
inline void add_up(Floats a, Floats b, Floats c, Floats d, float* out) {
#if defined(__AVX__)
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
#else
  out[0] = add_up(a), out[1] = add_up(b), out[2] = add_up(c), out[3] = add_up(d);
#endif
}

// The higher of each two lanes; that of b if one of them is nan.
inline Floats higher(Floats a, Floats b) {
#if defined(__AVX__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// The highest lane.
inline float highest_of(Floats x) {
#if defined(__AVX__)
  x = higher(x, _mm256_permute2f128_ps(x, x, 1));
  x = higher(x, _mm256_permute_ps(x, 0x4E));
  x = higher(x, _mm256_permute_ps(x, 0xB1));
  return x[0];
#else
  float highest = x[0];
  for (int64_t i = 1; i < kLanes; i++) highest = x[i] > highest ? x[i] : highest;
  return highest;
#endif
}

// Exchanges rows and columns.
inline void transpose(Floats (&x)[kLanes]) {
#if defined(__AVX__)
  Floats pairs[kLanes], quads[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {
    for (int j = 0; j < 2; j++) {
      quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xEE);
    }
  }
  for (int i = 0; i < kLanes / 2; i++) {
    x[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
#else
  for (int i = 0; i < kLanes; i++) {
    for (int j = 0; j < i; j++) {
      const float other = x[i][j];
      x[i][j] = x[j][i];
      x[j][i] = other;
    }
  }
#endif
}

}  // namespace tiller
