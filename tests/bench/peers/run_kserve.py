"""The MLP on KServe's Python server, v1 protocol: run_kserve.py PORT FOLDER."""

import sys
from pathlib import Path
from typing import Any

import kserve
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from serving_subjects import load


class Mlp(kserve.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__("mlp")
        self.model = load(Path(sys.argv[2]))
        self.ready = True

    async def predict(self, payload: Any, *_: Any, **__: Any) -> Any:
        with torch.inference_mode():
            return {"predictions": self.model(torch.tensor(payload["instances"])).tolist()}


if __name__ == "__main__":
    kserve.ModelServer(
        http_port=int(sys.argv[1]), enable_grpc=False, workers=1, access_log_format=None
    ).start([Mlp()])
