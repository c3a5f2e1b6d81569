"""The processes of one job: ``torchrun`` starts one per device; without it there is one.

All processes read the same input and hold the same weights. They share out the lists of a training
step or the chunks of a re-ranking and add up the results; only the first process writes.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rankdistillm.errors import InputError

# Importing torch takes seconds, and some commands never need it.
if TYPE_CHECKING:
    import torch

# One process may tokenise a whole collection while the others wait for it.
TIMEOUT = timedelta(hours=2)


def rank() -> int:
    """The index of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this process has rank 0: the one that writes files and logs."""
    return rank() == 0


@contextmanager
def process_group(device: "torch.device") -> Iterator[None]:
    """Join the processes of the job, each on its ``device``, inside the ``with`` block."""
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and random generators use the current device
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield
    # Skipped after an error: nccl would wait for the others, which may be waiting for this process.
    dist.destroy_process_group()


def all_reduce(tensors: "Iterable[torch.Tensor]") -> None:
    """Replace each tensor, in place, by its sum over all processes."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    with _lost_process_reported():
        for handle in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            handle.wait()


def any_process(flag: bool, device: "torch.device") -> bool:
    """Whether ``flag`` is True in any process; the answer is the same in all of them."""
    if world_size() == 1:
        return flag
    import torch

    total = torch.tensor(float(flag), device=device)
    all_reduce([total])
    return bool(total > 0)


def barrier() -> None:
    """Wait for all processes, so that they can read what the first one wrote."""
    if world_size() > 1:
        import torch.distributed as dist

        with _lost_process_reported():
            dist.barrier()


def broadcast(value: Any) -> Any:
    """The value that the first process passes, in all processes."""
    return all_gather(value)[0]


def all_gather(value: Any) -> list[Any]:
    """The values of all processes, in order of rank."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    with _lost_process_reported():
        dist.all_gather_object(values, value)
    return values


@contextmanager
def _lost_process_reported() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo raises no class of its own
        raise InputError(
            f"process {rank()} of {world_size()} lost another process of its job "
            f"({' '.join(str(error).split())[:120]}), whose own message gives the cause; start the "
            "job again (a training resumes from its last state)"
        ) from error
