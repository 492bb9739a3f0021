// Stands in for CUDA's header of this name, so that cuda_kernels.cu compiles with a C++ compiler
// and runs on a CPU. Blocks run one after another; a block's threads are coroutines that pass the
// turn at barriers. A launch fails where threads don't meet at a barrier, or write behind the
// shared memory that was asked for; shared memory starts as NaN. What a warp does together, the
// whole block does here: all of its threads have to take part.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __syncthreads() cuda_on_host::Block::running->wait()
#define __syncwarp() cuda_on_host::Block::running->wait()
#define __shfl_xor_sync(mask, number, lanes) \
  (static_cast<void>(mask), cuda_on_host::Block::running->exchange(number, lanes))

#define DEIM_SHARED_MEMORY(name) unsigned char* name = cuda_on_host::Block::running->shared()
#define DEIM_LAUNCH(kernel, blocks, threads, shared, stream, ...)         \
  (static_cast<void>(stream),                                             \
   cuda_on_host::launch(blocks, threads, shared, [=] { kernel(__VA_ARGS__); }))

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorLaunchFailure };
using cudaStream_t = void*;

namespace cuda_on_host {

struct Index {
  unsigned x;
};

// Threads take turns from the last to the first: a missing barrier shows in one order or the other.
inline bool reversed = false;
inline int64_t atomic_additions = 0;
inline cudaError_t last_error = cudaSuccess;
inline Index thread_index, block_index, block_size;

class Block {
 public:
  inline static Block* running = nullptr;

  Block(unsigned threads, size_t shared_bytes, std::function<void()> kernel)
      : kernel_(std::move(kernel)), threads_(threads), shared_bytes_(shared_bytes) {
    // Aligned as a GPU's shared memory is, with a guard behind.
    memory_.resize(shared_bytes + 2 * kGuard);
    const auto start = reinterpret_cast<uintptr_t>(memory_.data());
    shared_ = memory_.data() + (kGuard - start % kGuard) % kGuard;
    for (Thread& thread : threads_) thread.stack.reset(new unsigned char[kStack]);
  }

  unsigned char* shared() const { return shared_; }

  bool run(unsigned index) {
    running = this;
    block_index = {index};
    block_size = {unsigned(threads_.size())};
    std::memset(shared_, 0xff, shared_bytes_);
    std::memset(shared_ + shared_bytes_, 0xa5, kGuard);
    for (Thread& thread : threads_) {
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = &scheduler_;
      thread.finished = false;
      makecontext(&thread.context, [] { running->run_thread(); }, 0);
    }
    size_t finished = 0;
    while (finished == 0) {
      for (size_t turn = 0; turn < threads_.size(); ++turn) {
        current_ = reversed ? threads_.size() - 1 - turn : turn;
        thread_index = {unsigned(current_)};
        swapcontext(&scheduler_, &threads_[current_].context);
      }
      finished = std::count_if(
          threads_.begin(), threads_.end(), [](const Thread& t) { return t.finished; });
    }
    const auto intact = [](unsigned char byte) { return byte == 0xa5; };
    const unsigned char* guard = shared_ + shared_bytes_;
    return finished == threads_.size() && std::all_of(guard, guard + kGuard, intact);
  }

  void wait() { swapcontext(&threads_[current_].context, &scheduler_); }

  // The number that the thread brings whose index differs in these bits, as all threads call it.
  template <class T>
  T exchange(T number, unsigned bits) {
    Thread& thread = threads_[current_];
    // Two places by turns: the one before may not have been read by all yet.
    thread.turn = !thread.turn;
    std::memcpy(thread.offered[thread.turn], &number, sizeof(number));
    const unsigned char* theirs = threads_.at(current_ ^ bits).offered[thread.turn];
    wait();
    std::memcpy(&number, theirs, sizeof(number));
    return number;
  }

 private:
  static constexpr size_t kGuard = 128;
  static constexpr size_t kStack = 1 << 16;

  struct Thread {
    ucontext_t context;
    std::unique_ptr<unsigned char[]> stack;
    bool finished;
    bool turn = false;
    unsigned char offered[2][sizeof(double)];
  };

  void run_thread() {
    kernel_();
    threads_[current_].finished = true;
  }

  std::function<void()> kernel_;
  std::vector<Thread> threads_;
  size_t shared_bytes_;
  std::vector<unsigned char> memory_;
  unsigned char* shared_;
  ucontext_t scheduler_;
  size_t current_ = 0;
};

inline void launch(
    unsigned blocks, unsigned threads, size_t shared_bytes, std::function<void()> kernel) {
  last_error = cudaSuccess;
  // What every GPU has, without being asked for more.
  if (blocks == 0 || threads == 0 || threads > 1024 || shared_bytes > 48 * 1024) {
    last_error = cudaErrorInvalidValue;
    return;
  }
  Block block(threads, shared_bytes, std::move(kernel));
  for (unsigned i = 0; i < blocks && last_error == cudaSuccess; ++i) {
    if (!block.run(i)) last_error = cudaErrorLaunchFailure;
  }
}

}  // namespace cuda_on_host

#define threadIdx cuda_on_host::thread_index
#define blockIdx cuda_on_host::block_index
#define blockDim cuda_on_host::block_size

inline cudaError_t cudaGetLastError() { return cuda_on_host::last_error; }

template <class T>
T atomicAdd(T* address, T number) {
  ++cuda_on_host::atomic_additions;
  const T before = *address;
  *address += number;
  return before;
}
