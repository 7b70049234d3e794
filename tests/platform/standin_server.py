"""A stand-in for the model server: it answers with what it was told and does as its bundle says.

The platform is under test, not the server: this one starts in a tenth of a second. Its bundle is a folder
with `behaviour.json`; keys: `ready_after` (seconds), `never_ready`, `crash` (exit at once), `status` (of
/predict), `seconds` (per request), `drop` (close the connection without an answer). Requests are appended
to `requests.log` beside it, one path a line.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import uvicorn
import uvicorn.protocols.http.h11_impl

FOLDER = Path(os.environ["SERVING_BUNDLE"])
BEHAVIOUR = json.loads((FOLDER / "behaviour.json").read_text())
BEGUN = time.monotonic()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"].endswith("shutdown"):
                return
    path = scope["path"]
    headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
    if path == "/readyz":
        early = time.monotonic() - BEGUN < BEHAVIOUR.get("ready_after", 0)
        status = 503 if early or BEHAVIOUR.get("never_ready") else 200
    else:
        with (FOLDER / "requests.log").open("a") as log:
            log.write(f"{path}\n")
        await asyncio.sleep(BEHAVIOUR.get("seconds", 0))
        status = BEHAVIOUR.get("status", 200)
    settings = {name: value for name, value in os.environ.items() if name.startswith("SERVING_")}
    body = json.dumps({"path": path, "headers": headers, "settings": settings, "pid": os.getpid()}).encode()
    version = os.environ["SERVING_VERSION"].encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"x-model-version", version)]})
    await send({"type": "http.response.body", "body": body})


class Dropping(uvicorn.protocols.http.h11_impl.H11Protocol if BEHAVIOUR.get("drop") else object):
    """Closes the connection where uvicorn would say 500."""

    def data_received(self, data):
        if b"/predict" in data:
            with (FOLDER / "requests.log").open("a") as log:
                log.write("/predict\n")
            self.transport.abort()
        else:
            super().data_received(data)


if BEHAVIOUR.get("crash"):
    sys.exit("the model file is not a model: on purpose")
print("stand-in server is starting", flush=True)
uvicorn.run(
    app,
    host=os.environ["SERVING_HOST"],
    port=int(os.environ["SERVING_PORT"]),
    http=Dropping if BEHAVIOUR.get("drop") else "auto",
    log_level="warning",
    timeout_graceful_shutdown=10,
)
