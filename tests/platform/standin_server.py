"""A stand-in for the model server: it answers with what it was told and does as its bundle says.

The platform is under test, not the server, so this one uses the standard library only and starts in a tenth
of a second. Its bundle is a folder with `behaviour.json`; keys: `ready_after` (seconds), `never_ready`,
`crash` (exit at once), `status` (of requests), `seconds` (per request), `drop` (close the connection without
an answer). Requests are appended to `requests.log` beside it, one path a line.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(os.environ["SERVING_BUNDLE"])
BEHAVIOUR = json.loads((FOLDER / "behaviour.json").read_text())
BEGUN = time.monotonic()
UNDER_WAY = threading.Semaphore(1000)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/readyz":
            early = time.monotonic() - BEGUN < BEHAVIOUR.get("ready_after", 0)
            self.say(503 if early or BEHAVIOUR.get("never_ready") else 200)
            return
        with UNDER_WAY:
            with (FOLDER / "requests.log").open("a") as log:
                log.write(f"{self.path}\n")
            time.sleep(BEHAVIOUR.get("seconds", 0))
            if BEHAVIOUR.get("drop"):
                self.close_connection = True
            else:
                self.say(BEHAVIOUR.get("status", 200))

    do_GET = do_POST = answer

    def say(self, status: int) -> None:
        settings = {name: value for name, value in os.environ.items() if name.startswith("SERVING_")}
        seen = {
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "settings": settings,
            "pid": os.getpid(),
        }
        body = json.dumps(seen).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-model-version", os.environ["SERVING_VERSION"])
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        del code, size


def finish(*_: object) -> None:
    """Answer what is under way, then end."""

    def wait() -> None:
        for _ in range(1000):
            UNDER_WAY.acquire()
        os._exit(0)

    threading.Thread(target=wait).start()


if BEHAVIOUR.get("crash"):
    sys.exit("the model file is not a model: on purpose")
print("stand-in server is starting", flush=True)
signal.signal(signal.SIGTERM, finish)
address = os.environ["SERVING_HOST"], int(os.environ["SERVING_PORT"])
ThreadingHTTPServer(address, Handler).serve_forever()
