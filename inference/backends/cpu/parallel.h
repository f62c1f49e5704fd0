// Shares work among threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "thread_pool.h"

namespace tiller {

// In multiply-adds. With less work than this, a second thread does not pay off.
constexpr int64_t kMinParallelWork = 1 << 17;

// Whether to use ThreadPool instead of OpenMP's threads. Set it only if torch's own operations do hardly any
// work: otherwise the two sets of threads disturb each other.
inline std::atomic<bool> has_own_threads{false};

// In multiply-adds of 4-bit products: about what one element of a row costs in other operations.
constexpr int64_t kRoundingCost = 32, kNormCost = 16, kAddingCost = 8, kRotationCost = 8, kCopyCost = 8;

// Calls work(i) for each i in [0, count), in any order. A call costs about `cost` multiply-adds. A thread
// takes the next range of indices when it has finished one, so a slow thread takes fewer. Thread t of n
// begins near index count * t / n. So if i is a row or a sequence, a thread mostly works on the same ones as
// in the operation before.
template <typename Work>
inline void share(int64_t count, int64_t cost, const Work& work) {
  constexpr int64_t kRanges = 8;  // per thread
  const int64_t least = kMinParallelWork / std::max<int64_t>(1, cost) + 1;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), (count + least - 1) / least);
  const auto act = [](const void* context, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) (*static_cast<const Work*>(context))(i);
  };
  if (threads <= 1) return act(&work, 0, count);
  const int64_t range_size = std::max(least / 4 + 1, count / (threads * kRanges));
  const int helpers = static_cast<int>(threads) - 1;
  if (has_own_threads && ThreadPool::get().run(count, range_size, helpers, act, &work)) return;
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin = next.fetch_add(range_size); begin < count; begin = next.fetch_add(range_size))
      act(&work, begin, std::min(count, begin + range_size));
  });
}

}  // namespace tiller
