"""A local server that answers as the Hugging Face hub does, with ranges and broken connections."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rankdistillm.data import catalogue


class Hub(BaseHTTPRequestHandler):
    """Files under ``/datasets/webis/rank-distillm/resolve/main/``, with ranges."""

    files: dict[str, bytes]
    cut_after: int | None  # the next answer stops after so many bytes, all others at once
    requests: list[tuple[str, str | None]]

    def do_HEAD(self):
        self.answer(with_content=False)

    def do_GET(self):
        self.answer(with_content=True)

    def answer(self, with_content):
        prefix = f"/datasets/{catalogue.REPOSITORY}/resolve/main/"
        content = self.files.get(self.path.removeprefix(prefix))
        if content is None:
            self.send_error(404)
            return
        self.requests.append((self.command, self.headers["Range"]))
        start = 0
        if with_content and self.headers["Range"]:
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if with_content:
            stop = None if self.cut_after is None else start + self.cut_after
            self.wfile.write(content[start:stop])
            if stop is not None:
                Hub.cut_after = 0
                self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def serving(files: dict[str, bytes], home: Path) -> Iterator[dict[str, str]]:
    """Serve the files; gives the environment in which commands take them, into ``home``."""
    Hub.files, Hub.cut_after, Hub.requests = files, None, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    try:
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "IR_DATASETS_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
    finally:
        server.shutdown()
        server.server_close()


def with_checksums(files: dict[str, bytes]) -> dict[str, catalogue.ReleasedFile]:
    """The release's data sets with the checksums of these files."""
    return {
        key: catalogue.ReleasedFile(file.name, hashlib.md5(files[file.name]).hexdigest())
        for key, file in catalogue.RELEASED.items()
    }
