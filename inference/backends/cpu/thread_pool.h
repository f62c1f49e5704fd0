// Threads that help whoever calls. Unlike OpenMP's, nobody waits for a thread that has taken no work: one
// that has to share its core with another process delays the others by no more than what it has taken.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tiller {

class ThreadPool {
 public:
  using Act = void (*)(const void* context, int64_t begin, int64_t end);

  static ThreadPool& get() {
    static auto* pool = new ThreadPool;  // never deleted: its threads may outlive what is static
    return *pool;
  }

  // Calls act(context, begin, end) for pieces of `turn` numbers until all from 0 to count are done, in this
  // thread and in up to `helpers` others. False, and nothing done, if another thread is at it.
  bool run(int64_t count, int64_t turn, int helpers, Act act, const void* context) {
    const std::unique_lock lock(busy_, std::try_to_lock);
    if (!lock.owns_lock() || count >= kClosed) return false;
    for (; started_ < helpers; started_++) std::thread([this] { serve(); }).detach();
    publish(count, turn, act, context);
    take_turns(epoch_.load(std::memory_order_relaxed));
    for (int spins = 0; done_.load(std::memory_order_acquire) < count; spins++) pause(spins);
    return true;
  }

 private:
  static constexpr int64_t kClosed = INT32_MAX;
  static constexpr int kSpins =
      4000;  // before a thread goes to sleep: longer than from one layer to the next

  static void pause(int spins) {
#if defined(__x86_64__)
    _mm_pause();
#endif
    if (spins % kSpins == kSpins - 1) std::this_thread::yield();
  }

  static uint64_t ticket_of(uint32_t epoch, int64_t next) {
    return static_cast<uint64_t>(epoch) << 32 | static_cast<uint64_t>(next);
  }

  void publish(int64_t count, int64_t turn, Act act, const void* context) {
    const uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
    // First nobody can take a turn, then what the turns are changes, then they can be taken.
    ticket_.store(ticket_of(epoch, kClosed), std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    count_.store(count, std::memory_order_relaxed);
    turn_.store(turn, std::memory_order_relaxed);
    act_.store(act, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(ticket_of(epoch, 0), std::memory_order_release);
    epoch_.store(epoch, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst) > 0) epoch_.notify_all();
  }

  void take_turns(uint32_t epoch) {
    const int64_t count = count_.load(std::memory_order_relaxed),
                  turn = turn_.load(std::memory_order_relaxed);
    const Act act = act_.load(std::memory_order_relaxed);
    const void* context = context_.load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // the ticket is not older than these
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (ticket >> 32 == epoch) {
      const auto begin = static_cast<int64_t>(ticket & UINT32_MAX);
      if (begin >= count) return;
      const int64_t end = begin + turn < count ? begin + turn : count;
      if (!ticket_.compare_exchange_weak(ticket, ticket_of(epoch, end), std::memory_order_acq_rel)) continue;
      act(context, begin, end);
      done_.fetch_add(end - begin, std::memory_order_acq_rel);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  [[noreturn]] void serve() {
    for (uint32_t seen = 0;;) {
      uint32_t epoch = epoch_.load(std::memory_order_acquire);
      for (int spins = 0; epoch == seen && spins < kSpins; spins++) {
        pause(0);
        epoch = epoch_.load(std::memory_order_acquire);
      }
      if (epoch == seen) {
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        epoch_.wait(seen, std::memory_order_seq_cst);
        asleep_.fetch_sub(1, std::memory_order_seq_cst);
        continue;
      }
      seen = epoch;
      take_turns(seen);
    }
  }

  std::mutex busy_;
  int started_ = 0;
  std::atomic<uint32_t> epoch_{0};
  std::atomic<int> asleep_{0};
  std::atomic<uint64_t> ticket_{ticket_of(0, kClosed)};  // the epoch, and the next number to be taken
  std::atomic<int64_t> count_{0}, turn_{1}, done_{0};
  std::atomic<Act> act_{nullptr};
  std::atomic<const void*> context_{nullptr};
};

}  // namespace tiller
