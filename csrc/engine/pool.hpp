// Threads that wait for work: awake for a moment after each job, since a step's jobs follow each other within
// microseconds, then asleep.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace sprat::engine {

class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // f(task, thread) for every task below `tasks`, thread < threads(); returns when all are done, and throws what a
    // task threw. One job at a time.
    template <class F>
    void run(int tasks, F&& f) {
        const auto call = [](void* context, int task, int thread) { (*static_cast<F*>(context))(task, thread); };
        if (workers_.empty() || tasks == 1) {
            for (int t = 0; t < tasks; ++t) f(t, 0);
            return;
        }
        for (int done = 0; done < tasks; done += kMost) {
            auto shifted = [&](int task, int thread) { call(&f, done + task, thread); };
            const auto piece = [](void* context, int task, int thread) {
                (*static_cast<decltype(shifted)*>(context))(task, thread);
            };
            publish(std::min(kMost, tasks - done), piece, &shifted);
        }
    }

    // After a fork only the forking thread lives on: forget the others, which the parent still has.
    void abandon();

  private:
    using Call = void (*)(void*, int, int);
    static constexpr int kMost = 0xffff;

    void publish(int tasks, Call call, void* context);
    bool work(int thread);  // until no task is left; whether there was one
    void serve(int thread);

    // generation << 32 | tasks << 16 | next task: a claim by compare-and-swap cannot mix two jobs.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int> left_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    Call call_ = nullptr;
    void* context_ = nullptr;
    std::mutex failure_mutex_;
    std::exception_ptr failure_;
    std::vector<std::thread> workers_;
};

}  // namespace sprat::engine
