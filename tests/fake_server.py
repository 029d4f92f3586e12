"""A server that answers as vLLM does, by Transformers' own forward in float64, with troubles on demand."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from conftest import tiny_tokenizer
from local_http import JsonHandler, LocalServer
from tiny import plain64


class FakeServer(LocalServer):
    """One model under one name. What is set on it changes the answers to come."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(_Handler)
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
        self.working = threading.Event()
        self.at_work = self.most_at_a_time = 0
        self.lock = threading.Lock()

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


class _Handler(JsonHandler):
    def _allowed(self) -> bool:
        fake = self.server.owner
        fake.requests[self.path] += 1
        if fake.key is None or self.headers.get("Authorization") == f"Bearer {fake.key}":
            return True
        self.send(401, {"error": f"Unauthorized: {self.headers.get('Authorization')}"})  # as some servers do
        return False

    def do_GET(self) -> None:
        fake = self.server.owner
        if self._allowed():
            self.send(200, {"object": "list", "data": [{"id": fake.name, "max_model_len": 300}]})

    def do_POST(self) -> None:
        fake = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        if self.path == "/tokenize":
            if fake.tokens is None:
                self.send(404, {"detail": "Not Found"})
            else:
                self.send(200, {"count": len(fake.tokens), "tokens": fake.tokens})
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
            self.send(status, answer)

    def _answer(self, body: Any, trouble: int | str | None) -> tuple[int, Any]:
        fake, ids = self.server.owner, body["prompt"]
        if isinstance(trouble, int):
            return trouble, {"error": "trouble"}
        if body["model"] != fake.name or body["max_tokens"] < 1 or body["prompt_logprobs"] != 0:
            return 404, {"error": "not what is asked of vLLM"}
        if max(ids) >= fake.model.config.vocab_size:
            return 400, {"error": f"Token id {max(ids)} is out of vocabulary"}
        if fake.answer is not None:
            return 200, fake.answer
        return 200, {"choices": [{"text": "x", "prompt_logprobs": fake.logprobs(ids)}]}
