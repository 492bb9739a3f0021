#include "cpu_kernels.h"

#include <algorithm>

namespace deim {
namespace {

// Points whose corners are found before channels are summed. One array for each number, so that
// the compiler can find the corners of several points at once.
constexpr int kPointsAtOnce = 64;

template <class T>
struct Samples {
  int token[4][kPointsAtOnce];
  T weight[4][kPointsAtOnce];

  DEIM_INLINE void set(int i, const Sample<T>& sample) {
    for (int corner = 0; corner < 4; ++corner) {
      token[corner][i] = sample.token[corner];
      weight[corner][i] = sample.weight[corner];
    }
  }
  DEIM_INLINE Sample<T> get(int i) const {
    Sample<T> sample;
    for (int corner = 0; corner < 4; ++corner) {
      sample.token[corner] = token[corner][i];
      sample.weight[corner] = weight[corner][i];
    }
    return sample;
  }
};

// The levels of successive points, which begin again with the first one after the last.
struct LevelTable {
  int height[kPointsAtOnce];
  int width[kPointsAtOnce];
  int first_token[kPointsAtOnce];

  void fill(const Problem& problem, int first_point, int count) {
    for (int i = 0; i < count; ++i) {
      const Level& level = level_of(problem, (first_point + i) % problem.points);
      height[i] = level.height;
      width[i] = level.width;
      first_token[i] = level.first_token;
    }
  }
  DEIM_INLINE Level get(int i) const { return {height[i], width[i], first_token[i], 0}; }
};

template <class T>
DEIM_INLINE void locate_all(
    bool nearest,
    const T* locations,
    const T* attention,
    const LevelTable& levels,
    int count,
    Samples<T>& samples) {
  if (nearest) {
    for (int i = 0; i < count; ++i) {
      samples.set(i, locate_nearest(locations + 2 * i, attention[i], levels.get(i)));
    }
  } else {
    for (int i = 0; i < count; ++i) {
      samples.set(i, locate_bilinear(locations + 2 * i, attention[i], levels.get(i)));
    }
  }
}

// Neighbouring channels that are computed at once: one AVX2 register, or two of SSE2.
template <class T>
struct Pack {
  static constexpr int kWidth = 32 / sizeof(T);
  typedef T type __attribute__((vector_size(32)));
};

template <class V, class T>
DEIM_INLINE typename Pack<T>::type load(const V* source) {
  typename Pack<T>::type pack;
  for (int i = 0; i < Pack<T>::kWidth; ++i) pack[i] = to_compute(source[i]);
  return pack;
}

template <class T>
DEIM_INLINE void store(T* target, typename Pack<T>::type pack) {
  std::memcpy(target, &pack, sizeof(pack));
}

template <class T>
DEIM_INLINE T sum_of(typename Pack<T>::type pack) {
  T parts[Pack<T>::kWidth];
  store(parts, pack);
  for (int half = Pack<T>::kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  }
  return parts[0];
}

// `packs` packs of channels of one row: out += Σ weight · value.
template <int packs, class V, class T>
DEIM_INLINE void gather(
    const V* value, int64_t stride, const Samples<T>& samples, int begin, int end, T* out) {
  typename Pack<T>::type sums[packs];
  for (int i = 0; i < packs; ++i) sums[i] = load<T, T>(out + i * Pack<T>::kWidth);
  for (int point = begin; point < end; ++point) {
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t token = samples.token[corner][point];
      if (token < 0) continue;
      for (int i = 0; i < packs; ++i) {
        sums[i] += samples.weight[corner][point] *
            load<V, T>(value + token * stride + i * Pack<T>::kWidth);
      }
    }
  }
  for (int i = 0; i < packs; ++i) store(out + i * Pack<T>::kWidth, sums[i]);
}

template <class V, class T>
DEIM_INLINE void gather_one(
    const V* value, int64_t stride, const Samples<T>& samples, int begin, int end, T* out) {
  for (int point = begin; point < end; ++point) {
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t token = samples.token[corner][point];
      if (token >= 0) *out += samples.weight[corner][point] * to_compute(value[token * stride]);
    }
  }
}

