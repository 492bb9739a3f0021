// A block works on a few rows. Its threads first find the corners of all points of these rows,
// once for all channels, and leave them in shared memory; then each thread takes its channels of
// one row through the points. Neighbouring threads have neighbouring channels.
//
// tests/ops/cuda_on_host runs this file on a CPU, with macros of its own.
#include "cuda_kernels.h"

#if defined(__CUDACC__)
#define DEIM_SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]
#define DEIM_LAUNCH(kernel, blocks, threads, shared, stream, ...) \
  kernel<<<blocks, threads, shared, stream>>>(__VA_ARGS__)
#endif

namespace deim {
namespace {

// std::min is for the host only.
template <class N>
DEIM_INLINE N least(N a, N b) {
  return b < a ? b : a;
}

// Blocks of a multiprocessor that registers have to suffice for.
constexpr int kBlocks = 8;
// Bytes that a thread reads at once where channels and addresses allow it.
constexpr int kVectorBytes = 16;
// Samples of a block between two barriers of the forward kernel, and points of each row between
// two of the backward kernel, so that several blocks share a multiprocessor's memory.
constexpr int kForwardSamples = 512;
constexpr int kBackwardPoints = 4;

template <class V, int width>
struct alignas(width * sizeof(V)) Vector {
  V channel[width];
};

template <class T>
__device__ Sample<T> locate(
    const Problem& problem, const T* locations, const T* attention, int64_t row, int point) {
  const int64_t i = row * problem.points + point;
  const Level& level = level_of(problem, point);
  return problem.nearest ? locate_nearest(locations + 2 * i, attention[i], level)
                         : locate_bilinear(locations + 2 * i, attention[i], level);
}

// All threads of the block take part; `samples` is (rows, count).
template <class T>
__device__ void locate_all(
    const Problem& problem,
    const T* locations,
    const T* attention,
    int64_t first_row,
    int rows,
    int first_point,
    int count,
    Sample<T>* samples) {
  for (int i = threadIdx.x; i < rows * count; i += blockDim.x) {
    samples[i] =
        locate(problem, locations, attention, first_row + i / count, first_point + i % count);
  }
}

// The elements of a row's image and head.
template <class E>
__device__ E* head_of(const Problem& problem, E* value, int64_t row) {
  return value +
      head_offset(problem, row / problem.heads / problem.queries, int(row % problem.heads));
}

// Each thread sums `width` neighbouring channels of one row.
template <class V, int width>
__global__ void __launch_bounds__(kThreads, kBlocks) forward_kernel(
    Problem problem,
    int rows_of_block,
    int points_at_once,
    const V* __restrict__ value,
    const compute_t<V>* __restrict__ locations,
    const compute_t<V>* __restrict__ attention,
    compute_t<V>* __restrict__ out) {
  using T = compute_t<V>;
  DEIM_SHARED_MEMORY(shared);
  Sample<T>* samples = reinterpret_cast<Sample<T>*>(shared);
  const int lanes = problem.channels / width;
  const int64_t first_row = int64_t(blockIdx.x) * rows_of_block;
  const int rows = int(least(rows_of(problem) - first_row, int64_t(rows_of_block)));
  const int row = threadIdx.x / lanes;
  const int channel = threadIdx.x % lanes * width;
  const int64_t stride = token_stride(problem);
  const V* source = row < rows ? head_of(problem, value, first_row + row) + channel : value;
  Vector<T, width> sums = {};
  for (int first = 0; first < problem.points; first += points_at_once) {
    const int count = least(problem.points - first, points_at_once);
    __syncthreads();
    locate_all(problem, locations, attention, first_row, rows, first, count, samples);
    __syncthreads();
    if (row >= rows) continue;
    for (int point = 0; point < count; ++point) {
      const Sample<T> sample = samples[row * count + point];
      // All four on their way before the first one is used.
      Vector<V, width> vectors[4] = {};
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        if (sample.token[corner] < 0) continue;
        vectors[corner] = *reinterpret_cast<const Vector<V, width>*>(
            source + sample.token[corner] * stride);
      }
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const T weight = sample.token[corner] < 0 ? T(0) : sample.weight[corner];
#pragma unroll
        for (int i = 0; i < width; ++i) {
          sums.channel[i] += weight * to_compute(vectors[corner].channel[i]);
        }
      }
    }
  }
  if (row >= rows) return;
  *reinterpret_cast<Vector<T, width>*>(out + (first_row + row) * problem.channels + channel) = sums;
}

