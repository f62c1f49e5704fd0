// Threads that help the calling thread. Each thread begins with its own part of the indices, always the same
// one, so that what it reads is often still in its core's cache. Then it helps with the other parts. Unlike
// in OpenMP, nobody waits for a thread that has not taken any work. If a thread shares its core with another
// process, the caller waits for at most one of its ranges.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "time_slice.h"

namespace tiller {

class ThreadPool {
 public:
  using Act = void (*)(const void* context, int64_t begin, int64_t end);

  static ThreadPool& get() {
    static auto* pool = new ThreadPool;  // never deleted: its threads may outlive static objects
    return *pool;
  }

  // Calls act(context, begin, end) for ranges of at most `range_size` indices until all of [0, count) are
  // done, in this thread and in the pool's threads. First starts threads until the pool has `helpers` of
  // them. Does nothing and returns false if another thread is using the pool, or if count is 2^31 - 1 or
  // more.
  bool run(int64_t count, int64_t range_size, int helpers, Act act, const void* context) {
    const std::unique_lock lock(busy_, std::try_to_lock);
    if (!lock.owns_lock() || count >= kClosed) return false;
    static thread_local const bool asked = (ask_for_short_turns(), true);  // once per calling thread
    static_cast<void>(asked);
    for (; started_ < helpers; started_++) std::thread([this, own = started_ + 1] { serve(own); }).detach();
    publish({count, range_size, std::min(helpers + 1, kMostParts), act, context});
    take_ranges(epoch_.load(std::memory_order_relaxed), 0);
    wait_until_done(static_cast<int32_t>(count));
    return true;
  }

 private:
  static constexpr int64_t kClosed = INT32_MAX;  // if this is the next index, no range can be taken
  static constexpr int kMostParts = 256;
  // How often a helper thread polls for a job before it sleeps, and the calling thread for the end of a job.
  // So many polls take longer than the time from one layer to the next.
  static constexpr int kSpins = 4000;

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  // What to do. Part p has the indices [first(p), first(p + 1)).
  struct Job {
    int64_t count = 0, range_size = 1;
    int parts = 1;
    Act act = nullptr;
    const void* context = nullptr;

    int64_t first(int part) const { return count * part / parts; }
  };

  // The next index to take of a part, in the low 32 bits, and the epoch in the high 32 bits.
  struct alignas(64) Ticket {
    std::atomic<uint64_t> value{ticket_of(0, kClosed)};
  };

  static uint64_t ticket_of(uint32_t epoch, int64_t next) {
    return static_cast<uint64_t>(epoch) << 32 | static_cast<uint64_t>(next);
  }

  // Starts a new job, and wakes the threads that sleep.
  void publish(const Job& job) {
    const uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
    // The order matters: close the old job, write the new one, open it. So no thread mixes the two.
    const int used = std::max(job.parts, parts_.load(std::memory_order_relaxed));
    for (int p = 0; p < used; p++)
      tickets_[p].value.store(ticket_of(epoch, kClosed), std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    count_.store(job.count, std::memory_order_relaxed);
    range_size_.store(job.range_size, std::memory_order_relaxed);
    parts_.store(job.parts, std::memory_order_relaxed);
    act_.store(job.act, std::memory_order_relaxed);
    context_.store(job.context, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    for (int p = 0; p < job.parts; p++)
      tickets_[p].value.store(ticket_of(epoch, job.first(p)), std::memory_order_release);
    epoch_.store(epoch, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst) > 0) epoch_.notify_all();
  }

  // Takes and computes ranges of this epoch's job until none is left, or until another job starts. Begins
  // with the part `own`.
  void take_ranges(uint32_t epoch, int own) {
    const Job job{count_.load(std::memory_order_relaxed), range_size_.load(std::memory_order_relaxed),
                  parts_.load(std::memory_order_relaxed), act_.load(std::memory_order_relaxed),
                  context_.load(std::memory_order_relaxed)};
    // The tickets must not be older than what was read above.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    for (int i = 0; i < job.parts; i++) take_part(epoch, job, (own + i) % job.parts);
  }

  void take_part(uint32_t epoch, const Job& job, int part) {
    std::atomic<uint64_t>& ticket = tickets_[part].value;
    const int64_t last = job.first(part + 1);
    uint64_t seen = ticket.load(std::memory_order_acquire);
    while (seen >> 32 == epoch) {
      const auto begin = static_cast<int64_t>(seen & UINT32_MAX);
      if (begin >= last) return;
      const int64_t end = std::min(begin + job.range_size, last);
      if (!ticket.compare_exchange_weak(seen, ticket_of(epoch, end), std::memory_order_acq_rel)) continue;
      job.act(job.context, begin, end);
      const auto size = static_cast<int32_t>(end - begin);
      if (done_.fetch_add(size, std::memory_order_acq_rel) + size == job.count) done_.notify_one();
      seen = ticket.load(std::memory_order_acquire);
    }
  }

  // Waits for the ranges that helpers have taken. If one of them does not run, polling would only take time
  // from other processes, and later get less of it.
  void wait_until_done(int32_t count) {
    int32_t done = done_.load(std::memory_order_acquire);
    for (int spins = 0; done < count && spins < kSpins; spins++) {
      pause();
      done = done_.load(std::memory_order_acquire);
    }
    for (; done < count; done = done_.load(std::memory_order_acquire)) {
      done_.wait(done, std::memory_order_acquire);
    }
  }

  // The loop of a helper thread. own: the part it begins with.
  [[noreturn]] void serve(int own) {
    ask_for_short_turns();
    for (uint32_t seen = 0;;) {
      uint32_t epoch = epoch_.load(std::memory_order_acquire);
      for (int spins = 0; epoch == seen && spins < kSpins; spins++) {
        pause();
        epoch = epoch_.load(std::memory_order_acquire);
      }
      if (epoch == seen) {
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        epoch_.wait(seen, std::memory_order_seq_cst);
        asleep_.fetch_sub(1, std::memory_order_seq_cst);
        continue;
      }
      seen = epoch;
      take_ranges(seen, own);
    }
  }

  std::mutex busy_;                                // held by the thread that calls run
  int started_ = 0;                                // how many helper threads there are
  std::atomic<uint32_t> epoch_{0};                 // number of the current job, from 1 on
  std::atomic<int> asleep_{0};                     // how many helper threads sleep
  std::atomic<int64_t> count_{0}, range_size_{1};  // of the current job, as in Job
  std::atomic<int> parts_{1};
  std::atomic<Act> act_{nullptr};
  std::atomic<const void*> context_{nullptr};
  alignas(64) std::atomic<int32_t> done_{0};  // how many of the job's indices are finished
  std::array<Ticket, kMostParts> tickets_;    // one per part
};

}  // namespace tiller
