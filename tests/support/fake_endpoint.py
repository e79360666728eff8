"""A small OpenAI-compatible chat endpoint on this machine, which can fail on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Endpoint:
    """Replies, and records of the questions; `fail(n)` is the status of the n-th call, 200 for a reply."""

    reply: Callable[[str], str]
    fail: Callable[[int], int] = lambda number: 200
    delay: float = 0.0
    url: str = ""
    questions: list[str] = field(default_factory=list)
    calls: int = 0
    together: int = 0
    most_together: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def fake_endpoint(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serves until the context ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with endpoint.lock:
                number = endpoint.calls
                endpoint.calls += 1
                endpoint.together += 1
                endpoint.most_together = max(endpoint.most_together, endpoint.together)
            time.sleep(endpoint.delay)
            status = endpoint.fail(number)
            question = body["messages"][-1]["content"]
            if status == 200:
                with endpoint.lock:
                    endpoint.questions.append(question)
                message = {"role": "assistant", "content": endpoint.reply(question)}
                answer: object = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                }
            else:
                answer = {"error": {"message": f"status {status}", "type": "test"}}
            data = json.dumps(answer).encode()
            with endpoint.lock:
                endpoint.together -= 1
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status != 200:
                self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