// A cell's share of value's gradient, in one channel.
template <class T>
__device__ void add_to_cell(const Sample<T>& cell, T gradient, int64_t stride, T* grad_value) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (cell.token[corner] < 0) continue;
    atomicAdd(grad_value + cell.token[corner] * stride, cell.weight[corner] * gradient);
  }
}

// Each thread has one channel of one row, so that a warp's atomic additions cover whole sectors of
// memory. Those of neighbouring points in one cell are merged before. The dot products over the
// channels, from which the other gradients follow, are summed in shared memory.
template <class V>
__global__ void __launch_bounds__(kThreads, kBlocks) backward_kernel(
    Problem problem,
    int rows_of_block,
    int points_at_once,
    const V* __restrict__ value,
    const compute_t<V>* __restrict__ locations,
    const compute_t<V>* __restrict__ attention,
    const compute_t<V>* __restrict__ grad_out,
    compute_t<V>* __restrict__ grad_value,
    compute_t<V>* __restrict__ grad_locations,
    compute_t<V>* __restrict__ grad_attention) {
  using T = compute_t<V>;
  DEIM_SHARED_MEMORY(shared);
  // (rows, points at once), then the products' parts (points at once, corners, threads).
  Sample<T>* samples = reinterpret_cast<Sample<T>*>(shared);
  T* parts = reinterpret_cast<T*>(samples + rows_of_block * points_at_once);
  const int channels = problem.channels;
  const int64_t first_row = int64_t(blockIdx.x) * rows_of_block;
  const int rows = int(least(rows_of(problem) - first_row, int64_t(rows_of_block)));
  const int row = threadIdx.x / channels;
  const int channel = threadIdx.x % channels;
  const bool active = row < rows;
  const int64_t stride = token_stride(problem);
  const V* source = active ? head_of(problem, value, first_row + row) + channel : value;
  T* target = active ? head_of(problem, grad_value, first_row + row) + channel : grad_value;
  const T gradient = active ? grad_out[(first_row + row) * channels + channel] : T(0);
  Sample<T> pending = no_sample<T>();
  for (int first = 0; first < problem.points; first += points_at_once) {
    const int count = least(problem.points - first, points_at_once);
    // No barrier before: since the last one only `parts` was read.
    locate_all(problem, locations, attention, first_row, rows, first, count, samples);
    __syncthreads();
    for (int point = 0; active && point < count; ++point) {
      const Sample<T> sample = samples[row * count + point];
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const int token = sample.token[corner];
        parts[(point * 4 + corner) * blockDim.x + threadIdx.x] =
            token < 0 ? T(0) : gradient * to_compute(source[token * stride]);
      }
      if (same_cell(pending, sample)) {
        merge(pending, sample);
      } else {
        add_to_cell(pending, gradient, stride, target);
        pending = sample;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * count; i += blockDim.x) {
      const int point = i % count, lane_of_row = i / count * channels;
      T dot[4] = {};
      // Each thread begins elsewhere, or all would ask one bank of shared memory.
      int lane = channel;
      for (int k = 0; k < channels; ++k) {
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          dot[corner] += parts[(point * 4 + corner) * blockDim.x + lane_of_row + lane];
        }
        lane = lane + 1 < channels ? lane + 1 : 0;
      }
      const int64_t at = (first_row + i / count) * problem.points + first + point;
      if (problem.nearest) {
        grad_attention[at] = dot[0];
        continue;
      }
      const PointGradient<T> gradients = point_gradient(
          locations + 2 * at, attention[at], level_of(problem, first + point), dot);
      grad_locations[2 * at] = gradients.x;
      grad_locations[2 * at + 1] = gradients.y;
      grad_attention[at] = gradients.attention;
    }
  }
  if (active) add_to_cell(pending, gradient, stride, target);
}

