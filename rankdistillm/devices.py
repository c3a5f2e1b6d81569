"""Where a model computes, and in which precision."""

import torch

from rankdistillm.errors import InputError


def device_of(name: str | torch.device) -> torch.device:
    """``auto``: CUDA if there is one, else the CPU; any other name as torch spells it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device={name} is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device={name}: torch sees {torch.cuda.device_count()} CUDA devices; use device=auto"
        )
    return device


def autocast_dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """``auto``: bf16 where the device has it in hardware, fp16 where only that, else fp32."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision in named:
        return named[precision]
    if precision != "auto":
        raise InputError(f"precision={precision} is not one of auto, {', '.join(named)}")
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    if device.type == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def _cpu_has_bf16() -> bool:
    # torch 2.10 has no public question for this.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(
        capabilities.get("avx512_bf16")
        or capabilities.get("amx_bf16")
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    )
