// The packed weights of a linear layer: 4 bits per weight if that is exact, else rounded to 8 bits.
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Half.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "int4_dot.h"
#include "int8_dot.h"
#include "parallel.h"
#include "rows.h"

namespace tiller {

constexpr int kPanel = 16;
static_assert(int4::kPanel == kPanel && int8::kPanel == kPanel);

// One group of one column in 4 bits: weight i is minimum + step * values[i].
struct Levels {
  c10::Half step, minimum;
  uint8_t values[int4::kGroup];
};

// The least and the largest of kGroup weights. The lanes let the compiler use vector instructions.
inline std::pair<float, float> find_range(const float* weights) {
  constexpr int kLanes = 8;
  float least[kLanes], most[kLanes];
  for (int lane = 0; lane < kLanes; lane++) least[lane] = most[lane] = weights[lane];
  for (int i = kLanes; i < int4::kGroup; i += kLanes) {
    for (int lane = 0; lane < kLanes; lane++) {
      const float weight = weights[i + lane];
      least[lane] = weight < least[lane] ? weight : least[lane];
      most[lane] = weight > most[lane] ? weight : most[lane];
    }
  }
  return {*std::min_element(least, least + kLanes), *std::max_element(most, most + kLanes)};
}

// Returns kGroup weights in 4 bits, or none if that does not give exactly these weights.
inline std::optional<Levels> find_levels(const float* weights) {
  constexpr int kMost = 15;
  const auto [least, most] = find_range(weights);
  Levels levels{(most - least) / kMost, least, {}};
  const float step = levels.step, minimum = levels.minimum;
  const float inverse = step > 0 ? 1 / step : 0;
  int wrong = 0;
  for (int i = 0; i < int4::kGroup; i++) {
    const float nearest = std::nearbyint((weights[i] - minimum) * inverse);
    const float level = nearest >= 0 && nearest <= kMost ? nearest : 0.0f;
    wrong |= minimum + step * level != weights[i];
    levels.values[i] = static_cast<uint8_t>(static_cast<int32_t>(level));
  }
  if (wrong) return std::nullopt;
  return levels;
}

// Writes a group of a column to w, which must be zero there.
inline void pack(const Levels& levels, int column, int4::Weights& w) {
  const int shift = column < kPanel / 2 ? 0 : 4;
  int32_t sum = 0;
  for (const uint8_t value : levels.values) sum += value;
  for (int quad = 0; quad < int4::kGroup / int4::kQuad; quad++) {
    uint8_t* to = w.levels[quad][column % (kPanel / 2)];
    uint32_t both, values;
    static_assert(sizeof(both) == int4::kQuad);
    std::memcpy(&both, to, sizeof(both));
    std::memcpy(&values, levels.values + quad * int4::kQuad, sizeof(values));
    both |= values << shift;
    std::memcpy(to, &both, sizeof(both));
  }
  w.steps[column] = levels.step.x;
  w.minima[column] = levels.minimum.x;
  w.sums[column] = static_cast<int16_t>(sum);
}

// Rounds `count` weights, at most a group, to int8 with one scale. Writes them to a column of w. The error of
// a weight is half a scale at most.
inline void pack(const float* weights, int64_t count, int column, int8::Weights& w) {
  constexpr float kLargest = 127;
  float largest = 0;
  for (int64_t i = 0; i < count; i++) largest = std::max(largest, std::fabs(weights[i]));
  const float scale = largest / kLargest;
  w.scales[column] = scale;
  for (int64_t i = 0; i < count; i++) {
    const float value = scale > 0 ? std::nearbyint(weights[i] / scale) : 0.0f;
    w.values[i / int8::kPair][column][i % int8::kPair] = static_cast<int8_t>(value);
  }
}

// A linear layer, from rows [rows, inputs] to rows [rows, outputs]. It does not change after construction.
class Linear : public torch::CustomClassHolder {
 public:
  // weight: [outputs, inputs] float32; bias: [outputs] float32
  Linear(const at::Tensor& weight, const std::optional<at::Tensor>& bias)
      : inputs(weight.size(1)), outputs(weight.size(0)), bias_(bias) {
    TORCH_CHECK(weight.scalar_type() == at::kFloat && (!bias || bias->scalar_type() == at::kFloat),
                "weight and bias must be float32");
    const at::Tensor rows = weight.contiguous();
    packed_ = pack_exactly(rows);
    exact_ = packed_.defined();
    if (!exact_) packed_ = pack_rounded(rows);
  }

  // Returns a layer with the outputs of all parts, one after the other. The parts must fit by can_join.
  static c10::intrusive_ptr<Linear> join(const std::vector<c10::intrusive_ptr<Linear>>& parts) {
    auto joined = c10::make_intrusive<Linear>(*parts.at(0));
    std::vector<at::Tensor> packed, biases;
    joined->outputs = 0;
    for (const auto& part : parts) {
      TORCH_CHECK(part->can_join(*parts[0]),
                  "linear layers cannot be joined unless they have the same inputs and bits, all or none a "
                  "bias, and multiples of ",
                  kPanel, " outputs");
      joined->outputs += part->outputs;
      packed.push_back(part->packed_);
      if (part->bias_) biases.push_back(*part->bias_);
    }
    joined->packed_ = at::cat(packed);
    if (joined->bias_) joined->bias_ = at::cat(biases);
    return joined;
  }

