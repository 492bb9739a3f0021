// A block works on a few rows. Its threads first find the corners of all points of these rows,
// once for all channels, and leave them in shared memory; then each thread takes its channels of
// one row through the points. Neighbouring threads have neighbouring channels. In the backward
// kernel a row belongs to one warp, which needs no other one.
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

// Blocks of a multiprocessor that registers have to suffice for. The backward kernel keeps the sums
// of four points, and has more loads on their way.
constexpr int kForwardBlocks = 8;
template <class T>
constexpr int kBackwardBlocks = sizeof(T) == 8 ? 4 : 5;
// Bytes that a thread reads at once where channels and addresses allow it.
constexpr int kVectorBytes = 16;
// Samples of a block between two barriers, so that several blocks share a multiprocessor's memory.
constexpr int kSamples = 512;
// Lanes of a warp, and all of them as a mask.
constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
// Points whose dot products a warp sums at once.
constexpr int kPointsOfSum = 4;

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
__global__ void __launch_bounds__(kThreads, kForwardBlocks) forward_kernel(
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

// Lanes of a warp that work on one row, in the backward kernel: a power of two, four at least, so
// that each of four points has a lane that finishes it.
DEIM_INLINE int group_for(int lanes) {
  int group = kPointsOfSum;
  while (group < lanes && group < kWarp) group *= 2;
  return group;
}

// Each lane brings its part of the sums that belong to four points. It leaves with one point's
// sums over the group: those of the point whose number is the lane's remainder by four. In the
// first two steps a pair of lanes exchanges what the other one keeps, so that half of the sums
// remain.
template <class T>
__device__ void sum_over_group(
    const T (&parts)[kPointsOfSum][4], int lane, int group, T (&sums)[4]) {
  const bool odd = lane & 1, upper = lane & 2;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    T pair[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const T even_part = parts[2 * i][corner], odd_part = parts[2 * i + 1][corner];
      pair[i] = (odd ? odd_part : even_part) +
          __shfl_xor_sync(kWholeWarp, odd ? even_part : odd_part, 1);
    }
    sums[corner] = (upper ? pair[1] : pair[0]) +
        __shfl_xor_sync(kWholeWarp, upper ? pair[0] : pair[1], 2);
  }
  for (int step = 4; step < group; step *= 2) {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      sums[corner] += __shfl_xor_sync(kWholeWarp, sums[corner], step);
    }
  }
}

// Adds to neighbouring numbers: at once where they are four floats and the GPU can do that.
template <class T, int width>
__device__ void add_vector(T* target, const T (&n)[width]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && DEIM_ADDS_VECTORS
  if constexpr (width == 4 && sizeof(T) == 4) {
    atomicAdd(reinterpret_cast<float4*>(target), make_float4(n[0], n[1], n[2], n[3]));
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < width; ++i) atomicAdd(target + i, n[i]);
  }
}

// A cell's share of value's gradient, in `width` channels.
template <class T, int width>
__device__ void add_to_cell(
    const Sample<T>& cell, const Vector<T, width>& gradient, int64_t stride, T* grad_value) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (cell.token[corner] < 0) continue;
    T share[width];
#pragma unroll
    for (int i = 0; i < width; ++i) share[i] = cell.weight[corner] * gradient.channel[i];
    add_vector(grad_value + cell.token[corner] * stride, share);
  }
}

