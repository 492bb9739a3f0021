// What one sampling point reads and what it gives back: written once, for host and device.
//
// Deformable attention (arXiv 2010.04159, eq. 3) with n_l points on level l. Tensors are contiguous:
//   value      (B, tokens, heads, channels), tokens = Σ H_l W_l, levels one after another
//   locations  (B, Q, heads, points, 2) as (x, y), points = Σ n_l, a level spanning [0, 1]
//   attention  (B, Q, heads, points)
//   out        (B, Q, heads, channels)
// A "row" is one (image, query, head): rows = B · Q · heads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define DEIM_INLINE __host__ __device__ __forceinline__
#else
// Inlined by force: the CPU kernels are compiled for several instruction sets, and a function of
// its own would be compiled for the lowest only.
#define DEIM_INLINE inline __attribute__((always_inline))
#endif

namespace deim {

enum class ValueType { kFloat, kDouble, kHalf, kBFloat16 };

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type in which values of type V are interpolated and summed. Locations, attention weights,
// the output and all gradients have it, too.
template <class V>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class V>
using compute_t = typename Compute<V>::type;

DEIM_INLINE float from_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float number;
  std::memcpy(&number, &bits, sizeof(number));
  return number;
#endif
}

DEIM_INLINE float to_compute(float value) { return value; }
DEIM_INLINE double to_compute(double value) { return value; }
DEIM_INLINE float to_compute(BFloat16 value) { return from_bits(uint32_t(value.bits) << 16); }
DEIM_INLINE float to_compute(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  // The exponent moves from 5 to 8 bits; scaling by 2^112 adjusts its bias, subnormals included.
  const uint32_t magnitude = value.bits & 0x7fffu;
  const float number = from_bits(magnitude << 13) * 0x1p112f;
  const float special = from_bits(0x7f800000u | magnitude << 13);
  const float result = magnitude >= 0x7c00u ? special : number;
  return value.bits & 0x8000u ? -result : result;
#endif
}

DEIM_INLINE float floor_of(float number) { return ::floorf(number); }
DEIM_INLINE double floor_of(double number) { return ::floor(number); }

constexpr int kMaxLevels = 8;

struct Level {
  int height;
  int width;
  int first_token;
  int first_point;
};

struct Problem {
  int64_t batch;
  int64_t queries;
  int heads;
  int channels;
  int points;
  int levels;
  int64_t tokens;
  // The 'discrete' method of RT-DETRv2 instead of bilinear interpolation.
  bool nearest;
  Level level[kMaxLevels];
};

DEIM_INLINE int64_t rows_of(const Problem& problem) {
  return problem.batch * problem.queries * problem.heads;
}

// Elements of value from one token to the next, and before those of an image's head.
DEIM_INLINE int64_t token_stride(const Problem& problem) {
  return int64_t(problem.heads) * problem.channels;
}
DEIM_INLINE int64_t head_offset(const Problem& problem, int64_t image, int head) {
  return image * problem.tokens * token_stride(problem) + int64_t(head) * problem.channels;
}

DEIM_INLINE const Level& level_of(const Problem& problem, int point) {
  int index = 0;
  while (index + 1 < problem.levels && point >= problem.level[index + 1].first_point) ++index;
  return problem.level[index];
}

// A point's four corners, in the order top left, top right, bottom left, bottom right: their
// tokens (-1 outside of the level) and shares, attention weight included. Aligned for loads of 16
// bytes.
template <class T>
struct alignas(16) Sample {
  int token[4];
  T weight[4];
};

template <class T>
DEIM_INLINE Sample<T> no_sample() {
  return {{-1, -1, -1, -1}, {0, 0, 0, 0}};
}

// All that follows is free of branches, so that a compiler can work on many points at once.

// A cell of the pixel grid by its top left pixel, and the place in it: both shares in [0, 1). What
// lies outside of the level by a pixel or more, or nowhere, ends in a cell without any pixel.
template <class T>
struct Cell {
  int row;
  int column;
  T down;
  T right;
};