  // Returns a layer with the outputs [first, first + count) of this one, and in its memory. Both numbers must
  // be multiples of kPanel.
  c10::intrusive_ptr<Linear> slice(int64_t first, int64_t count) const {
    TORCH_CHECK(first % kPanel == 0 && count % kPanel == 0, "first and count must be multiples of ", kPanel,
                ", but are ", first, " and ", count);
    auto part = c10::make_intrusive<Linear>(*this);
    part->outputs = count;
    part->packed_ = packed_.narrow(0, first / kPanel, count / kPanel);
    if (bias_) part->bias_ = bias_->narrow(0, first, count);
    return part;
  }

  // Whether this layer can be joined after the other one. Both need the same inputs, the same format, and a
  // bias or none; this one needs whole panels.
  bool can_join(const Linear& other) const {
    return inputs == other.inputs && exact_ == other.exact_ && outputs % kPanel == 0 &&
           bias_.has_value() == other.bias_.has_value();
  }

  // Returns the unpacked weights [outputs, inputs] float32: those that products use, after any rounding.
  at::Tensor weight() const {
    const at::Tensor weight = at::empty({outputs, inputs}, at::kFloat);
    float* to = weight.mutable_data_ptr<float>();
    at::parallel_for(0, outputs, kPanel, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; o++) {
        if (exact_) {
          unpack<int4::Weights>(o, int4::kGroup, to + o * inputs);
        } else {
          unpack<int8::Weights>(o, int8::kGroup, to + o * inputs);
        }
      }
    });
    return weight;
  }

  int64_t bits() const { return exact_ ? 4 : 8; }
  bool is_exact() const { return exact_; }
  int64_t panels() const { return packed_.size(0); }
  const float* bias() const { return bias_ ? bias_->const_data_ptr<float>() : nullptr; }

  // The groups [groups] of a panel.
  template <typename Weights>
  const Weights* panel(int64_t index) const {
    return reinterpret_cast<const Weights*>(packed_.const_data_ptr<uint8_t>() + index * packed_.stride(0));
  }

  int64_t inputs, outputs;

 private:
  // Zeroed memory for the groups of all panels. torch aligns it to 64 bytes, and Weights need 32.
  template <typename Weights>
  static at::Tensor zeros(int64_t outputs, int64_t groups) {
    const auto size = static_cast<int64_t>(groups * sizeof(Weights));
    return at::zeros({groups_in(outputs, kPanel), size}, at::kByte);
  }

  // Calls pack_group(weights, number of weights, column of the panel, group of the panel) for each group of
  // each column. The last group may have fewer weights than group_size.
  template <typename Weights, typename Pack>
  static at::Tensor pack_all(const at::Tensor& weight, int group_size, const Pack& pack_group) {
    const int64_t outputs = weight.size(0), inputs = weight.size(1), groups = groups_in(inputs, group_size);
    at::Tensor packed = zeros<Weights>(outputs, groups);
    auto* to = reinterpret_cast<Weights*>(packed.mutable_data_ptr<uint8_t>());
    const float* from = weight.const_data_ptr<float>();
    at::parallel_for(0, packed.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin * kPanel; o < std::min(outputs, end * kPanel); o++) {
        for (int64_t g = 0; g < groups; g++) {
          pack_group(from + o * inputs + g * group_size,
                     std::min<int64_t>(group_size, inputs - g * group_size), static_cast<int>(o % kPanel),
                     to[o / kPanel * groups + g]);
        }
      }
    });
    return packed;
  }

  static at::Tensor pack_rounded(const at::Tensor& weight) {
    return pack_all<int8::Weights>(weight, int8::kGroup,
                                   [](const float* from, int64_t count, int column, int8::Weights& to) {
                                     pack(from, count, column, to);
                                   });
  }

  // Returns an undefined tensor if the weights are not exact in 4 bits.
  static at::Tensor pack_exactly(const at::Tensor& weight) {
    if (weight.size(1) % int4::kGroup != 0) return {};
    std::atomic<bool> exact{true};
    at::Tensor packed = pack_all<int4::Weights>(
        weight, int4::kGroup, [&](const float* from, int64_t, int column, int4::Weights& to) {
          if (!exact) return;
          if (const auto levels = find_levels(from)) {
            pack(*levels, column, to);
          } else {
            exact = false;
          }
        });
    return exact ? packed : at::Tensor();
  }

  // Writes the weights of an output to to[inputs].
  template <typename Weights>
  void unpack(int64_t output, int64_t group_size, float* to) const {
    const Weights* groups = panel<Weights>(output / kPanel);
    for (int64_t start = 0; start < inputs; start += group_size) {
      unpack_group(groups[start / group_size], static_cast<int>(output % kPanel),
                   std::min(group_size, inputs - start), to + start);
    }
  }

  static void unpack_group(const int4::Weights& w, int column, int64_t count, float* to) {
    const float minimum = c10::Half(w.minima[column], c10::Half::from_bits());
    const float step = c10::Half(w.steps[column], c10::Half::from_bits());
    const int shift = column < kPanel / 2 ? 0 : 4;
    for (int64_t i = 0; i < count; i++) {
      const int both = w.levels[i / int4::kQuad][column % (kPanel / 2)][i % int4::kQuad];
      to[i] = minimum + step * static_cast<float>(both >> shift & 15);
    }
  }

  static void unpack_group(const int8::Weights& w, int column, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i++) {
      to[i] = static_cast<float>(w.values[i / int8::kPair][column][i % int8::kPair]) * w.scales[column];
    }
  }

  std::optional<at::Tensor> bias_;
  at::Tensor packed_;   // uint8 [panels, groups * sizeof(int4::Weights or int8::Weights)]
  bool exact_ = false;  // whether packed_ holds int4::Weights
};

}  // namespace tiller
