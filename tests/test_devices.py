import os
import platform
import threading

import pytest
import torch

from rankdistillm.devices import (
    async_copy,
    autocast_dtype_of,
    bound_compiled_products,
    device_of,
    prefetch,
)
from rankdistillm.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "vulkan", "hpu"])
def test_a_device_that_cannot_compute_is_refused(name):
    with pytest.raises(InputError, match=f"device {name}: this torch cannot compute on it"):
        device_of(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_a_name_that_is_not_a_device_is_refused(name):
    with pytest.raises(InputError, match=f"unknown device '{name}'; use auto, cpu, cuda"):
        device_of(name)


def test_a_cuda_device_that_torch_does_not_see_is_refused():
    with pytest.raises(InputError, match=r"device cuda:99: torch sees \d+ CUDA devices"):
        device_of("cuda:99")


def test_auto_is_a_device_that_exists():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert device_of("auto").type == expected
    assert device_of(CPU) == CPU


def test_named_precisions_are_torch_types_and_others_are_refused():
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for name, dtype in names.items():
        assert autocast_dtype_of(name, CPU) == dtype
    with pytest.raises(InputError, match="precision=int8 is not one of auto, fp32, bf16, fp16"):
        autocast_dtype_of("int8", CPU)


@pytest.mark.parametrize("given", [None, "1024"])
def test_the_bound_of_compiled_products_leaves_what_the_environment_sets(given, monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, given or "")  # so that it is restored
    if given is None:
        monkeypatch.delenv(name)
    bound_compiled_products()
    assert os.environ[name] == (given or "64")


MEMORY = """
import os
import torch
from rankdistillm.devices import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

for kept in (False, True):
    if kept:
        keep_freed_memory(torch.device("cpu"))
    tensor = torch.ones(2**25)
    before = resident()
    del tensor
    print((before - resident()) / 2**27)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone")
def test_a_freed_tensor_stays_with_the_process_if_asked(process, tmp_path):
    done = process("-c", MEMORY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(map(float, done.stdout.split())) == pytest.approx([1, 0], abs=0.1)


def test_prefetch_makes_the_next_items_in_order_on_a_thread():
    made, next_is_made = [], threading.Event()

    def make(number):
        made.append((number, threading.current_thread()))
        if number == 1:
            next_is_made.set()
        return number * 10

    items = prefetch(make, range(5))
    assert next(items) == 0
    assert next_is_made.wait(10)  # while the first one is in use
    assert list(items) == [10, 20, 30, 40]
    assert [number for number, _ in made] == [0, 1, 2, 3, 4]
    assert threading.main_thread() not in [thread for _, thread in made]


def test_prefetch_raises_what_making_raises():
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda number: 1 // number, [1, 0]))


def test_an_asynchronous_copy_gives_the_values():
    assert async_copy(torch.tensor([1.0, 2.5]))() == [1.0, 2.5]
