// Which faces meet at an edge. The definition is in topology.py.
#include <algorithm>
#include <utility>
#include <vector>

#include "native.h"

namespace dreamkit {

void mesh_edges(const int32_t* corners, int64_t faces, int64_t vertices, int32_t* edges) {
  // The edges of all faces, put into buckets by their lower vertex and sorted in these by the higher one.
  const auto ends_of = [&](int64_t code) {
    const int32_t* face = corners + code / 3 * 3;
    const int32_t one = face[(code + 1) % 3], two = face[(code + 2) % 3];
    return std::pair<int32_t, int32_t>(std::min(one, two), std::max(one, two));
  };
  std::vector<int64_t> starts(static_cast<size_t>(vertices) + 1);
  for (int64_t code = 0; code < 3 * faces; ++code) ++starts[ends_of(code).first + 1];
  for (int64_t vertex = 0; vertex < vertices; ++vertex) starts[vertex + 1] += starts[vertex];
  std::vector<uint64_t> sorted(static_cast<size_t>(3 * faces));
  std::vector<int64_t> next(starts.begin(), starts.end());
  for (int64_t code = 0; code < 3 * faces; ++code) {
    const auto [low, high] = ends_of(code);
    sorted[next[low]++] = static_cast<uint64_t>(high) << 32 | static_cast<uint64_t>(code);
  }
  std::fill(edges, edges + 3 * faces, -1);
  for (int64_t vertex = 0; vertex < vertices; ++vertex) {
    const int64_t end = starts[vertex + 1];
    std::sort(sorted.begin() + starts[vertex], sorted.begin() + end);
    for (int64_t i = starts[vertex]; i < end;) {
      int64_t run = i + 1;
      while (run < end && sorted[run] >> 32 == sorted[i] >> 32) ++run;
      if (run - i == 2) {
        const auto one = static_cast<uint32_t>(sorted[i]), two = static_cast<uint32_t>(sorted[i + 1]);
        edges[one] = static_cast<int32_t>(two);
        edges[two] = static_cast<int32_t>(one);
      }
      i = run;
    }
  }
}

}  // namespace dreamkit
