"""Peak memory and time of a training step against the length of a list, at one token budget.

    python -m experiments.bench.memory WORK [--pairs 1000] [--token-budget 8192] \
        [--model minilm|electra_base|electra_large]

Each step has the same number of pairs: many short lists or one long one. On a CPU each point is
measured in a process of its own. The ELECTRA models have random weights.
"""

import argparse
import gc
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from experiments.bench.device_rate import MINILM, SHAPES, student
from experiments.bench.generated import collection, training_data
from rankdistillm.devices import bound_compiled_products, device_of, keep_freed_memory
from rankdistillm.losses import ranknet_loss
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.formats.files import locate
from rankdistillm.training.gradients import TokenBudget, step_gradients
from rankdistillm.training.optim import make_scaler

LIST_SIZES = (10, 30, 100, 300, 1000)


def measure(list_size: int, arguments: argparse.Namespace) -> dict[str, float]:
    """MiB at the peak and before the step, and milliseconds a pair, of the second of two steps."""
    device = device_of("auto")
    keep_freed_memory(device)
    bound_compiled_products()
    torch.manual_seed(0)
    if arguments.model == "minilm":
        model = CrossEncoder.from_pretrained(MINILM, dropout=0.0, device=device)
    else:
        tokenizer = AutoTokenizer.from_pretrained(locate(arguments.tokenizer))
        model = student(arguments.model, tokenizer, device)
    model.train()
    if device.type == "cuda":
        gc.collect()  # the model of the point before
        torch.cuda.reset_peak_memory_stats()
    num_lists = max(1, arguments.pairs // list_size)
    run, queries, docs = collection(num_lists, list_size)
    data = training_data(model, run, queries, docs, queries_per_step=num_lists, epochs=2)
    before = peak(device)
    for step in range(2):
        started = time.perf_counter()
        batch = data.batch(step)
        step_gradients(
            model,
            ranknet_loss,
            batch,
            budget=TokenBudget(arguments.token_budget),
            scaler=make_scaler(device, is_fp16=False),
        )
        highest = peak(device)  # waits for the device
        seconds = time.perf_counter() - started
        model.zero_grad(set_to_none=True)
    return {
        "list_size": list_size,
        "peak_mib": highest,
        "before_mib": before,
        "ms_per_pair": 1000 * seconds / len(batch.pairs),
    }


def measure_apart(list_size: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "experiments.bench.memory", *sys.argv[1:]]
    command.append(f"--list-size={list_size}")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak(device: torch.device) -> float:
    """MiB at the highest: of the device's own memory, on a CPU of this process."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20
    # Of this process alone: ru_maxrss starts at that of the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("--model", choices=SHAPES, default="minilm")
    parser.add_argument("--tokenizer", default=MINILM, help="of the models with random weights")
    parser.add_argument("--list-size", type=int, help="measure this one, here, and print JSON")
    arguments = parser.parse_args()
    if arguments.list_size:
        print(json.dumps(measure(arguments.list_size, arguments)))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    print("| list size | peak, MiB | before the step, MiB | ms a pair |\n|---|---|---|---|")
    rows = []
    for size in LIST_SIZES:
        # What tensors hold on a GPU is counted exactly; a CPU has what its process holds.
        row = measure(size, arguments) if torch.cuda.is_available() else measure_apart(size)
        rows.append(row)
        print(
            f"| {size} | {row['peak_mib']:.0f} | {row['before_mib']:.0f} | "
            f"{row['ms_per_pair']:.1f} |",
            flush=True,
        )
    (arguments.work / "memory.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
