"""The processes of one job: ``torchrun`` starts one a device; without it there is one alone.

All processes read the same input and hold the same weights. They share out the lists of a step,
or the chunks of a re-ranking, add up what comes of it, and only the first one writes.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rankdistillm.errors import InputError

# torch is imported late: commands that do without it would wait for it for seconds.
if TYPE_CHECKING:
    import torch

# How long the others wait for one that, say, tokenises a collection.
TIMEOUT = timedelta(hours=2)


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


@contextmanager
def joined(device: "torch.device") -> Iterator[None]:
    """Be one of the job's processes, on its device, inside the ``with`` block."""
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and random generators are the current device's
    if count() == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield
    # Not after an error: the others may be waiting for this process, and nccl would for them.
    dist.destroy_process_group()


def add_up(tensors: "Iterable[torch.Tensor]") -> None:
    """Put into each tensor, in place, its sum over all processes."""
    if count() == 1:
        return
    import torch.distributed as dist

    with _together():
        for handle in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            handle.wait()


def wait() -> None:
    """Until all processes are here: what the first one wrote can then be read."""
    if count() > 1:
        import torch.distributed as dist

        with _together():
            dist.barrier()


def of_first(value: Any) -> Any:
    """The first process's value."""
    return of_all(value)[0]


def of_all(value: Any) -> list[Any]:
    """Everyone's value, in order of rank."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * count()
    with _together():
        dist.all_gather_object(values, value)
    return values


@contextmanager
def _together() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo has no class of its own for it
        raise InputError(
            f"process {rank()} of {count()} lost another process of its job "
            f"({' '.join(str(error).split())[:120]}); its own message says why; the same command "
            "goes on from the last checkpoint"
        ) from error
