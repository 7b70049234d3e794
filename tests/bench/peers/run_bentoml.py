"""The MLP on BentoML: run_bentoml.py PORT FOLDER."""

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from serving_subjects import load


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, traffic={"timeout": 30})  # type: ignore[untyped-decorator]
class Mlp:
    def __init__(self) -> None:
        self.model = load(Path(os.environ["MLP_FOLDER"]))

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)  # type: ignore[untyped-decorator]
    def predict(self, instances: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.model(torch.from_numpy(instances.astype(np.float32))).numpy()  # type: ignore[no-any-return]


def main() -> None:
    os.environ["MLP_FOLDER"] = sys.argv[2]
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"
    programs = Path(sys.executable).parent
    here = Path(__file__).resolve().parent
    os.chdir(here)
    arguments = ["serve", "run_bentoml:Mlp", "--host", "127.0.0.1", "--port", sys.argv[1]]
    os.execv(programs / "bentoml", ["bentoml", *arguments])


if __name__ == "__main__":
    main()
