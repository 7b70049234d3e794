"""The servers that are compared: ours, plain FastAPI as people write it, and the floor. All on one MLP.

Run as a program it is one of the latter two: `python serving_subjects.py floor|fastapi PORT FOLDER`.
"""

import sys
from pathlib import Path
from typing import Any

WIDTH, HIDDEN, CLASSES = 64, 512, 10


def build() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(WIDTH, HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Linear(HIDDEN, HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Linear(HIDDEN, CLASSES),
    ).eval()


HANDLER = f"""from torch import nn


def build():
    first, second = nn.Linear({WIDTH}, {HIDDEN}), nn.Linear({HIDDEN}, {HIDDEN})
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear({HIDDEN}, {CLASSES}))
"""

SPEC = f"""name: mlp
signature:
  inputs: [{{name: x, type: number, shape: [{WIDTH}]}}]
  outputs: [{{name: scores, type: number, shape: [{CLASSES}]}}]
serving:
  runtime: {{kind: pytorch, file: model.pt, format: state_dict}}
"""


def write_bundle(folder: Path, extra: str = "") -> Path:
    """The MLP as a sealed bundle; `extra` is appended to the section `serving`."""
    import torch

    from serving.bundle import seal

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(SPEC + extra)
    (folder / "handler.py").write_text(HANDLER)
    torch.save(build().state_dict(), folder / "model.pt")
    seal(folder)
    return folder


def floor(port: int) -> None:
    """Parse the body and answer constant bytes of the same length: what no server on this stack can beat."""
    import msgspec
    import uvicorn

    class Body(msgspec.Struct):
        instances: list[list[float]]

    decode = msgspec.json.Decoder(Body).decode
    answer = b'{"predictions":[[' + b",".join(b"0.12345678" for _ in range(CLASSES)) + b"]]}"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        if scope["method"] == "POST":
            decode(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
    )


def plain_fastapi(port: int, folder: Path) -> None:
    import torch
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    torch.set_num_threads(1)
    model = build()
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))

    class Request(BaseModel):
        instances: list[list[float]]

    class Response(BaseModel):
        predictions: list[list[float]]

    app = FastAPI()

    @app.get("/readyz")
    async def ready() -> str:
        return "ready"

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        with torch.inference_mode():
            scores = model(torch.tensor(request.instances))
        return Response(predictions=scores.tolist())

    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning")


# FastAPI reads the annotations of nested functions from the module when they are strings.
if __name__ == "__main__":
    if sys.argv[1] == "floor":
        floor(int(sys.argv[2]))
    else:
        plain_fastapi(int(sys.argv[2]), Path(sys.argv[3]))
