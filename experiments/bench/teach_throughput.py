"""Windows per second of a teacher run against a server that answers at once, and its memory.

    python -m experiments.bench.teach_throughput [--queries 50 200 800] [--concurrency 32]

Each query has 100 passages of 55 words, MS MARCO's length: nine windows of 20, stride 10. The
server is a process of its own that reads the question and answers with the reversed order, so that
the time is that of prompts, store and client. All queries draw from one pool of passages, so that
memory beyond it belongs to the asking. Each number of queries is measured in a fresh process with
an empty store.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from rankdistillm.cli import PACKAGE
from rankdistillm.data.runs import RankedList, Run
from rankdistillm.teachers.ask import rank_all
from rankdistillm.teachers.openai_endpoint import OpenAIEndpoint
from rankdistillm.teachers.prompts import Prompt
from rankdistillm.teachers.rankings import sliding_window
from rankdistillm.teachers.store import AnswerStore

POOL, DEPTH, WORDS = 5000, 100, 55
ANSWER = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "fast",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": " > ".join(f"[{i}]" for i in range(20, 0, -1)),
                },
            }
        ],
        "usage": {"prompt_tokens": 2000, "completion_tokens": 80, "total_tokens": 2080},
    }
).encode()
HEADERS = (
    f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(ANSWER)}\r\n\r\n"
)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request of one connection."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            (line,) = (x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:"))
            await reader.readexactly(int(line.split(b":")[1]))
            writer.write(HEADERS.encode() + ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def serve(ready: Connection) -> None:
    """Serve until the process is ended; sends the port."""

    async def forever() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=2**20)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def peak() -> float:
    """The most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(num_queries: int, concurrency: int, url: str) -> dict[str, float]:
    """Rank that many queries with an empty store."""
    rng = np.random.default_rng(1)
    words = np.array([f"w{i}" for i in range(5000)])
    docs = {f"d{i}": " ".join(words[rng.integers(0, len(words), WORDS)]) for i in range(POOL)}
    scores = -np.arange(DEPTH, dtype=np.float64)
    lists = {
        f"q{i}": RankedList(tuple(f"d{d}" for d in rng.choice(POOL, DEPTH, replace=False)), scores)
        for i in range(num_queries)
    }
    candidates = Run(lists)
    queries = {query_id: f"what is {query_id}" for query_id in lists}
    del lists
    prompt = Prompt.load(PACKAGE.parent / "conf" / "prompts" / "rank_zephyr.jinja")

    async def ask(store: AnswerStore) -> dict[str, float]:
        backend = OpenAIEndpoint("fast", base_url=url)
        before = peak()
        _, report = await rank_all(
            queries,
            candidates,
            docs,
            sliding_window,
            prompt,
            backend,
            store=store,
            concurrency=concurrency,
            progress=False,
        )
        await backend.close()
        assert not report.failed, report.failed
        return {
            "queries": num_queries,
            "windows": report.calls,
            "seconds": report.seconds,
            "before": before,
            "peak": peak(),
        }

    with tempfile.TemporaryDirectory() as folder, AnswerStore(Path(folder) / "answers") as store:
        return asyncio.run(ask(store))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, nargs="+", default=[50, 200, 800])
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--url", help=argparse.SUPPRESS)  # measures in this process
    options = parser.parse_args()
    if options.url:
        print(json.dumps(measure(options.queries[0], options.concurrency, options.url)))
        return
    receive, send = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(send,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{receive.recv()}/v1"
    print("| queries | windows | windows/s | MiB before | MiB at most |\n|---|---|---|---|---|")
    try:
        for number in options.queries:
            command = [sys.executable, "-m", "experiments.bench.teach_throughput", "--url", url]
            command += ["--queries", str(number), "--concurrency", str(options.concurrency)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(told.splitlines()[-1])
            print(
                f"| {number} | {found['windows']} | {found['windows'] / found['seconds']:.0f} "
                f"| {found['before']:.0f} | {found['peak']:.0f} |",
                flush=True,
            )
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
