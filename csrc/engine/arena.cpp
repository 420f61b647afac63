#include "arena.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sprat::engine {

namespace {

constexpr size_t kPage = size_t{2} << 20;
constexpr size_t kSlab = size_t{32} << 20;

}  // namespace

Arena::~Arena() {
    for (const Slab& slab : slabs_) std::free(slab.at);
}

uint8_t* Arena::take(size_t bytes) {
    if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
    bytes = (bytes + 63) / 64 * 64;
    const std::lock_guard lock(mutex_);
    for (Slab& slab : slabs_)
        if (slab.size - slab.used >= bytes) {
            slab.used += bytes;
            return slab.at + slab.used - bytes;
        }
    const size_t size = std::max(kSlab, (bytes + kPage - 1) / kPage * kPage);
    slabs_.reserve(slabs_.size() + 1);
    auto* at = static_cast<uint8_t*>(std::aligned_alloc(kPage, size));
    if (!at) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(at, size, MADV_HUGEPAGE);
#endif
    slabs_.push_back({at, size, bytes});
    return at;
}

}  // namespace sprat::engine
