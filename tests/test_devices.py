"""What the process is told before it computes."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from rankdistillm.devices import device_of
from rankdistillm.errors import InputError


@pytest.mark.parametrize("name", ["meta", "vulkan", "hpu"])
def test_a_device_that_cannot_compute_is_refused(name):
    with pytest.raises(InputError, match=f"device={name}: this torch cannot compute on it"):
        device_of(name)


MAKE_PRODUCTS = """
import torch
from rankdistillm.devices import bound_compiled_products

bound_compiled_products()
for length in (*range(3, 100), 3):
    torch.nn.functional.gelu(torch.ones(length).to_mkldnn())
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize(("capacity", "compiled"), [(None, 98), ("1024", 97)])
def test_few_compiled_products_are_kept(capacity, compiled):
    environment = {**os.environ, "ONEDNN_VERBOSE": "profile_create"}
    environment.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
    if capacity:
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = capacity
    command = [sys.executable, "-c", MAKE_PRODUCTS]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    made = [line for line in done.stdout.splitlines() if ",eltwise," in line]
    assert sum("cache_miss" in line for line in made) == compiled


REUSE_MEMORY = """
import resource
import torch
from rankdistillm.devices import keep_freed_memory

if {kept}:
    keep_freed_memory(torch.device("cpu"))
torch.ones(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
@pytest.mark.parametrize("kept", [False, True])
def test_freed_memory_is_kept(kept):
    command = [sys.executable, "-c", REUSE_MEMORY.format(kept=kept)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    pages_mapped, pages = int(done.stdout), 4 * 2**25 // os.sysconf("SC_PAGE_SIZE")
    assert (pages_mapped < pages / 10) == kept
