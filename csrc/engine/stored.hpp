// A packed matrix as bytes, for a file that saves unpacking it again: a head, which says everything but the entries, and
// the entries' data as they lie in memory.
#pragma once

#include "layout.hpp"

namespace sprat::engine {

std::vector<uint8_t> head_of(const Packed& packed);

struct Restored {
    std::shared_ptr<Packed> packed;  // without data: its chunks know how many bytes are theirs, not where
    size_t bytes = 0;                // of all chunks
    uint64_t checksum = 0;           // of their data, one chunk after the other
};

// Throws std::invalid_argument for anything that head_of cannot have made: whatever the data then hold, a product with
// the matrix stays inside it.
Restored from_head(const uint8_t* head, size_t size);

// Tells damage, not malice. `sum` goes on from what came before; every piece but the last is a multiple of 64 bytes.
uint64_t checksum(const uint8_t* data, size_t size, uint64_t sum = 0);

}  // namespace sprat::engine
