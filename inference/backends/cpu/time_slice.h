// How long Linux lets a thread run before the next one, if there are more threads than processors.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tiller {

// Asks Linux for short turns of the calling thread, which then come sooner and more often. Its share of the
// processor stays the same. When a thread loses its processor in the middle of a range, the others wait for
// its next turn. Linux before 6.12 ignores the request; so do threads with real-time priority.
inline void ask_for_short_turns() {
#if defined(__linux__) && defined(SYS_sched_setattr)
  constexpr uint64_t kNanoseconds = 100000;  // the shortest that Linux grants; usual are 1 to 3 ms
  struct {                                   // sched_setattr(2)
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes{};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
  if (attributes.policy != SCHED_OTHER) return;
  attributes.runtime = kNanoseconds;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
}

}  // namespace tiller
