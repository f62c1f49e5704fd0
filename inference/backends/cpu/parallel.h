// Sharing work among threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "thread_pool.h"

namespace tiller {

constexpr int64_t kMinParallelWork = 1 << 17;  // multiply-adds, below which a second thread does not pay

// Whether to use threads of our own: only where hardly anything is left to torch's, or the two disturb each
// other.
inline std::atomic<bool> has_own_threads{false};

// Calls work(i) for i from 0 to count, of which each takes `cost` multiply-adds. A thread takes some more
// whenever it is done.
template <typename Work>
inline void share(int64_t count, int64_t cost, const Work& work) {
  constexpr int64_t kTurns = 8;  // per thread
  const int64_t least = kMinParallelWork / std::max<int64_t>(1, cost) + 1;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), (count + least - 1) / least);
  const auto act = [](const void* context, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) (*static_cast<const Work*>(context))(i);
  };
  if (threads <= 1) return act(&work, 0, count);
  const int64_t turn = std::max(least / 4 + 1, count / (threads * kTurns));
  const int helpers = static_cast<int>(threads) - 1;
  if (has_own_threads && ThreadPool::get().run(count, turn, helpers, act, &work)) return;
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin = next.fetch_add(turn); begin < count; begin = next.fetch_add(turn))
      act(&work, begin, std::min(count, begin + turn));
  });
}

}  // namespace tiller
