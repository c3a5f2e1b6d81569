"""A server that answers as an OpenAI-compatible endpoint does, or fails, and queries to ask it."""

import asyncio
import json
import random
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rankdistillm.data.runs import Run
from rankdistillm.teachers.ask import rank_all
from rankdistillm.teachers.openai_endpoint import OpenAIEndpoint
from rankdistillm.teachers.prompts import Prompt
from rankdistillm.teachers.rankings import sliding_window
from rankdistillm.teachers.store import AnswerStore

PASSAGE = re.compile(r"^\[(\d+)\] .*?relevance (\d+)", re.MULTILINE)


@dataclass
class Reply:
    """What the server sends: a status, a body and headers; or it drops the connection."""

    status: int = 200
    body: Any = None  # JSON, or bytes that are sent as they are
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # before the answer
    drop: str = ""  # "before" an answer, or "inside" it

    @property
    def is_answer(self) -> bool:
        """Whether the client gets a completion."""
        is_completion = isinstance(self.body, dict) and "usage" in self.body
        return self.status == 200 and not self.drop and is_completion


def completion(text: str | None, top: list[dict[str, float]] | None = None, **fields: Any) -> Reply:
    """A sound answer; ``top``: the likeliest tokens at each token of the text."""
    listed = [
        {"token": "", "logprob": 0.0, "top_logprobs": [{"token": t, "logprob": p} for t, p in o]}
        for o in (tokens.items() for tokens in top or [])
    ]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": listed} if top else None,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return Reply(body=body | {"choices": [choice], "usage": usage} | fields)


def error(status: int, message: str, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
    """An error as OpenAI sends it."""
    return Reply(status, {"error": {"message": message} | fields}, headers or {})


def oracle(text: str) -> Reply:
    """The passages of a prompt such as ``[1] relevance 3``, ordered by relevance."""
    found = [(int(relevance), int(number)) for number, relevance in PASSAGE.findall(text)]
    return completion(" > ".join(f"[{number}]" for _, number in sorted(found, reverse=True)))


class Endpoint:
    """``asked`` counts the requests for each prompt, ``answered`` those that got an answer."""

    def __init__(self, script: Callable[[str, int], Reply]) -> None:
        self.script = script
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.url = ""
        self.lock = threading.Lock()


@contextmanager
def serving(script: Callable[[str, int], Reply], port: int = 0) -> Iterator[Endpoint]:
    """Serve ``script(last message, how often it was asked)`` at ``endpoint.url``."""
    endpoint = Endpoint(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            with endpoint.lock:
                endpoint.asked[text] += 1
                endpoint.bodies.append(body)
                endpoint.keys.add(self.headers["Authorization"])
                reply = endpoint.script(text, endpoint.asked[text])
                if reply.is_answer:
                    endpoint.answered[text] += 1
            time.sleep(reply.seconds)
            if reply.drop == "before":
                self.close_connection = True
                return
            sent = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            if reply.drop:
                sent, self.close_connection = sent[:20], True
            try:
                self.wfile.write(sent)
            except OSError:  # the client was killed, or waited no longer
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            pass  # a client that was killed

    with Server(("127.0.0.1", port), Handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


ORDER = """{{ query }}
{% for passage in passages %}
[{{ loop.index }}] {{ passage }}
{% endfor %}
"""


def task(num_queries=4, depth=25, filler=""):
    """Queries, a first-stage run and passages whose relevance their text tells."""
    rng = random.Random(num_queries)
    queries = {f"q{i}": f"query {i}" for i in range(num_queries)}
    docs, lists = {}, {}
    for query_id in queries:
        relevances = rng.sample(range(1000), depth)
        for rank, relevance in enumerate(relevances):
            docs[f"{query_id}_{rank}"] = f"relevance {relevance} {filler}".strip()
        lists[query_id] = {f"{query_id}_{rank}": -rank for rank in range(depth)}
    return queries, Run.from_scores(lists, source="first.run"), docs


def windows(doc_ids):
    return sliding_window(doc_ids, window=10, stride=5)


CALLS = 4  # of `windows` for 25 passages; the top 5 are exact


def prompt_of(tmp_path, source=ORDER):
    file = tmp_path / f"{zlib.crc32(source.encode())}.jinja"
    file.write_text(source)
    return Prompt.load(file)


# A server of every trouble. What it does depends on the question alone, and on how often that was
# asked, so that a run after a restart meets the same answers.
TROUBLES = [
    error(429, "slow down", {"Retry-After": "0.01"}),
    error(429, "slow down"),
    error(500, "oops"),
    Reply(drop="before"),
    Reply(body={"choices": []}, drop="inside"),
    Reply(body=b"<html>"),
]
NONSENSE = ["As a language model I see 20 passages.", "[3] > [3] > [99]", "", "<think>[1]"]


def troubled(text, times):
    number = zlib.crc32(text.encode())
    if len(text) > 900:
        return error(400, "maximum context length is 900")
    if times == 1 and number % 3 == 0:
        return TROUBLES[number // 3 % len(TROUBLES)]
    if number % 10 == 0:
        return completion(NONSENSE[number // 10 % len(NONSENSE)])
    reply = oracle(text)
    reply.seconds = 0.02 if number % 7 == 0 else 0.0
    return reply


def endpoint_task():
    queries, candidates, docs = task(12)
    for doc_id in docs:
        if doc_id.startswith("q3_"):
            docs[doc_id] += " long" * 30
    return queries, candidates, docs


def ask_endpoint(tmp_path, url, store, **options):
    async def go():
        backend = OpenAIEndpoint(
            "m", base_url=url, first_wait=0.001, longest_wait=0.02, attempts=4, timeout=60
        )
        with AnswerStore(tmp_path / store) as answers:
            try:
                return await rank_all(
                    *endpoint_task(), windows, prompt_of(tmp_path), backend,
                    store=answers, progress=False, concurrency=6, **options,
                )  # fmt: skip
            finally:
                await backend.close()

    return asyncio.run(go())