template <class T>
DEIM_INLINE Cell<T> cell_of(T x, T y, const Level& level) {
  const T width = T(level.width), height = T(level.height);
  x = x * width - T(0.5);
  y = y * height - T(0.5);
  // Bounded before the conversion to int, which is defined for small numbers only. NaN gives -2.
  x = x > T(-2) ? x : T(-2);
  y = y > T(-2) ? y : T(-2);
  x = x < width ? x : width;
  y = y < height ? y : height;
  const T left = floor_of(x), top = floor_of(y);
  return {int(top), int(left), y - top, x - left};
}

// A model that breaks has to show it: NaN in a location makes NaN of output and gradients.
template <class T>
DEIM_INLINE T nan_or_zero(const T* location) {
  const T sum = location[0] + location[1];
  return sum != sum ? sum : T(0);
}

template <class T>
DEIM_INLINE Sample<T> locate_bilinear(const T* location, T attention, const Level& level) {
  const Cell<T> cell = cell_of(location[0], location[1], level);
  const T nan = nan_or_zero(location);
  // Not &&, which is a branch.
  const bool top = (cell.row >= 0) & (cell.row < level.height);
  const bool bottom = (cell.row >= -1) & (cell.row + 1 < level.height);
  const bool left = (cell.column >= 0) & (cell.column < level.width);
  const bool right = (cell.column >= -1) & (cell.column + 1 < level.width);
  const int token = level.first_token + cell.row * level.width + cell.column;
  Sample<T> sample;
  const int outside = nan != nan ? level.first_token : -1;
  sample.token[0] = top & left ? token : outside;
  sample.token[1] = top & right ? token + 1 : -1;
  sample.token[2] = bottom & left ? token + level.width : -1;
  sample.token[3] = bottom & right ? token + level.width + 1 : -1;
  const T below = attention * cell.down, above = attention - below;
  sample.weight[1] = above * cell.right;
  sample.weight[0] = above - sample.weight[1] + nan;
  sample.weight[3] = below * cell.right;
  sample.weight[2] = below - sample.weight[3];
  return sample;
}

// The pixel floor(x · W + 0.5), clamped to the level; NaN gives pixel 0.
template <class T>
DEIM_INLINE int nearest_pixel(T x, int width) {
  x = x * T(width) + T(0.5);
  x = x > T(0) ? x : T(0);
  x = x < T(width - 1) ? x : T(width - 1);
  return int(x);
}

template <class T>
DEIM_INLINE Sample<T> locate_nearest(const T* location, T attention, const Level& level) {
  const int row = nearest_pixel(location[1], level.height);
  const int column = nearest_pixel(location[0], level.width);
  Sample<T> sample = no_sample<T>();
  sample.token[0] = level.first_token + row * level.width + column;
  sample.weight[0] = attention + nan_or_zero(location);
  return sample;
}

template <class T>
struct PointGradient {
  T x;
  T y;
  T attention;
};

// From each corner's dot product with the row's output gradient (0 outside of the level).
template <class T>
DEIM_INLINE PointGradient<T> point_gradient(
    const T* location, T attention, const Level& level, const T (&dot)[4]) {
  const Cell<T> cell = cell_of(location[0], location[1], level);
  const T nan = nan_or_zero(location);
  const T above = dot[1] - dot[0], below = dot[3] - dot[2];
  const T left = dot[2] - dot[0];
  const T across = above + cell.down * (below - above);
  const T down = left + cell.right * (below - above);
  return {
      attention * T(level.width) * across + nan,
      attention * T(level.height) * down + nan,
      dot[0] + cell.down * left + cell.right * across + nan};
}

// Neighbouring points of a row often lie in one cell. As they share the row's output gradient,
// their shares can be summed before value's gradient is touched: one update instead of several.
template <class T>
DEIM_INLINE bool same_cell(const Sample<T>& a, const Sample<T>& b) {
  return a.token[0] == b.token[0] && a.token[1] == b.token[1] && a.token[2] == b.token[2] &&
      a.token[3] == b.token[3];
}

template <class T>
DEIM_INLINE void merge(Sample<T>& sum, const Sample<T>& sample) {
  for (int corner = 0; corner < 4; ++corner) sum.weight[corner] += sample.weight[corner];
}

}  // namespace deim
