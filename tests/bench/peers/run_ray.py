"""The MLP on Ray Serve: run_ray.py PORT FOLDER."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

CODE = str(Path(__file__).resolve().parents[1])


def main() -> None:
    os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else it writes a token into the home folder
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    folder = sys.argv[2]

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
    class Mlp:
        def __init__(self) -> None:
            sys.path.insert(0, CODE)
            from serving_subjects import load

            self.model = load(Path(folder))

        @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
        async def scores(self, rows: list[list[float]]) -> list[list[float]]:
            import torch

            with torch.inference_mode():
                return self.model(torch.tensor(rows)).tolist()  # type: ignore[no-any-return]

        async def __call__(self, request: Any) -> dict[str, Any]:
            body = await request.json()
            return {"predictions": [await self.scores(body["instances"][0])]}

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(sys.argv[1])))
    serve.run(Mlp.bind(), route_prefix="/predict", logging_config={"enable_access_log": False})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()


if __name__ == "__main__":
    main()
