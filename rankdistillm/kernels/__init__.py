"""Attention and what else lies between the matrix products of a layer, as kernels of Triton.

Triton comes with torch's builds for CUDA; without it the modules of this folder cannot be imported,
and `rankdistillm.cuda_layers` does without them.
"""

import torch


def num_multiprocessors(device: torch.device) -> int:
    """Of a GPU; 1 elsewhere, where Triton's interpreter runs the kernels."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
