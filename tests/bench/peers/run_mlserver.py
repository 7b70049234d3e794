"""The MLP on MLServer: run_mlserver.py PORT FOLDER."""

import asyncio
import json
import os
import socket
import sys
import tempfile
from pathlib import Path

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from serving_subjects import load


class Mlp(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        self.model = load(Path(os.environ["MLP_FOLDER"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        with torch.inference_mode():
            scores = self.model(torch.from_numpy(rows.astype("float32")))
        output = NumpyCodec.encode_output("scores", scores.numpy())
        return InferenceResponse(model_name=self.name, outputs=[output])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    from mlserver.cli.serve import load_settings
    from mlserver.server import MLServer

    folder = Path(tempfile.mkdtemp())
    os.environ["MLP_FOLDER"] = sys.argv[2]
    settings = {
        "host": "127.0.0.1",
        "http_port": int(sys.argv[1]),
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    model = {
        "name": "mlp",
        "implementation": "run_mlserver.Mlp",
        "max_batch_size": 64,
        "max_batch_time": 0.001,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))

    async def serve() -> None:
        loaded, models = await load_settings(str(folder))
        await MLServer(loaded).start(models)

    sys.path.insert(0, str(Path(__file__).parent))
    import uvloop

    uvloop.install()
    asyncio.run(serve())


if __name__ == "__main__":
    main()
