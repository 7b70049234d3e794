"""The MLP on LitServe: run_litserve.py PORT FOLDER."""

import sys
from pathlib import Path
from typing import Any

import litserve
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from serving_subjects import load


class Mlp(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, _: str) -> None:
        self.model = load(Path(sys.argv[2]))

    def decode_request(self, request: dict[str, Any]) -> torch.Tensor:
        return torch.tensor(request["instances"][0])

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(x)  # type: ignore[no-any-return]

    def unbatch(self, output: torch.Tensor) -> list[list[float]]:
        return output.tolist()  # type: ignore[no-any-return]

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        return {"predictions": [output]}


if __name__ == "__main__":
    server = litserve.LitServer(
        Mlp(max_batch_size=64, batch_timeout=0.0), accelerator="cpu", workers_per_device=1, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
