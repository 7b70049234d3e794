"""Tells the Prefect server how this cluster runs flows; the worker's first container, at every start.

The work pool gets the base job template beside this file (with the image that the worker itself runs), the
blocks say where results are kept, and the registry and the Prefect deployments are brought up to date.
Everything is idempotent: several workers may start at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists
from prefect_aws import AwsCredentials, S3Bucket

POOL = "kubernetes"
TEMPLATE = Path(__file__).with_name("base-job-template.json")


def job_template(image: str, template: Path = TEMPLATE) -> dict[str, Any]:
    """The base job template for job pods that run `image`."""
    content: dict[str, Any] = json.loads(template.read_text())
    content["variables"]["properties"]["image"]["default"] = image
    return content


def prepare_pool(image: str) -> None:
    """Create the work pool, or bring its template up to date."""
    template = job_template(image)
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type=POOL, base_job_template=template))
        except ObjectAlreadyExists:
            client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))


def prepare_blocks(results_uri: str, region: str | None) -> None:
    """Results of tasks go to S3 under the flows' own role: the credentials block holds no key."""
    scheme, _, rest = results_uri.partition("://")
    bucket, _, folder = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise SystemExit(f"MODELSERVE_RESULTS_URI must be s3://bucket/folder, found {results_uri!r}")
    credentials = AwsCredentials(region_name=region)
    credentials.save("modelserve", overwrite=True, _sync=True)
    S3Bucket(
        bucket_name=bucket,
        bucket_folder=folder.strip("/"),
        credentials=AwsCredentials.load("modelserve", _sync=True),
    ).save("modelserve-results", overwrite=True, _sync=True)


def main() -> int:
    from flows.bootstrap import prepare_services
    from flows.settings import Settings

    missing = [
        name for name in ("MODELSERVE_FLOWS_IMAGE", "MODELSERVE_RESULTS_URI") if name not in os.environ
    ]
    if missing:
        print(f"not set: {', '.join(missing)}; see k8s/base/flows/worker.yaml", file=sys.stderr)
        return 1
    prepare_pool(os.environ["MODELSERVE_FLOWS_IMAGE"])
    prepare_blocks(os.environ["MODELSERVE_RESULTS_URI"], os.environ.get("AWS_REGION"))
    prepare_services(Settings())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
