"""What is measured beside the peers: the models, plain FastAPI as people write it, the floor, and bare loops.

Run as a program it is one of them: `python serving_subjects.py KIND ARGUMENTS`, see `main`.
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


def load(folder: Path) -> Any:
    """The bundle's model, for servers that do not read bundles; with one thread, as ours runs it."""
    import torch

    torch.set_num_threads(1)
    model = build()
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return model


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

    from serving.inference.bundle import seal

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(SPEC + extra)
    (folder / "handler.py").write_text(HANDLER)
    torch.save(build().state_dict(), folder / "model.pt")
    seal(folder)
    return folder


IMAGE_HANDLER = """from torch import nn


def build():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""

IMAGE_SPEC = """name: image
signature:
  inputs: [{name: x, type: number, shape: [3, 224, 224]}]
  outputs: [{name: means, type: number, shape: [3]}]
serving:
  runtime: {kind: pytorch, file: model.pt, format: state_dict}
"""

CONV_HANDLER = """from torch import nn


def build():
    layers = [nn.Conv2d(3, 96, 3, padding=1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(96, 96, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))
"""
CONV_ROWS = 4

CONV_SPEC = f"""name: conv
signature:
  inputs: [{{name: x, type: number, shape: [3, 32, 32]}}]
  outputs: [{{name: scores, type: number, shape: [10]}}]
serving:
  runtime: {{kind: pytorch, file: model.pt, format: state_dict, threads: 1}}
  batching: {{max_rows: {CONV_ROWS}}}
"""


def write_other(folder: Path, spec: str, handler: str) -> Path:
    """A bundle of another model, with weights as its handler makes them."""
    import torch

    from serving.inference.bundle import seal

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(spec)
    (folder / "handler.py").write_text(handler)
    torch.manual_seed(0)
    torch.save(built(folder).state_dict(), folder / "model.pt")
    seal(folder)
    return folder


def built(folder: Path) -> Any:
    """What `build` in the folder's handler.py makes."""
    names: dict[str, Any] = {}
    exec((folder / "handler.py").read_text(), names)
    return names["build"]()


def bare_loop(folder: Path, rows: int, seconds: float) -> None:
    """Prints the rows a second, and the CPU microseconds a row, of the model alone in a loop."""
    import time

    import torch

    torch.set_num_threads(1)
    model = built(folder)
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    model.eval()
    batch = torch.rand(rows, 3, 32, 32)
    with torch.inference_mode():
        model(batch)
        began, used, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < seconds:
            model(batch)
            done += rows
    taken = time.perf_counter() - began
    print(done / taken, (time.process_time() - used) / done * 1e6)


def ours_without(what: str) -> None:
    """Our server without something that it has no switch for, because nobody should: for comparison only."""
    import gc

    from serving import server
    from serving.run import serve
    from serving.telemetry import Telemetry

    class Silent(Telemetry):
        def request(self, route: str, code: int, seconds: float) -> None: ...

        def batch(self, rows: int, seconds: float | None, waits: list[float]) -> None: ...

        def count(self, name: str, amount: int = 1, *labels: str) -> None: ...

        def outputs(self, classes: Any) -> None: ...

    if what == "metrics":
        server.Telemetry = Silent  # type: ignore[misc]
    if what == "gc":
        gc.disable()
    sys.exit(serve())


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

    model = load(folder)

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


def main(kind: str, *arguments: str) -> None:
    if kind == "floor":
        floor(int(arguments[0]))
    elif kind == "fastapi":
        plain_fastapi(int(arguments[0]), Path(arguments[1]))
    elif kind == "load":
        load(Path(arguments[0]))
    elif kind == "loop":
        bare_loop(Path(arguments[0]), int(arguments[1]), float(arguments[2]))
    else:
        ours_without(arguments[0])


# FastAPI reads the annotations of nested functions from the module when they are strings.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(*sys.argv[1:])