template <class V, class T>
DEIM_INLINE void gather_row(
    const Problem& problem, const V* value, const Samples<T>& samples, int begin, int end, T* out) {
  constexpr int kWidth = Pack<T>::kWidth;
  const int channels = problem.channels;
  const int64_t stride = token_stride(problem);
  int channel = 0;
  for (; channel + 4 * kWidth <= channels; channel += 4 * kWidth) {
    gather<4>(value + channel, stride, samples, begin, end, out + channel);
  }
  for (; channel + 2 * kWidth <= channels; channel += 2 * kWidth) {
    gather<2>(value + channel, stride, samples, begin, end, out + channel);
  }
  for (; channel + kWidth <= channels; channel += kWidth) {
    gather<1>(value + channel, stride, samples, begin, end, out + channel);
  }
  for (; channel < channels; ++channel) {
    gather_one(value + channel, stride, samples, begin, end, out + channel);
  }
}

template <class V>
DEIM_INLINE void forward_rows(
    const Problem& problem, const ForwardTensors& tensors, int64_t begin, int64_t end) {
  using T = compute_t<V>;
  const int channels = problem.channels, points = problem.points;
  T* out = static_cast<T*>(tensors.out);
  std::fill(out + begin * channels, out + end * channels, T(0));
  // Several rows with all of their points, or a part of one row's.
  const int part = std::min(points, kPointsAtOnce);
  const int rows_at_once = kPointsAtOnce / std::max(part, 1);
  LevelTable levels;
  levels.fill(problem, 0, part * rows_at_once);
  Samples<T> samples;
  for (int64_t first_row = begin; first_row < end; first_row += rows_at_once) {
    const int rows = int(std::min<int64_t>(rows_at_once, end - first_row));
    for (int first = 0; first < points; first += part) {
      const int count = std::min(part, points - first);
      const int64_t i = first_row * points + first;
      if (part < points) levels.fill(problem, first, count);
      locate_all(
          problem.nearest,
          static_cast<const T*>(tensors.locations) + 2 * i,
          static_cast<const T*>(tensors.attention) + i,
          levels,
          rows * count,
          samples);
      for (int k = 0; k < rows; ++k) {
        const int64_t row = first_row + k;
        const V* value = static_cast<const V*>(tensors.value) +
            head_offset(problem, row / problem.heads / problem.queries, row % problem.heads);
        gather_row(problem, value, samples, k * count, (k + 1) * count, out + row * channels);
      }
    }
  }
}

template <class V, class T>
DEIM_INLINE T dot_product(const T* gradient, const V* value, int channels) {
  constexpr int kWidth = Pack<T>::kWidth;
  typename Pack<T>::type sums = {};
  int channel = 0;
  for (; channel + kWidth <= channels; channel += kWidth) {
    sums += load<T, T>(gradient + channel) * load<V, T>(value + channel);
  }
  T sum = sum_of<T>(sums);
  for (; channel < channels; ++channel) sum += gradient[channel] * to_compute(value[channel]);
  return sum;
}

// grad_value += weight · gradient at a cell's corners.
template <class T>
DEIM_INLINE void scatter(const Sample<T>& sample, const T* gradient, int channels, T* grad_value) {
  constexpr int kWidth = Pack<T>::kWidth;
  for (int corner = 0; corner < 4; ++corner) {
    if (sample.token[corner] < 0) continue;
    const T weight = sample.weight[corner];
    T* target = grad_value + int64_t(sample.token[corner]) * channels;
    int channel = 0;
    for (; channel + kWidth <= channels; channel += kWidth) {
      store<T>(
          target + channel,
          load<T, T>(target + channel) + weight * load<T, T>(gradient + channel));
    }
    for (; channel < channels; ++channel) target[channel] += weight * gradient[channel];
  }
}

