"""As much of the Hub's HTTP API as the real client needs to make a repository, commit to it and read it back."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"
OWNER = "someone"


class HubStandIn(ThreadingHTTPServer):
    """Repositories in memory, each a list of commits, and each of those all files of the repository."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.created: dict[str, dict] = {}  # What was asked for each repository,
        self.headers: dict[str, list[dict]] = {}  # and for each commit to it.
        self.pull_requests: dict[str, list[dict[str, bytes]]] = {}

    def environment(self) -> dict[str, str]:
        """What makes the real client talk to this server."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def commit(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return a commit's number, 40 hexadecimal digits, and its files."""
        commits = self.repositories[repo_id]
        numbers = [hashlib.sha1(f"{repo_id} {index}".encode()).hexdigest() for index in range(len(commits))]
        if revision in numbers:
            return revision, commits[numbers.index(revision)]
        return (numbers[-1], commits[-1]) if revision in ("main", "other") else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def log_message(self, *args: object) -> None:
        """Say nothing on the terminal."""

    def _answer(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self) -> None:
        self.server.large_files[self.path.rsplit("/", 1)[1]] = self._body()
        self._answer(200)

    def do_POST(self) -> None:
        body, server, path = self._body(), self.server, unquote(urlsplit(self.path).path)
        server.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            described = json.loads(body)
            repo_id = f"{described.get('organization') or OWNER}/{described['name']}"
            status = 409 if repo_id in server.repositories else 200
            server.repositories.setdefault(repo_id, [{}])
            server.created.setdefault(repo_id, described)
            return self._answer(status, {"url": f"{server.url}/{repo_id}", "id": repo_id})
        if re.fullmatch(r"/api/models/\S+?/\S+?/branch/other", path):
            return self._answer(200, {})  # the one branch that it knows beside main, whose commits it makes its own
        if found := re.fullmatch(r"/api/models/(\S+?/\S+?)/preupload/(?:main|other)", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{server.url}/large/{item['oid']}", "header": {}}}}
                for item in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(\S+?/\S+?)/commit/(?:main|other)", path):
            repo_id = found[1]
            files = dict(server.repositories[repo_id][-1])
            for line in body.splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "header":
                    server.headers.setdefault(repo_id, []).append(value)
                elif operation["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    files[value["path"]] = server.large_files[value["oid"]]
                elif operation["key"] == "deletedFile":
                    del files[value["path"]]
            answer = {"success": True, "hookOutput": ""}
            if "create_pr=1" in urlsplit(self.path).query:
                server.pull_requests.setdefault(repo_id, []).append(files)
                answer["pullRequestUrl"] = f"{server.url}/{repo_id}/discussions/{len(server.pull_requests[repo_id])}"
            else:
                server.repositories[repo_id].append(files)
            number, _ = server.commit(repo_id, "main")
            answer |= {"commitOid": number, "commitUrl": f"{server.url}/{repo_id}/commit/{number}"}
            return self._answer(200, answer)
        return self._answer(404, {"error": f"The stand-in does not know POST {path}."})

    def do_GET(self) -> None:
        server, path = self.server, unquote(urlsplit(self.path).path)
        server.requests.append(f"{self.command} {path}")
        if path == "/api/whoami-v2":
            return self._answer(200, {"name": OWNER, "type": "user"})
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = about or listing or file
        if found is None or found[1] not in server.repositories:
            return self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        commit = server.commit(found[1], found[2] or "main")
        if commit is None:
            return self._answer(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
        number, files = commit
        if about:
            siblings = [{"rfilename": name} for name in files]
            return self._answer(
                200, {"id": found[1], "sha": number, "siblings": siblings, "private": False, "tags": []}
            )
        if listing:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
                if not found[3] or name.startswith(f"{found[3]}/")
            ]
            if entries or not found[3]:
                return self._answer(200, entries)
        if not file or found[3] not in files:
            return self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=number)
        content = files[found[3]]
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, X_Repo_Commit=number, ETag=f'"{etag}"')

    do_HEAD = do_GET


@contextmanager
def serve_hub() -> Iterator[HubStandIn]:
    """Run a stand-in of the Hub on a free port of the loopback address."""
    server = HubStandIn()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
