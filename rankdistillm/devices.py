"""Devices and precision, memory settings of a CPU process, and asynchronous copies."""

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rankdistillm.errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

S = TypeVar("S")
T = TypeVar("T")

# How many items `prefetch` prepares while one is in use.
AHEAD = 2


def device_of(name: str | torch.device) -> torch.device:
    """The device of that name: ``auto`` (CUDA if there is one, else the CPU), or torch's spelling.

    ``cuda`` without a number gives each process of a job (``torchrun``) its own device. Raises
    `InputError` for a device that does not exist or that this torch cannot compute on.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name}: torch sees {torch.cuda.device_count()} CUDA devices; use auto"
        )
    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, ImportError, RuntimeError) as error:
        raise InputError(f"device {name}: this torch cannot compute on it; use auto") from error
    return device


def autocast_dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The type of ``fp32``, ``bf16`` or ``fp16``; for ``auto`` the best one of the device.

    That is bf16 where the hardware computes it, fp16 on older GPUs, else fp32.
    """
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision in named:
        return named[precision]
    if precision != "auto":
        raise InputError(f"precision={precision} is not one of auto, {', '.join(named)}")
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    if device.type == "cpu" and cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU computes bf16 in hardware."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def keep_freed_memory(device: torch.device) -> None:
    """Make glibc keep the memory of freed CPU tensors for later ones.

    By default glibc returns large blocks to the system at once, and the system maps and zeroes the
    pages of the next tensor again: a tenth of the time of a training step. Does nothing on a GPU,
    whose allocator keeps memory by itself, or without glibc.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" and device.type == "cpu" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return
    # M_TRIM_THRESHOLD: never trim; M_MMAP_MAX: map no block separately. (M_MMAP_THRESHOLD cannot
    # replace the latter: older glibc refuses values above 32 MiB, and setting M_TRIM_THRESHOLD
    # fixes it at 128 KiB.)
    for option, value in ((-1, 2**31 - 1), (-4, 0)):
        libc.mallopt(option, value)


def bound_compiled_products() -> None:
    """Make oneDNN keep the last 64 compiled matrix products on a CPU, instead of 1,024.

    In half precision it compiles one for each new shape and keeps half a MiB for each, which
    fragments the memory of the tensors. Training is as fast with 64. Call this before the first
    product; a capacity set in the environment stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to the device, asynchronously."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def peak_memory(device: torch.device) -> int | None:
    """The most memory used so far, in bytes: by tensors on a GPU, by the whole process on a CPU.

    None on a system that does not report the latter (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def pair_too_large(num_tokens: int) -> InputError:
    """The error for a single pair of ``num_tokens`` that exceeds the device's memory."""
    return InputError(
        f"a pair of {num_tokens} tokens does not fit into the device's memory; use a smaller "
        "model, shorter passages (doc_length) or another device"
    )


def prefetch(make: Callable[[S], T], sources: Iterable[S]) -> Iterator[T]:
    """Yield ``make(source)`` for each source; a thread makes the next ones in the meantime."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        for source in sources:
            waiting.append(thread.submit(make, source))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def async_copy(values: Tensor) -> Callable[[], list[float]]:
    """Start copying the values to the CPU; returns a function that waits for them.

    Reading them directly would wait for all work queued on the device.
    """
    if values.device.type != "cuda":
        return values.tolist
    host = torch.empty_like(values, device="cpu", pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(values.device))

    def read() -> list[float]:
        copied.synchronize()
        return host.tolist()

    return read
