"""A real HTTP server that speaks OpenAI's chat format and answers by rules, so that labels and scores are known.

It labels by the most frequent marked word. A text fits a label if it has that word; marks fit if they stand about it.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], object]
"""Status, headers, and a body; bytes are sent as they are."""


def completion(text: str | None, **message: Any) -> Answer:
    """A chat completion that says `text`."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    return 200, {}, {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 7}}


def by_rules(prompt: str) -> str:
    """What a request is answered."""
    texts = [json.loads(line) for line in re.findall(r'^\d+: (".*")$', prompt, re.MULTILINE)]
    if "LABEL:" in prompt:
        marked = Counter(word.strip() for text in texts for word in re.findall(r"<<(.*?)>>", text))
        return f"They share a word.\nLABEL: {marked.most_common(1)[0][0]}"
    label = json.loads(re.findall(r'^Description: (".*")$', prompt, re.MULTILINE)[0])
    if "Some tokens stand between" in prompt:
        fits = [label in [word.strip() for word in re.findall(r"<<(.*?)>>", text)] for text in texts]
    else:
        fits = [label in text.split() for text in texts]
    return json.dumps([int(each) for each in fits])


@dataclass
class Endpoint:
    """A running server."""

    address: str = ""
    prompts: list[str] = field(default_factory=list)
    """The last message of each request, in the order in which they came."""
    answered: list[str] = field(default_factory=list)
    """Those that were answered by a completion."""
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    before: Callable[[int, str], Answer | None] = lambda _number, _prompt: None
    """An answer in the place of the rule's, by the request's number and its last message."""


@contextmanager
def run_endpoint() -> Iterator[Endpoint]:
    """Runs one on a free port."""
    found = Endpoint()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            first, prompt = (body["messages"][at]["content"] for at in (0, -1))
            with lock:
                found.prompts.append(prompt)
                found.bodies.append(body)
                found.headers.append({name.lower(): value for name, value in self.headers.items()})
                number = len(found.prompts) - 1
            if self.path != "/v1/chat/completions":
                status, headers, answer = 404, {}, {"error": "no such path"}
            else:
                status, headers, answer = found.before(number, prompt) or completion(by_rules(first))
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                return  # whoever asked has gone
            if status == 200:
                with lock:
                    found.answered.append(prompt)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        found.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
