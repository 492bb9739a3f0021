// The CUDA kernels and their launches, for contiguous tensors on the current device.
#pragma once

#include <cuda_runtime_api.h>

#include "core.h"

namespace deim {

// Threads of a block, and so the channels of the widest head.
constexpr int kThreads = 128;
// Whether this CUDA has an atomicAdd of four floats, for GPUs of compute capability 9.0 and above.
#if defined(CUDART_VERSION) && CUDART_VERSION >= 12010
#define DEIM_ADDS_VECTORS 1
#else
#define DEIM_ADDS_VECTORS 0
#endif

cudaError_t launch_forward(
    const Problem& problem,
    ValueType type,
    const void* value,
    const void* locations,
    const void* attention,
    void* out,
    cudaStream_t stream);

// grad_value has the compute type and starts as zeros. grad_locations is not touched by the
// nearest method. `adds_vectors`: a thread has four channels instead of one, which is
// faster where the GPU adds four floats at once (compute capability 9.0 and above).
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
    cudaStream_t stream);

}  // namespace deim
