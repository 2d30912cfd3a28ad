"""A chat endpoint on this machine that plays a teacher."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = "The structure is bright against the dim ground around it, and the next step follows from that."


class TeacherServer(ThreadingHTTPServer):
    """Answers with `script(number, body)`: a text, (status, headers) or bytes; keeps what it was asked."""

    daemon_threads = True

    def __init__(self, script=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script or (lambda number, body: GOOD)
        self.asked, self.times, self.headers_seen = [], [], []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.spec = f"org/teacher@http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the play."""

    def text(self, index):
        """The user's text of a question."""
        return self.asked[index]["messages"][1]["content"][-1]["text"]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append(body)
            server.times.append(time.monotonic())
            server.headers_seen.append(dict(self.headers))
            number = len(server.asked)
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        answer = server.script(number, body)
        with server.lock:
            server.in_flight -= 1
        status, headers, content = 200, {}, answer
        if isinstance(answer, tuple):
            (status, headers), content = answer, b"{}"
        elif isinstance(answer, str):
            choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
            content = json.dumps({"choices": [choice], "usage": {"completion_tokens": 11}}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass
