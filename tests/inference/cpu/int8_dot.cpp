// Compares int8::dot with the sum written down plainly, for every height of a tile. Exit status 1 if they
// differ.

#include "int8_dot.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

using namespace tiller::int8;

template <int kRows>
bool is_right() {
  constexpr int64_t kDepth = 3 * kGroup;
  std::vector<int16_t> activations(kRows * kDepth);
  std::vector<int8_t> weights(kDepth * kPanel);
  std::vector<float> scales(kDepth / kGroup * kPanel);
  for (auto& value : activations) value = static_cast<int16_t>(std::rand() % 65535 - 32767);
  for (auto& value : weights) value = static_cast<int8_t>(std::rand() % 255 - 127);
  for (auto& value : scales) value = static_cast<float>(std::rand()) / RAND_MAX;
  float out[kRows][kPanel];
  dot<kRows>(activations.data(), kDepth, weights.data(), scales.data(), out);
  bool right = true;
  for (int r = 0; r < kRows; r++) {
    for (int c = 0; c < kPanel; c++) {
      double expected = 0, size = 0;
      for (int64_t k = 0; k < kDepth; k++) {
        const double product = activations[r * kDepth + k] *
                               weights[(k / kPair * kPanel + c) * kPair + k % kPair] *
                               static_cast<double>(scales[k / kGroup * kPanel + c]);
        expected += product;
        size += std::fabs(product);
      }
      right &= std::fabs(out[r][c] - expected) <= 1e-6 * size;
    }
  }
  if (!right) std::printf("%d rows: wrong\n", kRows);
  if constexpr (kRows > 1) right &= is_right<kRows - 1>();
  return right;
}

int main() { return is_right<kTile>() ? 0 : 1; }
