// Prints what one core can reach, as JSON: integer products, float32 products and reading from memory, each
// in units per second. The loops do nothing else, and keep everything but the memory to be read in registers.

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <limits>
#include <vector>

namespace {

constexpr int kRepeats = 100, kCalls = 5000, kChains = 8;

double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The time of the fastest call.
template <typename Act>
double fastest(int repeats, const Act& act) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repeats; i++) {
    const double start = cpu_seconds();
    act();
    best = std::min(best, cpu_seconds() - start);
  }
  return best;
}

// kChains independent instructions, each with a sum of its own in register 4 to 11.
#define CHAINS(one) one(4) one(5) one(6) one(7) one(8) one(9) one(10) one(11)
#define CLOBBERED "xmm2", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11"
#define RATE(operations, one)                                                 \
  (double(operations) * kChains * kCalls / fastest(kRepeats, [] {             \
     for (int i = 0; i < kCalls; i++) asm volatile(CHAINS(one)::: CLOBBERED); \
   }))

#if defined(__AVX512VNNI__)
#define BYTES(n) "vpdpbusd %%zmm0, %%zmm1, %%zmm" #n "\n"
#define WORDS(n) "vpdpwssd %%zmm0, %%zmm1, %%zmm" #n "\n"
constexpr int kBytes = 64;
#elif defined(__AVX512BW__)
#define BYTES(n) "vpmaddubsw %%zmm0, %%zmm1, %%zmm2\nvpaddw %%zmm2, %%zmm" #n ", %%zmm" #n "\n"
#define WORDS(n) "vpmaddwd %%zmm0, %%zmm1, %%zmm2\nvpaddd %%zmm2, %%zmm" #n ", %%zmm" #n "\n"
constexpr int kBytes = 64;
#elif defined(__AVX2__)
#define BYTES(n) "vpmaddubsw %%ymm0, %%ymm1, %%ymm2\nvpaddw %%ymm2, %%ymm" #n ", %%ymm" #n "\n"
#define WORDS(n) "vpmaddwd %%ymm0, %%ymm1, %%ymm2\nvpaddd %%ymm2, %%ymm" #n ", %%ymm" #n "\n"
constexpr int kBytes = 32;
#endif

#if defined(__AVX512F__)
#define FLOATS(n) "vfmadd231ps %%zmm0, %%zmm1, %%zmm" #n "\n"
constexpr int kFloats = 16;
#elif defined(__FMA__)
#define FLOATS(n) "vfmadd231ps %%ymm0, %%ymm1, %%ymm" #n "\n"
constexpr int kFloats = 8;
#endif

double read_rate() {
  std::vector<float> memory(64 << 20, 1.0f);  // larger than any cache
  float sum = 0;
  const double seconds = fastest(5, [&] {
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < memory.size(); i++) sum += memory[i];
  });
  return sum < 0 ? 0 : static_cast<double>(memory.size() * sizeof(float)) / seconds;
}

}  // namespace

int main() {
  std::printf("{");
#if defined(__AVX2__)
  // Zeros, so that no product is slow because it is not a normal number.
  asm volatile("vpxor %%xmm0, %%xmm0, %%xmm0\nvpxor %%xmm1, %%xmm1, %%xmm1" ::: "xmm0", "xmm1");
  std::printf("\"byte_products\": %.6g, ", RATE(2 * kBytes, BYTES));
  std::printf("\"word_products\": %.6g, ", RATE(kBytes, WORDS));
#endif
#if defined(__FMA__)
  std::printf("\"float_products\": %.6g, ", RATE(2 * kFloats, FLOATS));
#endif
  std::printf("\"read_bytes\": %.6g}\n", read_rate());
}
