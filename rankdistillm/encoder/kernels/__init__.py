"""Triton kernels for attention and for what stands between the matrix products of a layer.

Triton comes with torch's CUDA builds. Without it the modules of this folder cannot be imported, and
`rankdistillm.encoder.cuda` reports itself unavailable.
"""

import torch


def num_multiprocessors(device: torch.device) -> int:
    """The multiprocessors of a GPU; 1 on other devices, where Triton's interpreter runs."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
