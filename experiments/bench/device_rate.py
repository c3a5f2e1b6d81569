"""Tokens per second, and the share of the device's own matrix rate that they take.

    python -m experiments.bench.device_rate [--model minilm|electra_base|electra_large] \
        [--lists 4] [--list-size 32] [--steps 5] [--dropout 0 0.1] [--profile 20]

Random weights of that shape, generated texts (`experiments.bench.generated`); no hub, no data. For
the published recipe it says how many minutes its pairs would take on this device; with
``--profile`` also what takes longest on it.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer, BertConfig, BertModel, ElectraConfig, ElectraModel

from experiments.bench.generated import collection, training_data
from experiments.bench.lists import set_dropout
from rankdistillm.devices import autocast_dtype_of, device_of, keep_freed_memory
from rankdistillm.losses import ranknet_loss
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.formats import Checkpoint
from rankdistillm.model.formats.files import locate
from rankdistillm.model.heads import MonoNetwork
from rankdistillm.training.gradients import TokenBudget, step_gradients
from rankdistillm.training.optim import make_optimizer, make_scaler

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# (model class, configuration class, layers, hidden, heads, feed-forward)
SHAPES: dict[str, tuple[Any, Any, int, int, int, int]] = {
    "tiny": (ElectraModel, ElectraConfig, 2, 32, 2, 64),
    "minilm": (BertModel, BertConfig, 6, 384, 12, 1536),
    "electra_base": (ElectraModel, ElectraConfig, 12, 768, 12, 3072),
    "electra_large": (ElectraModel, ElectraConfig, 24, 1024, 16, 4096),
}
RECIPE_PAIRS = 5.1e6 + 3.0e6  # stage 1 and stage 2 of Rank-DistiLLM


def flop_per_token(layers: int, hidden: int, heads: int, feed_forward: int, length: float) -> float:
    """Floating-point operations of a forward pass, at ``length`` tokens a pair.

    Two for each weight of a matrix and token, and 4 · length · hidden for the attention of a layer.
    In the last layer the one query of a pair meets the hidden states themselves, and the matrices
    are for that token alone.
    """
    matrices = 2 * (4 * hidden * hidden + 2 * hidden * feed_forward)
    whole_layer = matrices + 4 * length * hidden
    last_layer = 4 * heads * hidden + matrices / length
    return (layers - 1) * whole_layer + last_layer


def matrix_rate(device: torch.device, dtype: torch.dtype, hidden: int, feed_forward: int) -> float:
    """Operations per second of the model's largest matrix product, the best of several sizes."""
    best = 0.0
    for tokens in (16384, 65536) if device.type == "cuda" else (2048,):
        rows = torch.randn(tokens, hidden, device=device, dtype=dtype)
        weight = torch.randn(feed_forward, hidden, device=device, dtype=dtype)

        def products(rows: Tensor = rows, weight: Tensor = weight) -> None:
            for _ in range(10):  # many, so that to wait for the device does not count
                linear(rows, weight)

        seconds = median(_seconds(device, products) for _ in range(10)) / 10
        best = max(best, 2 * tokens * hidden * feed_forward / seconds)
    return best


def _seconds(device: torch.device, work: Callable[[], Any]) -> float:
    _synchronise(device)
    started = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def print_profile(device: torch.device, what: str, work: Callable[[], Any], rows: int) -> None:
    """What takes longest on the device: its share of the time, how often, and how long each."""
    is_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as found:
        work()
        _synchronise(device)
    times = {
        event: event.self_device_time_total if is_gpu else event.self_cpu_time_total
        for event in found.key_averages()
    }
    total = sum(times.values())
    print(f"{what}: {total / 1e3:.1f} ms on the device")
    for event in sorted(times, key=times.__getitem__, reverse=True)[:rows]:
        each = times[event] / event.count
        print(f"{times[event] / total:6.1%} {event.count:5} x {each:8.1f} us  {event.key[:80]}")


def student(name: str, tokenizer: Any, device: torch.device) -> CrossEncoder:
    """A student of that shape with random weights."""
    network = MonoNetwork(encoder(name, len(tokenizer)))
    checkpoint = Checkpoint("encoder", network, tokenizer, 32, 256, 512)
    return CrossEncoder(checkpoint, autocast_dtype=autocast_dtype_of("auto", device)).to(device)


def encoder(name: str, vocab_size: int) -> Any:
    """An encoder of that shape with random weights and without dropout."""
    model_class, config_class, layers, hidden, heads, feed_forward = SHAPES[name]
    config = config_class(
        vocab_size=vocab_size,
        embedding_size=hidden,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return model_class(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="minilm")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--lists", type=int, default=4)
    parser.add_argument("--list-size", type=int, default=32)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0])
    parser.add_argument("--profile", type=int, default=0, metavar="ROWS")
    parser.add_argument("--tokenizer", default=MINILM)
    arguments = parser.parse_args()
    device = device_of("auto")
    keep_freed_memory(device)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(locate(arguments.tokenizer))
    model = student(arguments.model, tokenizer, device)
    run, queries, docs = collection(arguments.lists, arguments.list_size)
    data = training_data(
        model, run, queries, docs, queries_per_step=arguments.lists, epochs=arguments.steps + 1
    )
    optimizer = make_optimizer(model, 1e-5, 0.01)
    scaler = make_scaler(device, is_fp16=model.autocast_dtype == torch.float16)
    budget = TokenBudget.for_model(model)
    weights = list(model.parameters())
    batches = [data.batch(step) for step in range(len(data))]

    def train(step: int) -> None:
        step_gradients(model, ranknet_loss, batches[step], budget=budget, scaler=scaler)
        scaler.unscale_(optimizer)
        clip_grad_norm_(weights, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def rerank(step: int) -> None:
        pairs = batches[step].pairs
        fused = model.fused_layers()
        with model.autocast():  # as `Reranker` does
            for chunk in model.plan_chunks(pairs.lengths):
                model(pairs.select(chunk), fused)

    _, _, layers, hidden, heads, feed_forward = SHAPES[arguments.model]
    rate = matrix_rate(device, model.autocast_dtype, hidden, feed_forward)
    length = float(batches[0].pairs.lengths.mean())
    flop = flop_per_token(layers, hidden, heads, feed_forward, length)
    print(
        f"{arguments.model}, {length:.0f} tokens a pair; a matrix product: {rate / 1e9:.0f} GFLOP/s"
    )
    print("| | tokens/s | pairs/s | share of the matrix rate | the recipe's pairs, minutes |")
    print("|---|---|---|---|---|")

    def measure(what: str, work: Callable[[int], None], passes: int) -> None:
        work(0)
        work(1)
        # Together, as in a training: while the device works on a step the next one is prepared.
        seconds = _seconds(device, lambda: [work(step) for step in range(1, len(batches))])
        tokens = sum(float(batch.pairs.lengths.sum()) for batch in batches[1:]) / seconds
        share = passes * flop * tokens / rate
        minutes = RECIPE_PAIRS * length / tokens / 60
        print(
            f"| {what} | {tokens:.0f} | {tokens / length:.1f} | {share:.0%} | {minutes:.1f} |",
            flush=True,
        )

    model.train()
    for dropout in arguments.dropout:
        set_dropout(model, dropout)
        measure(f"training, dropout {dropout}", train, passes=3)
    model.eval()
    measure("re-ranking", rerank, passes=1)
    if arguments.profile:
        print_profile(device, "re-ranking", lambda: rerank(1), arguments.profile)
        model.train()
        print_profile(device, f"training, dropout {dropout}", lambda: train(1), arguments.profile)


if __name__ == "__main__":
    main()
