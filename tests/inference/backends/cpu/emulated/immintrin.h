// The AVX-512 instructions that int8_dot.h, int4_dot.h and int4_rounding.h use, in plain C++ by Intel's
// description of each. With them, the code for such processors can be tested on any processor.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

struct __m128i {
  int8_t bytes[16];
};
struct __m128 {
  float lanes[4];
};
struct __m256i {
  int8_t bytes[32];
};
struct __m512i {
  int32_t lanes[16];
};
struct __m512 {
  float lanes[16];
};

inline __m512i _mm512_setzero_si512() { return {}; }
inline __m512 _mm512_setzero_ps() { return {}; }

inline __m256i _mm256_loadu_si256(const __m256i* from) {
  __m256i result;
  std::memcpy(&result, from, sizeof result);
  return result;
}

inline __m256i _mm256_load_si256(const __m256i* from) { return _mm256_loadu_si256(from); }

inline __m256i _mm256_srli_epi16(__m256i value, int count) {
  uint16_t words[16];
  std::memcpy(words, &value, sizeof words);
  for (auto& word : words) word = static_cast<uint16_t>(word >> count);
  std::memcpy(&value, words, sizeof words);
  return value;
}

inline __m512i _mm512_castsi256_si512(__m256i low) {
  __m512i result{};
  std::memcpy(&result, &low, sizeof low);
  return result;
}

inline __m512i _mm512_inserti64x4(__m512i value, __m256i part, int index) {
  std::memcpy(reinterpret_cast<char*>(&value) + index * sizeof part, &part, sizeof part);
  return value;
}

inline __m512i _mm512_and_si512(__m512i a, __m512i b) {
  for (int i = 0; i < 16; i++) a.lanes[i] &= b.lanes[i];
  return a;
}

inline __m512 _mm512_loadu_ps(const void* from) {
  __m512 result;
  std::memcpy(&result, from, sizeof result);
  return result;
}

inline void _mm512_storeu_ps(void* to, __m512 value) { std::memcpy(to, &value, sizeof value); }

inline __m512i _mm512_set1_epi32(int value) {
  __m512i result;
  for (auto& lane : result.lanes) lane = value;
  return result;
}

inline __m512i _mm512_set1_epi16(int16_t value) {
  int16_t words[32];
  for (auto& word : words) word = value;
  __m512i result;
  std::memcpy(&result, words, sizeof result);
  return result;
}

inline __m512i _mm512_set1_epi8(int8_t value) {
  __m512i result;
  std::memset(&result, value, sizeof result);
  return result;
}

inline __m512 _mm512_set1_ps(float value) {
  __m512 result;
  for (auto& lane : result.lanes) lane = value;
  return result;
}

inline __m512i _mm512_cvtepi16_epi32(__m256i value) {
  int16_t words[16];
  std::memcpy(words, &value, sizeof words);
  __m512i result;
  for (int i = 0; i < 16; i++) result.lanes[i] = words[i];
  return result;
}

inline __m512 _mm512_cvtph_ps(__m256i value) {  // normal, finite numbers only
  uint16_t halves[16];
  std::memcpy(halves, &value, sizeof halves);
  __m512 result;
  for (int i = 0; i < 16; i++) {
    const float magnitude = std::ldexp(1024.0f + (halves[i] & 1023), (halves[i] >> 10 & 31) - 25);
    result.lanes[i] = halves[i] >> 15 ? -magnitude : magnitude;
  }
  return result;
}

inline __m512i _mm512_cvtepi8_epi16(__m256i value) {
  int16_t words[32];
  for (int i = 0; i < 32; i++) words[i] = value.bytes[i];
  __m512i result;
  std::memcpy(&result, words, sizeof result);
  return result;
}

inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  for (int i = 0; i < 16; i++) a.lanes[i] += b.lanes[i];
  return a;
}

inline __m512i _mm512_add_epi16(__m512i a, __m512i b) {
  int16_t left[32], right[32];
  std::memcpy(left, &a, sizeof left);
  std::memcpy(right, &b, sizeof right);
  for (int i = 0; i < 32; i++) left[i] = static_cast<int16_t>(left[i] + right[i]);
  std::memcpy(&a, left, sizeof left);
  return a;
}

// a: unsigned bytes; b: signed bytes
inline __m512i _mm512_maddubs_epi16(__m512i a, __m512i b) {
  uint8_t left[64];
  int8_t right[64];
  int16_t sums[32];
  std::memcpy(left, &a, sizeof left);
  std::memcpy(right, &b, sizeof right);
  for (int i = 0; i < 32; i++) {
    const int sum = left[2 * i] * right[2 * i] + left[2 * i + 1] * right[2 * i + 1];
    sums[i] = static_cast<int16_t>(std::clamp(sum, -32768, 32767));
  }
  std::memcpy(&a, sums, sizeof sums);
  return a;
}

inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  uint8_t left[64];
  int8_t right[64];
  std::memcpy(left, &a, sizeof left);
  std::memcpy(right, &b, sizeof right);
  for (int i = 0; i < 64; i++) sum.lanes[i / 4] += left[i] * right[i];
  return sum;
}

inline __m512i _mm512_madd_epi16(__m512i a, __m512i b) {
  int16_t left[32], right[32];
  std::memcpy(left, &a, sizeof left);
  std::memcpy(right, &b, sizeof right);
  __m512i result;
  for (int i = 0; i < 16; i++)
    result.lanes[i] = left[2 * i] * right[2 * i] + left[2 * i + 1] * right[2 * i + 1];
  return result;
}

inline __m512i _mm512_dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
}

inline __m512 _mm512_cvtepi32_ps(__m512i value) {
  __m512 result;
  for (int i = 0; i < 16; i++) result.lanes[i] = static_cast<float>(value.lanes[i]);
  return result;
}

inline __m512 _mm512_mul_ps(__m512 a, __m512 b) {
  for (int i = 0; i < 16; i++) a.lanes[i] *= b.lanes[i];
  return a;
}

inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  for (int i = 0; i < 16; i++) a.lanes[i] = a.lanes[i] * b.lanes[i] + c.lanes[i];
  return a;
}

inline __m512 _mm512_sub_ps(__m512 a, __m512 b) {
  for (int i = 0; i < 16; i++) a.lanes[i] -= b.lanes[i];
  return a;
}

inline __m512 _mm512_min_ps(__m512 a, __m512 b) {
  for (int i = 0; i < 16; i++) a.lanes[i] = a.lanes[i] < b.lanes[i] ? a.lanes[i] : b.lanes[i];
  return a;
}

inline __m512 _mm512_max_ps(__m512 a, __m512 b) {
  for (int i = 0; i < 16; i++) a.lanes[i] = a.lanes[i] > b.lanes[i] ? a.lanes[i] : b.lanes[i];
  return a;
}

inline __m512i _mm512_cvtps_epi32(__m512 value) {
  __m512i result;
  for (int i = 0; i < 16; i++) result.lanes[i] = static_cast<int32_t>(std::nearbyint(value.lanes[i]));
  return result;
}

inline __m128i _mm512_cvtepi32_epi8(__m512i value) {
  __m128i result;
  for (int i = 0; i < 16; i++) result.bytes[i] = static_cast<int8_t>(value.lanes[i]);
  return result;
}

inline void _mm_storeu_si128(__m128i* to, __m128i value) { std::memcpy(to, &value, sizeof value); }

inline __m512 _mm512_castsi512_ps(__m512i value) { return std::bit_cast<__m512>(value); }
inline __m512i _mm512_castps_si512(__m512 value) { return std::bit_cast<__m512i>(value); }

inline __m128 _mm512_castps512_ps128(__m512 value) {
  __m128 result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

// The categories of numbers in all lanes, of which only nan (0x81) and infinity (0x18) are here.
inline uint16_t _mm512_fpclass_ps_mask(__m512 value, int categories) {
  uint16_t mask = 0;
  for (int i = 0; i < 16; i++) {
    const float lane = value.lanes[i];
    const int category = std::isnan(lane) ? 0x81 : std::isinf(lane) ? 0x18 : 0;
    mask = static_cast<uint16_t>(mask | ((category & categories) != 0) << i);
  }
  return mask;
}

// The next four take each 128 bits, or four lanes, on their own.
inline __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) {
  __m512 result;
  for (int i = 0; i < 16; i++) result.lanes[i] = (i % 2 ? b : a).lanes[i / 4 * 4 + i % 4 / 2];
  return result;
}

inline __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) {
  __m512 result;
  for (int i = 0; i < 16; i++) result.lanes[i] = (i % 2 ? b : a).lanes[i / 4 * 4 + 2 + i % 4 / 2];
  return result;
}

inline __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int which) {
  __m512 result;
  for (int i = 0; i < 16; i++)
    result.lanes[i] = (i % 4 < 2 ? a : b).lanes[i / 4 * 4 + (which >> i % 4 * 2 & 3)];
  return result;
}

inline __m512 _mm512_permute_ps(__m512 a, int which) { return _mm512_shuffle_ps(a, a, which); }

inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int which) {
  __m512 result;
  for (int i = 0; i < 16; i++) result.lanes[i] = (i < 8 ? a : b).lanes[(which >> i / 4 * 2 & 3) * 4 + i % 4];
  return result;
}
