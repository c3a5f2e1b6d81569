"""Say what runs here: ``python -m rankdistillm.info`` prints what to paste into an issue.

It names versions, the device, the precision that ``auto`` chooses, whether the fast path runs and
why not, and the caches with their sizes. Folders are shown from the home folder on, as ``~``.
"""

import os
import platform
import re
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch
from omegaconf import DictConfig
from packaging.requirements import Requirement

from rankdistillm import __version__
from rankdistillm.cli import run_command
from rankdistillm.data.cache import cache_folder
from rankdistillm.devices import autocast_dtype_of, cpu_has_bf16, device_of
from rankdistillm.encoder import PACKED_MODELS, scoring_layers
from rankdistillm.options import INFO, check_options

# Environment variables that change what the commands do; keys and tokens are not among them.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "IR_DATASETS_HOME",
    "MKL_NUM_THREADS", "NUMBA_CACHE_DIR", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA",
    "RANKDISTILLM_CACHE", "WORLD_SIZE", "XDG_CACHE_HOME",
)  # fmt: skip
INDENT = " " * 15  # wider than the longest topic


def info(config: DictConfig) -> None:
    """Print what ``config`` (conf/info.yaml) asks for, one topic a line."""
    check_options(config, INFO)
    device = device_of(config.device)
    dtype = autocast_dtype_of(config.precision, device)
    for topic, text in _topics(config, device, dtype):
        lines = textwrap.wrap(
            text, 100, initial_indent=INDENT, subsequent_indent=INDENT, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
        print(f"{topic:<{len(INDENT)}}" + "\n".join(lines).strip())


def _topics(
    config: DictConfig, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, str]]:
    """Pairs (topic, text)."""
    yield "version", f"rankdistillm {__version__}, Python {platform.python_version()}"
    yield "system", platform.platform()
    yield from _packages()
    yield "device", _device(device)
    yield "precision", f"{_name(dtype)}{_why(config.precision, device)}"
    yield "fast path", f"packed pairs for {', '.join(PACKED_MODELS)}; other encoders run padded"
    yield "scoring", scoring_layers(device, dtype)
    if config.model.path:
        yield "model", _model(config.model.path, device, config.precision)
    for name, folder in _caches():
        yield "cache", f"{name}: {_short(folder)}, {_size(folder)}"
    found = [f"{name}={_short(os.environ[name])}" for name in VARIABLES if name in os.environ]
    if found:
        yield "variables", " ".join(found)


def _packages() -> Iterator[tuple[str, str]]:
    """The versions of all required packages, then of those of each extra."""
    core: list[str] = []
    extras: dict[str, list[str]] = {}
    for requirement in map(Requirement, metadata.requires("rankdistillm") or []):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            core.append(_version(requirement.name))
        for extra in metadata.metadata("rankdistillm").get_all("Provides-Extra") or []:
            if marker and extra != "test" and marker.evaluate({"extra": extra}):
                extras.setdefault(extra, []).append(_version(requirement.name))
    yield "packages", ", ".join(core)
    for extra, versions in extras.items():
        yield f"[{extra}]", ", ".join(versions)


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} missing"


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        supported = torch.backends.cpu.get_cpu_capability()
        threads = f"threads: {torch.get_num_threads()}, cores: {os.cpu_count()}"
        return f"{device.type}: {_processor()}, {supported}, {threads}"
    found = torch.cuda.get_device_properties(device)
    memory = f"{found.total_memory / 2**30:.0f} GiB"
    return (
        f"{device}: {found.name}, {memory}, compute capability {found.major}.{found.minor}, "
        f"CUDA {torch.version.cuda}; {torch.cuda.device_count()} in all"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _why(precision: str, device: torch.device) -> str:
    if precision != "auto":
        return ", as given"
    if device.type == "cpu":
        has = "computes" if cpu_has_bf16() else "does not compute"
        return f", since this CPU {has} bf16 in hardware"
    return ", the best one of this device"


def _model(path: str, device: torch.device, precision: str) -> str:
    from rankdistillm.model.cross_encoder import CrossEncoder  # imported late: it takes seconds

    model = CrossEncoder.from_pretrained(path, device=device, precision=precision)
    head = "a scoring head" if model.has_head else "no scoring head"
    layout = f"{_short(path)}: layout {model.layout}, {head}"
    kind = model.network.config.model_type
    if not model.network.packed:
        return f"{layout}; runs padded: {kind} is not among the encoders of the fast path"
    fused = "faster" if model.fused_layers() else "its own"
    return f"{layout}; runs packed, and scores by {fused} layers"


def _caches() -> Iterator[tuple[str, Path]]:
    import ir_datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    yield "rankdistillm", cache_folder()
    yield "huggingface_hub", Path(HF_HUB_CACHE)
    yield "ir_datasets", ir_datasets.util.home_path()


def _size(folder: Path) -> str:
    if not folder.is_dir():
        return "empty"
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):  # another process removed it
                # Links to files that are counted themselves, as in the hub's cache, are small.
                total += os.lstat(os.path.join(parent, file)).st_size
    return f"{total / 2**20:,.1f} MiB"


def _short(path: str | Path) -> str:
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?![^/:])", "~", str(path)) if home != "/" else str(path)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Entry point of ``python -m rankdistillm.info``."""
    run_command(info, "info")


if __name__ == "__main__":
    main()