template <class V>
DEIM_INLINE void backward_heads(
    const Problem& problem,
    const BackwardTensors& tensors,
    compute_t<V>* scratch,
    int64_t begin,
    int64_t end) {
  using T = compute_t<V>;
  const int channels = problem.channels, points = problem.points;
  const int64_t stride = token_stride(problem);
  const int part = std::min(points, kPointsAtOnce);
  LevelTable levels;
  levels.fill(problem, 0, part);
  Samples<T> samples;
  T dots[4][kPointsAtOnce];
  for (int64_t index = begin; index < end; ++index) {
    const int64_t image = index / problem.heads;
    const int head = index % problem.heads;
    const int64_t offset = head_offset(problem, image, head);
    const V* value = static_cast<const V*>(tensors.value) + offset;
    // Gathered side by side: in grad_value itself heads lie between one token and the next.
    std::fill(scratch, scratch + problem.tokens * channels, T(0));
    for (int64_t query = 0; query < problem.queries; ++query) {
      const int64_t row = (image * problem.queries + query) * problem.heads + head;
      const T* gradient = static_cast<const T*>(tensors.grad_out) + row * channels;
      Sample<T> pending = no_sample<T>();
      for (int first = 0; first < points; first += part) {
        const int count = std::min(part, points - first);
        const int64_t i = row * points + first;
        const T* locations = static_cast<const T*>(tensors.locations) + 2 * i;
        const T* attention = static_cast<const T*>(tensors.attention) + i;
        if (part < points) levels.fill(problem, first, count);
        locate_all(problem.nearest, locations, attention, levels, count, samples);
        for (int point = 0; point < count; ++point) {
          const Sample<T> sample = samples.get(point);
          for (int corner = 0; corner < 4; ++corner) {
            const int64_t token = sample.token[corner];
            dots[corner][point] =
                token < 0 ? T(0) : dot_product(gradient, value + token * stride, channels);
          }
          if (same_cell(pending, sample)) {
            merge(pending, sample);
          } else {
            scatter(pending, gradient, channels, scratch);
            pending = sample;
          }
        }
        T* grad_attention = static_cast<T*>(tensors.grad_attention) + i;
        if (problem.nearest) {
          std::copy_n(dots[0], count, grad_attention);
        } else {
          T* grad_locations = static_cast<T*>(tensors.grad_locations) + 2 * i;
          for (int point = 0; point < count; ++point) {
            const T dot[4] = {dots[0][point], dots[1][point], dots[2][point], dots[3][point]};
            const PointGradient<T> gradients =
                point_gradient(locations + 2 * point, attention[point], levels.get(point), dot);
            grad_locations[2 * point] = gradients.x;
            grad_locations[2 * point + 1] = gradients.y;
            grad_attention[point] = gradients.attention;
          }
        }
      }
      scatter(pending, gradient, channels, scratch);
    }
    T* grad_value = static_cast<T*>(tensors.grad_value) + offset;
    for (int64_t token = 0; token < problem.tokens; ++token) {
      std::copy_n(scratch + token * channels, channels, grad_value + token * stride);
    }
  }
}

// One binary for all processors of an architecture: it takes the better code where it can run.
#if defined(__x86_64__) && defined(__GNUC__)
#define DEIM_AVX2 __attribute__((target("avx2,fma")))
#else
#define DEIM_AVX2
#endif

bool has_avx2() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

template <class V>
DEIM_AVX2 void forward_avx2(
    const Problem& problem, const ForwardTensors& tensors, int64_t begin, int64_t end) {
  forward_rows<V>(problem, tensors, begin, end);
}

template <class V>
void forward(const Problem& problem, const ForwardTensors& tensors, int64_t begin, int64_t end) {
  if (has_avx2()) return forward_avx2<V>(problem, tensors, begin, end);
  forward_rows<V>(problem, tensors, begin, end);
}

template <class V>
DEIM_AVX2 void backward_avx2(
    const Problem& problem,
    const BackwardTensors& tensors,
    void* scratch,
    int64_t begin,
    int64_t end) {
  backward_heads<V>(problem, tensors, static_cast<compute_t<V>*>(scratch), begin, end);
}

template <class V>
void backward(
    const Problem& problem,
    const BackwardTensors& tensors,
    void* scratch,
    int64_t begin,
    int64_t end) {
  if (has_avx2()) return backward_avx2<V>(problem, tensors, scratch, begin, end);
  backward_heads<V>(problem, tensors, static_cast<compute_t<V>*>(scratch), begin, end);
}

}  // namespace

void forward_on_cpu(
    const Problem& problem,
    ValueType type,
    const ForwardTensors& tensors,
    int64_t begin,
    int64_t end) {
  switch (type) {
    case ValueType::kFloat:
      return forward<float>(problem, tensors, begin, end);
    case ValueType::kDouble:
      return forward<double>(problem, tensors, begin, end);
    case ValueType::kHalf:
      return forward<Half>(problem, tensors, begin, end);
    case ValueType::kBFloat16:
      return forward<BFloat16>(problem, tensors, begin, end);
  }
}

void backward_on_cpu(
    const Problem& problem,
    ValueType type,
    const BackwardTensors& tensors,
    void* scratch,
    int64_t begin,
    int64_t end) {
  switch (type) {
    case ValueType::kFloat:
      return backward<float>(problem, tensors, scratch, begin, end);
    case ValueType::kDouble:
      return backward<double>(problem, tensors, scratch, begin, end);
    case ValueType::kHalf:
      return backward<Half>(problem, tensors, scratch, begin, end);
    case ValueType::kBFloat16:
      return backward<BFloat16>(problem, tensors, scratch, begin, end);
  }
}

}  // namespace deim