template <class V, int width>
cudaError_t forward(
    const Problem& problem,
    const void* value,
    const void* locations,
    const void* attention,
    void* out,
    cudaStream_t stream) {
  using T = compute_t<V>;
  const int lanes = problem.channels / width;
  if (lanes < 1 || lanes > kThreads) return cudaErrorInvalidValue;
  const int rows = kThreads / lanes;
  const int points = least(problem.points, kForwardSamples / rows);
  const int64_t blocks = (rows_of(problem) + rows - 1) / rows;
  DEIM_LAUNCH(
      (forward_kernel<V, width>), unsigned(blocks), unsigned(rows * lanes),
      rows * points * sizeof(Sample<T>), stream, problem, rows, points,
      static_cast<const V*>(value), static_cast<const T*>(locations),
      static_cast<const T*>(attention), static_cast<T*>(out));
  return cudaGetLastError();
}

template <class V>
cudaError_t forward_in_vectors(
    const Problem& problem,
    const void* value,
    const void* locations,
    const void* attention,
    void* out,
    cudaStream_t stream) {
  constexpr int kWidth = kVectorBytes / sizeof(V);
  const bool aligned = reinterpret_cast<uintptr_t>(value) % kVectorBytes == 0;
  return aligned && problem.channels % kWidth == 0
      ? forward<V, kWidth>(problem, value, locations, attention, out, stream)
      : forward<V, 1>(problem, value, locations, attention, out, stream);
}

template <class V>
cudaError_t backward(
    const Problem& problem,
    const void* value,
    const void* locations,
    const void* attention,
    const void* grad_out,
    void* grad_value,
    void* grad_locations,
    void* grad_attention,
    cudaStream_t stream) {
  using T = compute_t<V>;
  const int lanes = problem.channels;
  if (lanes < 1 || lanes > kThreads) return cudaErrorInvalidValue;
  const int rows = kThreads / lanes;
  const int points = least(problem.points, kBackwardPoints);
  const int64_t blocks = (rows_of(problem) + rows - 1) / rows;
  DEIM_LAUNCH(
      backward_kernel<V>, unsigned(blocks), unsigned(rows * lanes),
      points * (rows * sizeof(Sample<T>) + rows * lanes * 4 * sizeof(T)), stream, problem, rows,
      points, static_cast<const V*>(value), static_cast<const T*>(locations),
      static_cast<const T*>(attention), static_cast<const T*>(grad_out),
      static_cast<T*>(grad_value), static_cast<T*>(grad_locations),
      static_cast<T*>(grad_attention));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_forward(
    const Problem& problem,
    ValueType type,
    const void* value,
    const void* locations,
    const void* attention,
    void* out,
    cudaStream_t stream) {
  if (rows_of(problem) == 0) return cudaSuccess;
  switch (type) {
    case ValueType::kFloat:
      return forward_in_vectors<float>(problem, value, locations, attention, out, stream);
    case ValueType::kDouble:
      return forward_in_vectors<double>(problem, value, locations, attention, out, stream);
    case ValueType::kHalf:
      return forward_in_vectors<Half>(problem, value, locations, attention, out, stream);
    case ValueType::kBFloat16:
      return forward_in_vectors<BFloat16>(problem, value, locations, attention, out, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_backward(
    const Problem& problem,
    ValueType type,
    const void* value,
    const void* locations,
    const void* attention,
    const void* grad_out,
    void* grad_value,
    void* grad_locations,
    void* grad_attention,
    cudaStream_t stream) {
  if (rows_of(problem) == 0) return cudaSuccess;
  const auto run = [&](auto kernels) {
    return kernels(
        problem, value, locations, attention, grad_out, grad_value, grad_locations, grad_attention,
        stream);
  };
  switch (type) {
    case ValueType::kFloat:
      return run(backward<float>);
    case ValueType::kDouble:
      return run(backward<double>);
    case ValueType::kHalf:
      return run(backward<Half>);
    case ValueType::kBFloat16:
      return run(backward<BFloat16>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace deim
