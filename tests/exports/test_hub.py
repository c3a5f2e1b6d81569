"""Pushing a folder, to a local server that answers as the hub does."""

import base64
import hashlib
import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from rankdistillm.errors import InputError
from rankdistillm.exports.hub import push

# httpx warns about how huggingface_hub calls it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_" + "secret" * 5
FILES = {
    "README.md": b"---\nlicense: mit\n---\n\n# A student\n",
    "config.json": b"{}",
    "model.safetensors": b"weights" * 100,
    "2_Dense/config.json": b"{}",
}


class Hub(BaseHTTPRequestHandler):
    """Model repositories that can be made and committed to; ``refused``: path -> status, error."""

    refused: dict[str, tuple[int, str]]
    repos: dict[str, dict]
    files: dict[str, bytes]
    stored: dict[str, bytes]  # large files by their sha256

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        for prefix, (status, error) in self.refused.items():
            if path.startswith(prefix):
                return self.reply(status, {"error": error, "errors": [{"message": error}]})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in self.repos else 200
            self.repos.setdefault(name, asked)
            return self.reply(status, {"url": f"http://{self.headers['Host']}/{name}"})
        if path == "/api/validate-yaml":
            return self.reply(200, {"warnings": [], "errors": []})
        if path.endswith("/preupload/main"):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            found = [
                o
                | {"actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.reply(200, {"transfer": "basic", "objects": found})
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    self.files[value["path"]] = self.stored[value["oid"]]
            repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
            url = f"http://{self.headers['Host']}/{repo}/commit/{'0' * 40}"
            return self.reply(200, {"success": True, "commitUrl": url, "commitOid": "0" * 40})
        return self.reply(404, {"error": f"no such address: {path}"})

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "/lfs/" in self.refused:
            return self.reply(*self.refused["/lfs/"])
        self.stored[hashlib.sha256(body).hexdigest()] = body
        return self.reply(200, {})

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving(**refused):
    Hub.refused, Hub.repos, Hub.files, Hub.stored = refused, {}, {}, {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def student(tmp_path):
    folder = tmp_path / "student"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / ".rankdistillm.lock").write_bytes(b"")
    return folder


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """Let huggingface_hub speak to this address, as its environment variables do."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def to(endpoint):
        for name, value in (
            ("ENDPOINT", endpoint),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
            ("HF_TOKEN_PATH", str(tmp_path / "token")),
        ):
            monkeypatch.setattr(constants, name, value)

    return to


def test_the_folder_arrives_whole_and_again(student, connect, capfd, caplog):
    caplog.set_level("DEBUG")
    with serving() as endpoint:
        connect(endpoint)
        for _ in range(2):  # the second time the repository exists
            assert push(student, "me/student", private=True) == f"{endpoint}/me/student"
            assert Hub.files == FILES
        assert Hub.repos["me/student"]["visibility"] == "private"
    assert TOKEN not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ({"/api/repos/create": (403, "not yours")}, "the token may not write there"),
        ({"/api/repos/create": (401, "bad token")}, "the token was refused"),
        ({"/api/repos/create": (400, "that name is reserved")}, "that name is reserved"),
        ({"/api/validate-yaml": (400, "license is unknown")}, "license is unknown"),
        ({"/api/models/me/student/commit": (413, "too large")}, "too large"),
        ({"/lfs/": (403, "no room")}, "Error while uploading 'model.safetensors'"),
    ],
)
def test_what_the_hub_refuses_is_said(refused, said, student, connect):
    with serving(**refused) as endpoint:
        connect(endpoint)
        with pytest.raises(InputError, match=said) as error:
            push(student, "me/student")
    assert TOKEN not in str(error.value)


@pytest.mark.parametrize(
    ("repo", "said"),
    [
        ("student", "repo=student is not a repository; write USER/NAME"),
        ("me/a b", "repo=me/a b: "),
        ("a/b/c", "repo=a/b/c: "),
        ("", "repo=: |repo= is not"),
    ],
)
def test_impossible_names_are_refused(repo, said, student):
    with pytest.raises(InputError, match=said):
        push(student, repo)


def test_without_a_model_a_token_or_a_connection(student, connect, monkeypatch, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        connect(f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(InputError, match="no connection"):
            push(student, "me/student")
    with pytest.raises(InputError, match="no folder with a model"):
        push(tmp_path, "me/student")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        push(student, "me/student")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="no token for the hub; set HF_TOKEN"):
        push(student, "me/student")
