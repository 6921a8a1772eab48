"""A server that stands in for the Hugging Face hub: repositories in memory, and of its API what huggingface_hub and datasets ask for."""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "standin" * 5
OWNER = "someone"


class Repo:
    def __init__(self, private=False):
        self.private, self.files, self.commits = private, {}, []

    @property
    def sha(self):
        return hashlib.sha1(repr(sorted((n, hashlib.sha1(c).hexdigest()) for n, c in self.files.items())).encode()).hexdigest()


class Hub:
    """`repos`: (kind, OWNER/NAME) -> Repo; `asked`: (method, path, whether the key came along) of each request."""

    def __init__(self):
        self.repos, self.blobs, self.asked, self.address = {}, {}, [], ""

    def put(self, kind, name, files):
        repo = self.repos.setdefault((kind, name), Repo())
        repo.files |= {path: content if isinstance(content, bytes) else content.encode() for path, content in files.items()}

    def environment(self, home, token=TOKEN):
        """Of a process that takes this for the hub."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return env | {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            **({"HF_TOKEN": token} if token else {}),
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        body = json.dumps(body).encode() if isinstance(body, dict | list) else body
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, said):
        self.answer(status, {"error": said}, X_Error_Code=code, X_Error_Message=said)

    def handle_any(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts, known = urlsplit(self.path), self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.hub.asked.append((self.command, self.path, known))
        path, query = unquote(parts.path), parse_qs(parts.query)
        for method, pattern, act in ROUTES:
            if self.command in method and (found := re.fullmatch(pattern, path)):
                return act(self, raw, query, known, *found.groups())
        return self.refuse(404, "EntryNotFound", f"nothing at {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def repo(self, kind, name, known):
        found = self.hub.repos.get((kind.removesuffix("s"), name))
        if found is None or (found.private and not known):
            self.refuse(404, "RepoNotFound", "Repository not found")
            return None
        return found


def whoami(self, raw, query, known):
    self.answer(200, {"name": OWNER, "type": "user", "orgs": []}) if known else self.refuse(401, "", "Invalid username or password.")


def create(self, raw, query, known):
    asked = json.loads(raw)
    kind, name = asked.get("type", "model"), f"{asked.get('organization') or OWNER}/{asked['name'].rpartition('/')[2]}"
    if not known:
        return self.refuse(401, "", f"Invalid key in header {self.headers.get('Authorization')}")
    if not name.startswith(f"{OWNER}/"):
        return self.refuse(403, "", "You don't have the rights to create a model under this namespace")
    if (kind, name) in self.hub.repos:
        return self.answer(409, {"error": "You already created this repo", "url": f"{self.hub.address}/{name}"})
    self.hub.repos[kind, name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))  # as older clients say it
    return self.answer(200, {"url": f"{self.hub.address}/{'datasets/' if kind == 'dataset' else ''}{name}", "name": name})


def info(self, raw, query, known, kinds, name, *_):
    if repo := self.repo(kinds, name, known):
        facts = {
            "id": name,
            "private": repo.private,
            "sha": repo.sha,
            "tags": [],
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
        }
        self.answer(200, facts | {"siblings": [{"rfilename": path} for path in repo.files], "lastModified": "2026-01-01T00:00:00.000Z"})


def entry(path, content):
    sha, oid = hashlib.sha256(content).hexdigest(), hashlib.sha1(content).hexdigest()
    return {"type": "file", "oid": oid, "size": len(content), "path": path, "lfs": {"oid": sha, "size": len(content), "pointerSize": 130}}


def validate(self, raw, query, known):
    """As the hub does, refuse a card whose base_model is no repository's name."""
    base = re.search(
        r"^base_model: (.*)$", json.loads(raw)["content"].split("---")[1] if "---" in json.loads(raw)["content"] else "", re.MULTILINE
    )
    wrong = base is not None and not re.fullmatch(NAME, base[1])
    errors = [{"message": f'"base_model" with value "{base[1]}" is not valid'}] if base and wrong else []
    self.answer(400 if errors else 200, {"errors": errors, "warnings": []})


