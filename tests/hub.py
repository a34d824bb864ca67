"""A small Hugging Face hub on this machine: the requests that reading a dataset makes, answered from a folder."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(BaseHTTPRequestHandler):
    """Repositories lie in `root`/NAME; each has one commit, which `refs` of its own lead to."""

    root = commit = refs = asked = None

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        self.answer(body)

    def answer(self, body=None):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.asked.append("/".join(parts))
        if parts[:2] == ["api", "datasets"]:
            name, verb, rest = "/".join(parts[2:4]), (parts[4:5] or ["revision"])[0], "/".join(parts[5:]) or "main"
        else:
            name, verb, rest = "/".join(parts[1:3]), parts[3], "/".join(parts[4:])
        folder = self.root / name
        if not folder.is_dir():
            return self.fail("RepoNotFound", 401)
        revision = next((r for r in (*self.refs, self.commit) if rest == r or rest.startswith(f"{r}/")), None)
        if revision is None:
            return self.fail("RevisionNotFound", 404)
        files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
        path = rest[len(revision) + 1 :]
        if verb == "revision":
            return self.send(json.dumps({
                "id": name, "sha": self.commit, "private": False, "gated": False, "disabled": False, "tags": [],
                "downloads": 0, "likes": 0, "siblings": [{"rfilename": file} for file in files],
            }))  # fmt: skip
        if verb == "tree":
            if not (folder / path).is_dir():
                return self.fail("EntryNotFound", 404)
            return self.send(json.dumps([entry(folder, file) for file in sorted((folder / path).iterdir())]))
        if verb == "paths-info":
            return self.send(json.dumps([entry(folder, folder / p) for p in body["paths"] if (folder / p).exists()]))
        if path not in files:
            return self.fail("EntryNotFound", 404)
        return self.send(files[path].read_bytes())

    def send(self, content):
        content = content.encode() if isinstance(content, str) else content
        self.send_response(200)
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{digest(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, code, status):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def entry(folder, path):
    """A file or folder of a repository, as the hub describes it."""
    about = {"path": path.relative_to(folder).as_posix(), "oid": digest(str(path).encode())}
    if path.is_dir():
        return {**about, "type": "directory"}
    return {**about, "type": "file", "size": path.stat().st_size}


def digest(content):
    return hashlib.sha1(content).hexdigest()


@contextmanager
def local_hub(root, commit, refs=("main",)):
    """Its address, and what is asked of it."""
    asked = []
    handler = type("Handler", (Hub,), {"root": root, "commit": commit, "refs": refs, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
