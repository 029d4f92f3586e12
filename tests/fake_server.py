"""A server that answers as vLLM does, by Transformers' own forward in float64, with troubles on demand."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from conftest import tiny_tokenizer
from tiny import plain64


class FakeServer:
    """One model under one name. What is set on it changes the answers to come."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.model = plain64(folder)  # not in a thread: Transformers' loading is not made for it
        self.troubles: list[int | str] = []
        """What happens to the next requests for log-probs: a status, `reset` or `slow`."""
        self.delay, self.slow = 0.0, 1.5
        """Seconds that any answer takes, and a slow one."""
        self.key: str | None = None
        self.answer: Any = None
        self.tokens: list[int] | None = [*tiny_tokenizer()(TEXT, add_special_tokens=False)["input_ids"]]
        """What text becomes; None: no such page."""
        tokenizer = tiny_tokenizer()
        self.decode: Callable[[int], str] | None = lambda index: str(tokenizer.decode([index]))
        self.change: Callable[[int, float], float] = lambda at, value: value
        """(place in the sequence, log-prob) → log-prob."""
        self.requests: Counter[str] = Counter()
        self.working = threading.Event()
        self.at_work = self.most_at_a_time = 0
        self.lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.fake = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def logprobs(self, ids: list[int]) -> list[Any]:
        """As `prompt_logprobs` has them."""
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        whole = logits.log_softmax(-1)
        entries: list[Any] = [None]
        for at in range(1, len(ids)):
            entry = {"logprob": self.change(at, float(whole[at - 1, ids[at]])), "rank": 1}
            entry["decoded_token"] = self.decode(ids[at]) if self.decode is not None else None
            entries.append({str(ids[at]): entry})
        return entries


TEXT = "the quick brown fox jumps over the lazy dog, and 12 + 30 = 42; so what is 6 * 7? "


class _Http(ThreadingHTTPServer):
    fake: FakeServer
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go away."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _allowed(self) -> bool:
        fake = self.server.fake
        fake.requests[self.path] += 1
        if fake.key is None or self.headers.get("Authorization") == f"Bearer {fake.key}":
            return True
        self._send(401, {"error": f"Unauthorized: {self.headers.get('Authorization')}"})  # as some servers do
        return False

    def do_GET(self) -> None:
        fake = self.server.fake
        if self._allowed():
            self._send(200, {"object": "list", "data": [{"id": fake.name, "max_model_len": 300}]})

    def do_POST(self) -> None:
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        if self.path == "/tokenize":
            if fake.tokens is None:
                self._send(404, {"detail": "Not Found"})
            else:
                self._send(200, {"count": len(fake.tokens), "tokens": fake.tokens})
            return
        with fake.lock:
            trouble = fake.troubles.pop(0) if fake.troubles else None
            fake.at_work += 1
            fake.most_at_a_time = max(fake.most_at_a_time, fake.at_work)
        fake.working.set()
        time.sleep(fake.slow if trouble == "slow" else fake.delay)
        status, answer = self._answer(body, trouble)
        with fake.lock:
            fake.at_work -= 1
        if trouble == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        else:
            self._send(status, answer)

    def _answer(self, body: Any, trouble: int | str | None) -> tuple[int, Any]:
        fake, ids = self.server.fake, body["prompt"]
        if isinstance(trouble, int):
            return trouble, {"error": "trouble"}
        if body["model"] != fake.name or body["max_tokens"] < 1 or body["prompt_logprobs"] != 0:
            return 404, {"error": "not what is asked of vLLM"}
        if max(ids) >= fake.model.config.vocab_size:
            return 400, {"error": f"Token id {max(ids)} is out of vocabulary"}
        if fake.answer is not None:
            return 200, fake.answer
        return 200, {"choices": [{"text": "x", "prompt_logprobs": fake.logprobs(ids)}]}
