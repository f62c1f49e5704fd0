// Loads packed weights into the cache before they are needed.
#pragma once

#include <cstddef>

namespace tiller {

// Begins to load an object into the nearest cache. It may lie beyond the end of its array: that has no
// effect.
template <typename Object>
inline void prefetch(const Object* object) {
  constexpr std::size_t kLine = 64;
  for (std::size_t i = 0; i < sizeof(Object); i += kLine)
    __builtin_prefetch(reinterpret_cast<const char*>(object) + i);
}

}  // namespace tiller
