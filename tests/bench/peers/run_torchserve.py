"""The MLP on TorchServe: run_torchserve.py PORT FOLDER. Also its handler, which its worker loads."""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any


class Mlp:
    """What TorchServe calls: `initialize` once, `handle` with a batch of requests."""

    def initialize(self, context: Any) -> None:
        sys.path.insert(0, os.environ["MLP_CODE"])
        from serving_subjects import load

        self.model = load(Path(os.environ["MLP_FOLDER"]))
        self.context = context
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], _: Any) -> list[Any]:
        import torch

        rows = []
        for request in data:
            body = request.get("body") or request.get("data")
            parsed = json.loads(body) if isinstance(body, bytes | bytearray | str) else body
            rows.append(parsed["instances"][0] if isinstance(parsed, dict) else parsed[0])
        with torch.inference_mode():
            scores = self.model(torch.tensor(rows)).tolist()
        return [{"predictions": [row]} for row in scores]


LOGS = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
  <Appenders><Console name="console"><PatternLayout pattern="%p %m%n"/></Console></Appenders>
  <Loggers><Root level="warn"><AppenderRef ref="console"/></Root></Loggers>
</Configuration>
"""
"""By default every request is four lines in three files."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    code = Path(__file__).resolve()
    folder = Path(tempfile.mkdtemp())
    store = folder / "store"
    store.mkdir()
    programs = Path(sys.executable).parent
    os.environ |= {
        "MLP_CODE": str(code.parents[1]),
        "MLP_FOLDER": sys.argv[2],
        "LOG_LOCATION": str(folder),
        "METRICS_LOCATION": str(folder),
        "TEMP": str(folder),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    from model_archiver.model_packaging import generate_model_archive

    port = int(sys.argv[1])
    archive = ["--model-name", "mlp", "--version", "1", "--handler", str(code), "--export-path", str(store)]
    sys.argv[1:] = archive
    generate_model_archive()
    models = {
        "mlp": {
            "1": {
                "defaultVersion": True,
                "marName": "mlp.mar",
                "minWorkers": 1,
                "maxWorkers": 1,
                "batchSize": 64,
                "maxBatchDelay": 1,
                "responseTimeout": 60,
            }
        }
    }
    settings = {
        "inference_address": f"http://127.0.0.1:{port}",
        "management_address": f"http://127.0.0.1:{free_port()}",
        "metrics_address": f"http://127.0.0.1:{free_port()}",
        "grpc_inference_port": free_port(),
        "grpc_management_port": free_port(),
        "model_store": store,
        "load_models": "all",
        "models": json.dumps(models),
        "disable_token_authorization": "true",
        "job_queue_size": 1000,
        "disable_system_metrics": "true",
    }
    (folder / "config.properties").write_text(
        "".join(f"{name}={value}\n" for name, value in settings.items())
    )
    (folder / "log4j2.xml").write_text(LOGS)
    command = ["torchserve", "--foreground", "--disable-token-auth", "--ncs"]
    files = ["--ts-config", str(folder / "config.properties"), "--log-config", str(folder / "log4j2.xml")]
    os.chdir(folder)
    os.execvp(command[0], [*command, *files])


if __name__ == "__main__":
    main()
