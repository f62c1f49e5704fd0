// The few instructions of AVX-512 that int8_dot.h uses, in plain C++, by Intel's description of each: so that
// what is written for such processors can be tried on any other.
#pragma once

#include <cstdint>
#include <cstring>

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

inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  for (int i = 0; i < 16; i++) a.lanes[i] = a.lanes[i] * b.lanes[i] + c.lanes[i];
  return a;
}
