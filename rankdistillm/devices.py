"""Where a model computes, in which precision, and how figures travel there and back."""

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

T = TypeVar("T")

# So many are made while the device is busy with the one before.
AHEAD = 2


def device_of(name: str | torch.device) -> torch.device:
    """``auto``: CUDA if there is one, else the CPU; any other name as torch spells it.

    Each process of a job (``torchrun``) has a CUDA device of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device={name} is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device={name}: torch sees {torch.cuda.device_count()} CUDA devices; use device=auto"
        )
    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, ImportError, RuntimeError) as error:  # of a device that is not there
        raise InputError(
            f"device={name}: this torch cannot compute on it; use device=auto"
        ) from error
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
    if device.type == "cpu" and cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU computes bf16 in hardware."""
    # torch 2.10 has no public question for this.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(
        capabilities.get("avx512_bf16")
        or capabilities.get("amx_bf16")
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    )


def keep_freed_memory(device: torch.device) -> None:
    """Let this process keep the memory that CPU tensors free, for the next ones.

    glibc gives large blocks back to the system at once, and the system maps and zeroes the pages of
    the next tensor anew: a tenth of the time of a training step. Does nothing on a GPU, whose
    allocator keeps its memory by itself, or without glibc.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" and device.type == "cpu" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return
    # M_TRIM_THRESHOLD: never; M_MMAP_MAX: no block is mapped by itself. (Older glibc takes no
    # M_MMAP_THRESHOLD above 32 MiB, and with the other set it leaves its own at 128 KiB.)
    for option, value in ((-1, 2**31 - 1), (-4, 0)):
        libc.mallopt(option, value)


def bound_compiled_products() -> None:
    """Let oneDNN keep the last 64 matrix products that it compiled, not 1,024, on a CPU.

    It compiles each new shape in half precision, and half a MiB is kept for each, scattered in
    between the tensors. A training step takes as long without them. Call it before the first one
    is made; a capacity that the environment says stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; the processor does not wait for it."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def pair_too_large(num_tokens: int) -> InputError:
    """What to say where not even one pair, of so many tokens, fits into the device's memory."""
    return InputError(
        f"a pair of {num_tokens} tokens does not fit into the device's memory; use a smaller "
        "model, shorter model.doc_length or another device"
    )


def made_ahead(make: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """``make`` of each number, in the background while what came before is in use."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        for number in numbers:
            waiting.append(thread.submit(make, number))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_later(values: Tensor) -> Callable[[], list[float]]:
    """Start to copy the values back; the function returned waits until they are there.

    Reading them at once would make the processor wait for all that the device has still to do.
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