// A group of lanes works on one row, each on `width` neighbouring channels, and again on those
// that are a group further, if a head has so many. So neighbouring lanes read and add to
// neighbouring places. Additions to value's gradient for neighbouring points in one cell are
// merged. The dot products over the channels, from which the other gradients follow, are summed
// within the warp: all of its lanes take part in each sum, those without a row with zeros.
template <class V, int width>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<compute_t<V>>) backward_kernel(
    Problem problem,
    int group,
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
  const int lane = threadIdx.x % group;
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x / group) + threadIdx.x / group;
  const bool active = row < rows_of(problem);
  // Of this row: no other warp reads or writes them.
  Sample<T>* samples = reinterpret_cast<Sample<T>*>(shared) + threadIdx.x / group * points_at_once;
  const int64_t stride = token_stride(problem);
  const int first_channel = lane * width;
  // No channel is left for a lane without a row.
  const int channels = active ? problem.channels : 0;
  const V* source = active ? head_of(problem, value, row) : value;
  T* target = active ? head_of(problem, grad_value, row) : grad_value;
  const T* gradients = grad_out + (active ? row * problem.channels : 0);
  Vector<T, width> own = {};
  if (first_channel < channels) {
    own = *reinterpret_cast<const Vector<T, width>*>(gradients + first_channel);
  }
  const auto gradient_at = [&](int channel) {
    return channel == first_channel
        ? own
        : *reinterpret_cast<const Vector<T, width>*>(gradients + channel);
  };
  const auto add = [&](const Sample<T>& cell) {
    for (int channel = first_channel; channel < channels; channel += group * width) {
      add_to_cell(cell, gradient_at(channel), stride, target + channel);
    }
  };
  Sample<T> pending = no_sample<T>();
  for (int begin = 0; begin < problem.points; begin += points_at_once) {
    const int count = least(problem.points - begin, points_at_once);
    __syncwarp();
    for (int point = lane; active && point < count; point += group) {
      samples[point] = locate(problem, locations, attention, row, begin + point);
    }
    __syncwarp();
    for (int first = 0; first < count; first += kPointsOfSum) {
      T parts[kPointsOfSum][4] = {};
#pragma unroll
      for (int i = 0; i < kPointsOfSum; ++i) {
        if (!active || first + i >= count) continue;
        const Sample<T> sample = samples[first + i];
        for (int channel = first_channel; channel < channels; channel += group * width) {
          const Vector<T, width> gradient = gradient_at(channel);
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            if (sample.token[corner] < 0) continue;
            const auto vector = *reinterpret_cast<const Vector<V, width>*>(
                source + sample.token[corner] * stride + channel);
#pragma unroll
            for (int k = 0; k < width; ++k) {
              parts[i][corner] += gradient.channel[k] * to_compute(vector.channel[k]);
            }
          }
        }
        if (same_cell(pending, sample)) {
          merge(pending, sample);
        } else {
          add(pending);
          pending = sample;
        }
      }
      T dot[4];
      sum_over_group(parts, lane, group, dot);
      const int point = first + lane;
      if (!active || lane >= kPointsOfSum || point >= count) continue;
      const int64_t at = row * problem.points + begin + point;
      if (problem.nearest) {
        grad_attention[at] = dot[0];
        continue;
      }
      const PointGradient<T> found = point_gradient(
          locations + 2 * at, attention[at], level_of(problem, begin + point), dot);
      grad_locations[2 * at] = found.x;
      grad_locations[2 * at + 1] = found.y;
      grad_attention[at] = found.attention;
    }
  }
  add(pending);
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
  const int points = least(problem.points, kSamples / rows);
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

template <class V, int width>
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
  const int lanes = problem.channels / width;
  if (lanes < 1 || lanes > kThreads) return cudaErrorInvalidValue;
  const int group = group_for(lanes);
  const int rows = kThreads / group;
  const int points = least(problem.points, kSamples / rows);
  const int64_t blocks = (rows_of(problem) + rows - 1) / rows;
  DEIM_LAUNCH(
      (backward_kernel<V, width>), unsigned(blocks), unsigned(kThreads),
      rows * points * sizeof(Sample<T>), stream, problem, group, points,
      static_cast<const V*>(value), static_cast<const T*>(locations),
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
    bool adds_vectors,
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
  const auto aligned = [](const void* address) {
    return reinterpret_cast<uintptr_t>(address) % kVectorBytes == 0;
  };
  const bool vectors = adds_vectors && problem.channels % 4 == 0 && aligned(value) &&
      aligned(grad_out) && aligned(grad_value);
  switch (type) {
    case ValueType::kFloat:
      return vectors ? run(backward<float, 4>) : run(backward<float, 1>);
    case ValueType::kDouble:
      return run(backward<double, 1>);
    case ValueType::kHalf:
      return vectors ? run(backward<Half, 4>) : run(backward<Half, 1>);
    case ValueType::kBFloat16:
      return vectors ? run(backward<BFloat16, 4>) : run(backward<BFloat16, 1>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace deim
