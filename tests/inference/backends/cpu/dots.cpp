// Compares int8::dot and int4::dot with plain sums in float64, for each number of rows from 1 to kTile, and
// checks how int4::round_groups rounds. The exit status is 1 if something is wrong.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "int4_dot.h"
#include "int4_rounding.h"
#include "int8_dot.h"

namespace {

constexpr int kPanel = 16, kGroup = 32, kGroups = 3;

// Returns an integer in [from, to].
int random_integer(int from, int to) { return from + std::rand() % (to - from + 1); }
float random_float() { return static_cast<float>(std::rand()) / RAND_MAX - 0.25f; }

// A sum, and the sum of the magnitudes, which bounds the rounding error.
struct Sum {
  double value = 0, size = 0;

  void add(double product) {
    value += product;
    size += std::fabs(product);
  }
  bool is_near(float other) const { return std::fabs(other - value) <= 1e-6 * size; }
};

template <int kRows>
bool is_int8_right() {
  using namespace tiller::int8;
  std::vector<Activations> x(kRows * kGroups);
  std::vector<Weights> weights(kGroups);
  for (auto& group : x)
    for (auto& value : group.values) value = static_cast<int16_t>(random_integer(-32767, 32767));
  for (auto& group : weights) {
    for (auto& pair : group.values)
      for (auto& column : pair)
        for (auto& value : column) value = static_cast<int8_t>(random_integer(-127, 127));
    for (auto& scale : group.scales) scale = random_float();
  }
  float out[kRows][kPanel];
  dot<kRows>(x.data(), kGroups, weights.data(), out);
  bool right = true;
  for (int r = 0; r < kRows; r++) {
    for (int c = 0; c < kPanel; c++) {
      Sum sum;
      for (int k = 0; k < kGroups * kGroup; k++) {
        const Weights& w = weights[k / kGroup];
        const int i = k % kGroup;
        sum.add(static_cast<double>(x[r * kGroups + k / kGroup].values[i]) *
                w.values[i / kPair][c][i % kPair] * w.scales[c]);
      }
      right &= sum.is_near(out[r][c]);
    }
  }
  if (!right) std::printf("int8, %d rows: wrong\n", kRows);
  if constexpr (kRows > 1) right &= is_int8_right<kRows - 1>();
  return right;
}

// A float16: its bits and its value.
struct Half {
  uint16_t bits;
  double value;
};

Half random_half() {
  const int exponent = random_integer(10, 16), fraction = random_integer(0, 1023),
            sign = random_integer(0, 1);
  return {static_cast<uint16_t>(sign << 15 | exponent << 10 | fraction),
          (sign ? -1 : 1) * std::ldexp(1024 + fraction, exponent - 25)};
}

template <int kRows>
bool is_int4_right() {
  using namespace tiller::int4;
  std::vector<Activations> x(kRows * kGroups);
  std::vector<Weights> weights(kGroups);
  int levels[kGroups][kGroup][kPanel];
  Half steps[kGroups][kPanel], minima[kGroups][kPanel];
  for (auto& group : x) {
    // Sometimes all values are the largest possible ones. Their sums must not overflow.
    const int least = std::rand() % 4 == 0 ? 127 : -127;
    int sum = 0;
    for (auto& value : group.values) sum += value = static_cast<int8_t>(random_integer(least, 127));
    group.scale = random_float();
    group.middle = random_float();
    group.sum = kGroup * group.middle + group.scale * static_cast<float>(sum);
  }
  for (int g = 0; g < kGroups; g++) {
    weights[g] = {};
    for (int c = 0; c < kPanel; c++) {
      const int least = std::rand() % 4 == 0 ? 15 : 0;
      for (int i = 0; i < kGroup; i++) {
        levels[g][i][c] = random_integer(least, 15);
        weights[g].levels[i / kQuad][c % 8][i % kQuad] |= levels[g][i][c] << (c < 8 ? 0 : 4);
        weights[g].sums[c] += levels[g][i][c];
      }
      steps[g][c] = random_half();
      minima[g][c] = random_half();
      weights[g].steps[c] = steps[g][c].bits;
      weights[g].minima[c] = minima[g][c].bits;
    }
  }
  float out[kRows][kPanel];
  dot<kRows>(x.data(), kGroups, weights.data(), out);
  bool right = true;
  for (int r = 0; r < kRows; r++) {
    for (int c = 0; c < kPanel; c++) {
      Sum sum;
      for (int g = 0; g < kGroups; g++) {
        const Activations& a = x[r * kGroups + g];
        for (int i = 0; i < kGroup; i++) {
          const double activation = a.middle + static_cast<double>(a.scale) * a.values[i];
          sum.add(activation * minima[g][c].value);
          sum.add(activation * steps[g][c].value * levels[g][i][c]);
        }
      }
      right &= sum.is_near(out[r][c]);
    }
  }
  if (!right) std::printf("int4, %d rows: wrong\n", kRows);
  if constexpr (kRows > 1) right &= is_int4_right<kRows - 1>();
  return right;
}

// Whether each number of a group is rounded to the nearest step, and the largest ones to +-127. The step is
// right to its last bit, since the choice between two tokens that are almost equally likely depends on it.
bool is_near(const float* x, const tiller::int4::Activations& rounded) {
  const auto [least, most] = std::minmax_element(x, x + kGroup);
  const float step = (*most - *least) / 254;
  double sum = 0;
  bool right = rounded.scale == step;
  for (int i = 0; i < kGroup; i++) {
    const double number = rounded.middle + static_cast<double>(rounded.scale) * rounded.values[i];
    right &= std::fabs(number - x[i]) <= 0.5001 * step + 1e-6 * std::fabs(x[i]);
    sum += number;
  }
  return right && std::fabs(sum - rounded.sum) <= 1e-4;
}

// Rounds four groups at once, and one by one.
bool is_rounding_right() {
  using namespace tiller::int4;
  constexpr int kCount = 4;
  bool right = true;
  for (int broken = -1; broken < kCount * kGroup; broken++) {
    float x[kCount * kGroup];
    for (float& number : x) number = 10 * random_float();
    std::fill(x, x + kGroup, 0.25f);  // all numbers of a group are the same
    if (broken >= 0) x[broken] = broken % 2 ? std::nanf("") : -INFINITY;
    Activations all[kCount], one;
    round_groups<kCount>(x, all);
    for (int g = 0; g < kCount; g++) {
      const float* group = x + g * kGroup;
      round_groups<1>(group, &one);
      if (broken >= 0 && g == broken / kGroup) {
        right &= std::isnan(all[g].sum) && std::isnan(one.sum);
      } else {
        right &= is_near(group, all[g]) && std::memcmp(&all[g], &one, sizeof one) == 0;
      }
    }
  }
  if (!right) std::printf("rounding: wrong\n");
  return right;
}

}  // namespace

int main() {
  const bool int8_right = is_int8_right<tiller::int8::kTile>(),
             int4_right = is_int4_right<tiller::int4::kTile>(), rounding_right = is_rounding_right();
  return int8_right && int4_right && rounding_right ? 0 : 1;
}
