#include "pool.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sprat::engine {

namespace {

constexpr int kSpins = 3000;  // some 100 microseconds

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads) {
    workers_.reserve(static_cast<size_t>(threads > 1 ? threads - 1 : 0));
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { serve(t); });
}

Pool::~Pool() {
    stop_ = true;
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Pool::abandon() {
    // The handles name threads of another process: neither joined nor destroyed as running.
    for (auto& worker : workers_) worker.detach();
    workers_.clear();
}

void Pool::publish(int tasks, Call call, void* context) {
    call_ = call;
    context_ = context;
    left_.store(tasks, std::memory_order_relaxed);
    const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
    ticket_.store(uint64_t{generation} << 32 | static_cast<uint64_t>(tasks) << 16, std::memory_order_release);
    generation_.store(generation);
    if (sleepers_.load() > 0) generation_.notify_all();
    work(0);
    for (int spin = 0; left_.load(std::memory_order_acquire) > 0; ++spin) {
        if (spin < kSpins) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

bool Pool::work(int thread) {
    bool any = false;
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
        const auto next = static_cast<int>(ticket & 0xffff), tasks = static_cast<int>(ticket >> 16 & 0xffff);
        if (next >= tasks) return any;
        if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
        any = true;
        try {
            call_(context_, next, thread);
        } catch (...) {
            const std::lock_guard lock(failure_mutex_);
            failure_ = std::current_exception();
        }
        left_.fetch_sub(1, std::memory_order_acq_rel);
        ticket = ticket_.load(std::memory_order_acquire);
    }
}

void Pool::serve(int thread) {
    uint32_t seen = 0;
    while (!stop_.load(std::memory_order_acquire)) {
        work(thread);
        int spin = 0;
        uint32_t now;
        while ((now = generation_.load(std::memory_order_acquire)) == seen && spin++ < kSpins) pause();
        if (now == seen) {
            sleepers_.fetch_add(1);
            generation_.wait(seen);
            sleepers_.fetch_sub(1);
            now = generation_.load(std::memory_order_acquire);
        }
        seen = now;
    }
}

}  // namespace sprat::engine