def tree(self, raw, query, known, kinds, name, _, folder=None):
    if repo := self.repo(kinds, name, known):
        inside = [path for path in repo.files if not folder or path.startswith(f"{folder}/")]
        if folder and not inside:
            self.refuse(404, "EntryNotFound", "no such folder")
            return
        found = [entry(path, repo.files[path]) for path in inside]
        if query.get("recursive", ["false"])[0].lower() != "true":
            depth = len(folder.split("/")) if folder else 0
            names = dict.fromkeys("/".join(path.split("/")[: depth + 1]) for path in inside)
            found = [
                entry(n, repo.files[n]) if n in repo.files else {"type": "directory", "oid": "0" * 40, "size": 0, "path": n} for n in names
            ]
        self.answer(200, found)


def paths_info(self, raw, query, known, kinds, name, _):
    if repo := self.repo(kinds, name, known):
        form = parse_qs(raw.decode()) if b"=" in raw and raw[:1] != b"{" else json.loads(raw)
        paths = [form["paths"]] if isinstance(form["paths"], str) else form["paths"]
        found = [entry(path, repo.files[path]) for path in paths if path in repo.files]
        folders = [p for p in paths if p not in repo.files and any(f.startswith(f"{p}/") for f in repo.files)]
        self.answer(200, found + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in folders])


def refs(self, raw, query, known, kinds, name):
    if repo := self.repo(kinds, name, known):
        self.answer(200, {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.sha}], "tags": [], "converts": []})


def resolve(self, raw, query, known, dataset, name, _, path):
    if repo := self.repo("datasets" if dataset else "models", name, known):
        if path not in repo.files:
            self.refuse(404, "EntryNotFound", "no such file")
            return
        content = repo.files[path]
        start, stop = 0, len(content)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(asked[1]), int(asked[2]) + 1 if asked[2] else stop
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": repo.sha, "Accept_Ranges": "bytes"}
        if asked:
            headers["Content_Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
        self.answer(206 if asked else 200, content[start:stop], **headers)


def preupload(self, raw, query, known, kinds, name, _):
    files = json.loads(raw)["files"]
    modes = [
        {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".parquet")) else "regular", "shouldIgnore": False}
        for f in files
    ]
    self.answer(200, {"files": modes})


def lfs(self, raw, query, known, dataset, name):
    found = []
    for wanted in json.loads(raw)["objects"]:
        actions = (
            {"upload": {"href": f"{self.hub.address}/lfs/{wanted['oid']}", "header": {}}} if wanted["oid"] not in self.hub.blobs else {}
        )
        found.append(wanted | ({"actions": actions} if actions else {}))
    self.answer(200, {"transfer": "basic", "objects": found}, Content_Type="application/vnd.git-lfs+json")


def blob(self, raw, query, known, oid):
    assert hashlib.sha256(raw).hexdigest() == oid
    self.hub.blobs[oid] = raw
    self.answer(200)


def commit(self, raw, query, known, kinds, name, _):
    repo = self.repo(kinds, name, known)
    if repo is None or not known:
        return None if repo is None else self.refuse(403, "", "Forbidden")
    for line in map(json.loads, raw.decode().splitlines()):
        value = line["value"]
        if line["key"] == "header":
            repo.commits.append(value["summary"])
        elif line["key"] == "file":
            repo.files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            repo.files[value["path"]] = self.hub.blobs[value["oid"]]
        elif line["key"] == "deletedFile":
            del repo.files[value["path"]]
    return self.answer(200, {"success": True, "commitUrl": f"{self.hub.address}/{name}/commit/{repo.sha}", "commitOid": repo.sha})


KIND, NAME = r"(models|datasets)", r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate),
    ("POST", rf"/api/{KIND}/{NAME}/preupload/([\w-]+)", preupload),
    ("POST", rf"/api/{KIND}/{NAME}/commit/([\w-]+)", commit),
    ("POST", rf"/api/{KIND}/{NAME}/paths-info/([\w-]+)", paths_info),
    ("GET", rf"/api/{KIND}/{NAME}/tree/([\w-]+)(?:/(.+))?", tree),
    ("GET", rf"/api/{KIND}/{NAME}/refs", refs),
    ("GET", rf"/api/{KIND}/{NAME}(?:/revision/([\w-]+))?", info),
    ("POST", rf"/(datasets/)?{NAME}\.git/info/lfs/objects/batch", lfs),
    ("PUT", r"/lfs/(\w+)", blob),
    ("GET HEAD", rf"/(datasets/)?{NAME}/resolve/([\w-]+)/(.+)", resolve),
)


@contextlib.contextmanager
def hub():
    """A hub that listens on this machine."""
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": found}))
    found.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
