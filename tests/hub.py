"""A Hugging Face Hub on this machine, as far as making a repository and committing to it goes."""

from __future__ import annotations

import base64
import json
from typing import Any

from local_http import JsonHandler, LocalServer


class Hub(LocalServer):
    """Takes commits by one token; what it was sent can be looked at."""

    def __init__(self, token: str) -> None:
        super().__init__(_Handler)
        self.token = token
        self.repositories: dict[str, dict[str, Any]] = {}
        """What each was made with."""
        self.files: dict[str, dict[str, bytes]] = {}
        """Contents by path, by `OWNER/NAME@BRANCH`."""
        self.messages: list[str] = []
        self.refuses: int | None = None
        """The status of every answer."""

    def answer(self, words: list[str], body: bytes) -> Any:
        """To a POST whose path has these parts after `api`."""
        match words:
            case ["repos", "create"]:
                wanted = json.loads(body)
                name = "/".join(filter(None, [wanted.get("organization"), wanted["name"]]))
                self.repositories[name] = wanted
                return {"url": f"{self.url}/{name}", "id": name, "name": name}
            case ["models", owner, name, "branch", _branch]:
                return {}
            case ["models", owner, name, "preupload", _branch]:
                files = json.loads(body)["files"]
                return {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            case ["models", owner, name, "commit", branch]:
                lines = [json.loads(line) for line in body.splitlines()]
                self.messages += [line["value"]["summary"] for line in lines if line["key"] == "header"]
                files = [line["value"] for line in lines if line["key"] == "file"]
                self.files[f"{owner}/{name}@{branch}"] = {
                    f["path"]: base64.b64decode(f["content"]) for f in files
                }
                url = f"{self.url}/{owner}/{name}/commit/{'1' * 40}"
                return {"commitUrl": url, "commitOid": "1" * 40, "success": True}
            case ["validate-yaml"]:
                return {"errors": [], "warnings": []}
        return None


class _Handler(JsonHandler):
    def do_POST(self) -> None:
        hub = self.server.owner
        body = self._body()
        words = self.path.partition("?")[0].strip("/").split("/")[1:]
        hub.requests["/".join(words)] += 1
        if self.headers["Authorization"] != f"Bearer {hub.token}":
            self.send(401, {"error": "Invalid username or password."})
        elif hub.refuses is not None:
            self.send(hub.refuses, {"error": "no"})
        else:
            answer = hub.answer(words, body)
            self.send(404 if answer is None else 200, answer)

    def do_GET(self) -> None:
        self.server.owner.requests[self.path] += 1
        self.send(404, {"error": "not found"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)
