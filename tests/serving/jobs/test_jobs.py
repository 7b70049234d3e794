"""Batch jobs with a real PostgreSQL: what they take and answer, and what is left when a replica dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.integration.s3_server import ACCESS, BUCKET, run_s3
from tests.integration.s3_server import client as s3_client
from tests.serving.model_bundles import affine, people, person
from tests.serving.server_runs import ServerProcess, ThreadedServer, free_port, process, threaded

ROWS = [[float(row), 2.0, 3.0, 4.0] for row in range(25)]
PREDICTIONS = [[2.0 * row + 1, 5.0, 7.0] for row in range(25)]


@pytest.fixture(scope="module")
def own_database(postgres_url: str) -> str:
    """Beside the one of the shared server."""
    connection = psycopg2.connect(postgres_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE jobs_of_tests")
    connection.close()
    base, _, query = postgres_url.partition("?")
    return f"{base.rsplit('/', 1)[0]}/jobs_of_tests?{query}"


@pytest.fixture
def database(own_database: str) -> str:
    """The same for every test, emptied: making one takes longer than most of them."""
    connection = psycopg2.connect(own_database)
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS batch_chunks, batch_jobs")
    connection.close()
    return own_database


@pytest.fixture
def options(database: str, tmp_path: Path) -> dict[str, Any]:
    """For servers that a test starts itself."""
    (tmp_path / "jobs" / "inputs").mkdir(parents=True)
    return {
        "database_url": database,
        "jobs_uri": str(tmp_path / "jobs"),
        "jobs_lease_seconds": 1.5,
        "drain_seconds": 1,
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the shared server keeps its jobs in."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "inputs").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(
    postgres_url: str, store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ThreadedServer]:
    bundle = affine(tmp_path_factory.mktemp("affine"), batching={"max_rows": 8}, jobs={"chunk_rows": 10})
    with threaded(bundle, database_url=postgres_url, jobs_uri=str(store)) as server:
        yield server


@pytest.fixture
def client(server: ThreadedServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def ended(client: httpx.Client, job: str, seconds: float = 30) -> dict[str, Any]:
    """The job once it has ended."""
    until = time.monotonic() + seconds
    while True:
        found: dict[str, Any] = client.get(f"/batch-predict/{job}").json()
        if found["state"] not in ("queued", "running"):
            return found
        assert time.monotonic() < until, found
        time.sleep(0.05)


def results(client: httpx.Client, job: str) -> list[dict[str, Any]]:
    """All pages, by the links between them."""
    rows: list[dict[str, Any]] = []
    address: str | None = f"/batch-predict/{job}/results"
    while address is not None:
        page = client.get(address).raise_for_status().json()
        rows += page["results"]
        address = f"/batch-predict/{job}/{page['next']}" if page["next"] else None
    return rows


def count(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"modelserve_{name}{{"))


def test_a_job_from_beginning_to_end(client: httpx.Client) -> None:
    answer = client.post("/batch-predict", json={"instances": ROWS})
    assert answer.status_code == 202
    job = answer.json()
    assert (job["state"], job["rows"], job["pages"]) == ("queued", 25, 3)
    assert str(answer.url.join(answer.headers["location"])).endswith(f"/batch-predict/{job['id']}")
    done = ended(client, job["id"])
    assert (done["state"], done["rows_done"], done["rows_failed"], done["progress"]) == ("done", 25, 0, 1.0)
    assert done["version"] == "7"
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    rows = results(client, job["id"])
    assert [row["row"] for row in rows] == list(range(25))
    assert [row["prediction"] for row in rows] == PREDICTIONS
    files = json.loads(Path(done["results_uri"]).read_text())["files"]
    assert [json.loads(line) for file in files for line in Path(file).read_text().splitlines()] == rows
    missing = client.get(f"/batch-predict/{job['id']}/results?page=3")
    assert missing.status_code == 404
    assert "3 pages" in missing.json()["detail"]


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"x": ROWS}), path)


def inputs(folder: Path) -> dict[str, Path]:
    lines = "\n".join(json.dumps(row) for row in ROWS)
    (folder / "rows.jsonl").write_text(f"\n{lines}\n\n")
    (folder / "rows.json").write_text(json.dumps({"instances": ROWS}, indent=1))
    write_parquet(folder / "rows.parquet")
    return {form: folder / f"rows.{form}" for form in ("json", "jsonl", "parquet")}


def test_every_format_as_body_and_by_uri(client: httpx.Client, store: Path) -> None:
    media = {"json": "application/json", "jsonl": "application/x-ndjson", "parquet": "application/x-parquet"}
    for form, path in inputs(store / "inputs").items():
        sent = client.post("/batch-predict", content=path.read_bytes(), headers={"content-type": media[form]})
        named = client.post("/batch-predict", json={"input_uri": str(path)})
        path.rename(path.with_suffix(".data"))
        stated = client.post(
            "/batch-predict", json={"input_uri": str(path.with_suffix(".data")), "format": form}
        )
        for answer in (sent, stated):
            assert answer.status_code == 202, answer.text
            job = answer.json()["id"]
            assert ended(client, job)["state"] == "done"
            assert [row["prediction"] for row in results(client, job)] == PREDICTIONS
        # The file may be gone before the job is run; then it says so.
        assert named.status_code == 202
        assert ended(client, named.json()["id"])["state"] in ("done", "failed")


def test_a_row_that_breaks_the_signature_or_the_model_fails_alone(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    rows = [person(), person(age=-1), person("poison"), {"name": "x"}, 7, person(height=None)]
    with threaded(people(tmp_path / "people"), **options) as server, server.client() as client:
        job = client.post("/batch-predict", json={"instances": rows}).json()["id"]
        done = ended(client, job)
        assert (done["state"], done["rows_failed"]) == ("done", 4)
        found = results(client, job)
        assert [row.get("error", {}).get("status", 200) for row in found] == [200, 422, 500, 422, 422, 200]
        assert found[1]["error"]["pointer"] == "#/age"
        assert "secret" not in json.dumps(found)
        assert found[5]["prediction"] == {"score": 0.2, "label": "member"}


def test_the_same_key_is_the_same_job(client: httpx.Client) -> None:
    def post(rows: list[Any]) -> httpx.Response:
        body = {"instances": rows}
        return client.post("/batch-predict", json=body, headers={"idempotency-key": "monday"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(ROWS), range(16)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = post(ROWS[:3])
    assert other.status_code == 422
    assert "Idempotency-Key" in other.json()["detail"]
    assert client.post("/batch-predict", json={"instances": ROWS}).json()["id"] != answers[0].json()["id"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b'{"instances": [1,', {}, 400),
        (b'{"instances": []}', {}, 422),
        (b'{"instances": {}}', {}, 422),
        (b'{"instance": [1]}', {}, 422),
        (b"{}", {}, 422),
        (b"[" * 5000, {}, 422),
        (b'{"instances": ' + b"[" * 5000, {}, 400),
        (b'{"instances": ' + b"[" * 5000 + b"]" * 5000 + b"}", {}, 400),
        (b'{"instances": ["\xff"]}', {}, 400),
        (b'{"instances": [1], "input_uri": "x"}', {}, 422),
        (b'{"input_uri": 7}', {}, 422),
        (b'{"input_uri": "x.jsonl", "format": "csv"}', {}, 422),
        (b"1\n{\n", {"content-type": "application/jsonl"}, 400),
        (b"\n\n", {"content-type": "application/jsonl"}, 422),
        (b"PAR1 nonsense PAR1", {"content-type": "application/x-parquet"}, 400),
        (b"", {"content-type": "application/x-parquet"}, 400),
        (b"a,b\n1,2\n", {"content-type": "text/csv"}, 415),
        (b'{"instances": [1]}', {"idempotency-key": "two words"}, 400),
        (b'{"instances": [1]}', {"idempotency-key": "x" * 129}, 400),
        (b'{"instances": [1]}', {"content-encoding": "br"}, 415),
    ],
)
def test_bad_input(
    client: httpx.Client, store: Path, body: bytes, headers: dict[str, str], status: int
) -> None:
    before = set(store.iterdir())
    answer = client.post("/batch-predict", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(store.iterdir()) == before, "nothing of a refused job is left"


def test_parquet_with_other_columns_is_refused(client: httpx.Client, tmp_path: Path) -> None:
    for columns, words in (
        ({"x": ROWS, "y": PREDICTIONS}, "unknown column y"),
        ({"y": ROWS}, "unknown column y"),
    ):
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / "other.parquet")
        content = (tmp_path / "other.parquet").read_bytes()
        answer = client.post(
            "/batch-predict", content=content, headers={"content-type": "application/x-parquet"}
        )
        assert answer.status_code == 422
        assert words in answer.json()["detail"]


def test_only_allowed_folders_are_read(client: httpx.Client, store: Path) -> None:
    (store / "secret.jsonl").write_text("[1,2,3,4]\n")
    for uri in (
        "/etc/passwd",
        "file:///etc/passwd",
        f"{store}/secret.jsonl",
        f"{store}/inputs/../secret.jsonl",
        f"{store}/inputs/*.jsonl",
        f"{store}/inputs",
        "http://169.254.169.254/latest/x.jsonl",
        f"simplecache::{store}/inputs/rows.jsonl",
        f"{store}/inputs/a\u0000b.jsonl",
    ):
        answer = client.post("/batch-predict", json={"input_uri": uri, "format": "jsonl"})
        assert answer.status_code == 422, uri
        assert answer.json()["errors"][0]["pointer"] == "#/input_uri"


def test_an_input_that_cannot_be_read_fails_the_job_with_its_reason(
    client: httpx.Client, store: Path
) -> None:
    (store / "inputs" / "broken.jsonl").write_text("[1,2,3,4]\n[1,\n")
    expected = {"broken.jsonl": "line 2 is not JSON", "nowhere.jsonl": "there is no file"}
    for name, words in expected.items():
        answer = client.post("/batch-predict", json={"input_uri": str(store / "inputs" / name)})
        failed = ended(client, answer.json()["id"])
        assert failed["state"] == "failed"
        assert words in failed["error"]
        assert failed["results_uri"] is None


def test_unknown_jobs_are_404_and_pages_are_numbers(client: httpx.Client) -> None:
    for name in ("0" * 32, "x", "..%2f..", "0" * 31 + "%00"):
        for method in ("GET", "DELETE"):
            assert client.request(method, f"/batch-predict/{name}").status_code == 404
    job = client.post("/batch-predict", json={"instances": ROWS}).json()["id"]
    for page in ("-1", "x", "", "1e3", "9" * 30):
        assert client.get(f"/batch-predict/{job}/results?page={page}").status_code == 400
    wrong = client.put(f"/batch-predict/{job}")
    assert (wrong.status_code, wrong.headers["content-type"]) == (405, "application/problem+json")


def test_cancelling_stops_the_model(tmp_path: Path, options: dict[str, Any]) -> None:
    bundle = people(tmp_path / "people", batching={"max_rows": 1})
    with threaded(bundle, **options) as server, server.client() as client:
        rows = [person("sleep 0.05")] * 400
        job = client.post("/batch-predict", json={"instances": rows}).json()["id"]
        until = time.monotonic() + 10
        while count(client, "batch_rows_count") < 3:
            assert time.monotonic() < until
            time.sleep(0.05)
        cancelled = client.delete(f"/batch-predict/{job}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        time.sleep(0.3)  # the row under way
        before = count(client, "batch_rows_count")
        time.sleep(0.5)
        assert count(client, "batch_rows_count") == before < 400
        assert client.delete(f"/batch-predict/{job}").json()["state"] == "cancelled"
        assert client.get(f"/batch-predict/{job}/results").status_code == 404
        # Whoever ran it is free for the next one.
        assert (
            ended(client, client.post("/batch-predict", json={"instances": rows[:2]}).json()["id"])["state"]
            == "done"
        )
        assert (
            'modelserve_jobs{model="people",state="cancelled",version="7"} 1.0' in client.get("/metrics").text
        )


def test_cancelled_by_one_replica_while_another_runs_it(tmp_path: Path, options: dict[str, Any]) -> None:
    bundle = people(tmp_path / "people", batching={"max_rows": 1})
    with threaded(bundle, **options) as runs, runs.client() as first:
        job = first.post("/batch-predict", json={"instances": [person("sleep 0.05")] * 400}).json()["id"]
        with threaded(bundle, **options) as other, other.client() as second:
            assert second.delete(f"/batch-predict/{job}").json()["state"] == "cancelled"
        time.sleep(1.0)  # the next renewal
        before = count(first, "batch_rows_count")
        time.sleep(0.5)
        assert count(first, "batch_rows_count") == before < 400


def slow_job(client: httpx.Client, rows: int) -> str:
    instances = [person("sleep 0.02", age=row % 150) for row in range(rows)]
    answer = client.post("/batch-predict", json={"instances": instances})
    assert answer.status_code == 202, answer.text
    job: str = answer.json()["id"]
    return job


def progressed(client: httpx.Client, job: str, rows: int) -> None:
    until = time.monotonic() + 20
    while client.get(f"/batch-predict/{job}").json()["rows_done"] < rows:
        assert time.monotonic() < until
        time.sleep(0.02)


def fences(url: str, job: str) -> list[int]:
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT fence FROM batch_chunks WHERE job = %s ORDER BY number", (job,))
        found = [fence for (fence,) in cursor.fetchall()]
    connection.close()
    return found


def loses(server: ServerProcess) -> None:
    server.process.kill()


def stands_still(server: ServerProcess) -> None:
    os.kill(server.process.pid, signal.SIGSTOP)


def leaves(server: ServerProcess) -> None:
    server.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("happens", [loses, stands_still, leaves])
def test_a_job_survives_the_replica_that_took_it(
    tmp_path: Path, options: dict[str, Any], database: str, happens: Callable[[ServerProcess], None]
) -> None:
    bundle = people(tmp_path / "people", batching={"max_rows": 2}, jobs={"chunk_rows": 10})
    if happens is leaves:
        options["jobs_lease_seconds"] = 120  # it gives the job back, and nobody has to wait for that
    with process(bundle, **options) as first:
        with httpx.Client(base_url=first.url, timeout=20) as client:
            job = slow_job(client, 200)
            progressed(client, job, 20)
        with process(bundle, **options) as second, httpx.Client(base_url=second.url, timeout=20) as client:
            happens(first)
            done = ended(client, job)
            if happens is stands_still:
                # It wakes up, believes that the job is its own, and must not change anything any more.
                os.kill(first.process.pid, signal.SIGCONT)
                until = time.monotonic() + 10
                while "cancelled" not in first.log:
                    assert time.monotonic() < until, first.log
                    time.sleep(0.05)
            assert client.get(f"/batch-predict/{job}").json() == done
            assert (done["state"], done["rows_done"], done["rows_failed"]) == ("done", 200, 0)
            rows = results(client, job)
            assert [row["row"] for row in rows] == list(range(200)), "each row once, in order"
            assert [row["prediction"]["score"] for row in rows] == [row % 150 / 150 for row in range(200)]
            by = fences(database, job)
            assert by == sorted(by), "what was finished is not run again"
            assert set(by) == {1, 2}


@pytest.fixture(scope="module")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from run_s3(tmp_path_factory.mktemp("s3"))


def test_jobs_in_a_bucket(
    tmp_path: Path, options: dict[str, Any], s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ACCESS["secret"])
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    bucket = s3_client(s3_endpoint)
    bucket.put_object(
        Bucket=BUCKET,
        Key="jobs/inputs/day=1/rows.jsonl",
        Body="\n".join(json.dumps(row) for row in ROWS).encode(),
    )
    bundle = affine(tmp_path / "affine", jobs={"chunk_rows": 10})
    with (
        process(bundle, **options | {"jobs_uri": f"s3://{BUCKET}/jobs/"}) as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        for body in ({"instances": ROWS}, {"input_uri": f"s3://{BUCKET}/jobs/inputs/day=1/rows.jsonl"}):
            job = client.post("/batch-predict", json=body).json()["id"]
            done = ended(client, job)
            assert (done["state"], done["error"]) == ("done", None), server.log
            assert [row["prediction"] for row in results(client, job)] == PREDICTIONS
            key = done["results_uri"].removeprefix(f"s3://{BUCKET}/")
            files = json.loads(bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read())["files"]
            assert len(files) == 3
        missing = client.post("/batch-predict", json={"input_uri": f"s3://{BUCKET}/jobs/inputs/none.jsonl"})
        assert "there is no file" in ended(client, missing.json()["id"])["error"]
    with (
        process(bundle, **options | {"jobs_uri": "s3://misspelt/jobs"}) as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        refused = client.post("/batch-predict", json={"instances": ROWS})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert [found["Name"] for found in bucket.list_buckets()["Buckets"]] == [BUCKET]


def test_a_job_that_breaks_its_replicas_is_given_up(
    tmp_path: Path, options: dict[str, Any], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.jobs.runner._TEND_SECONDS", 0.1)
    with threaded(people(tmp_path / "people"), **options) as server, server.client() as client:
        job = slow_job(client, 2)
        assert ended(client, job)["state"] == "done"
        connection = psycopg2.connect(database)
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE batch_jobs SET state = 'running', finished_at = NULL, tries = 5, lease_until = now()"
            )
        connection.close()
        lost = ended(client, job)
        assert lost["state"] == "failed"
        assert "every replica" in lost["error"]


def test_a_job_of_a_release_that_is_gone_fails(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.jobs.runner._TEND_SECONDS", 0.1)
    bundle = people(tmp_path / "people", batching={"max_rows": 1}, jobs={"chunk_rows": 5})
    with threaded(bundle, version="1", **options) as old, old.client() as client:
        job = slow_job(client, 200)
        progressed(client, job, 5)
    with threaded(bundle, version="2", **options) as new, new.client() as client:
        time.sleep(2.5)
        found = client.get(f"/batch-predict/{job}").json()
        assert (found["state"], found["version"]) == ("queued", "1"), "another release never goes on with it"
        assert client.get(f"/batch-predict/{job}/results").status_code == 200
        monkeypatch.setattr("serving.jobs.runner._GONE_SECONDS", 0.5)
        lost = ended(client, job)
        assert lost["state"] == "failed"
        assert "release" in lost["error"]


def test_old_jobs_are_removed_with_their_files(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.jobs.runner._TEND_SECONDS", 0.1)
    bundle = affine(tmp_path / "affine", jobs={"keep_seconds": 1})
    with threaded(bundle, **options) as server, server.client() as client:
        job = client.post("/batch-predict", json={"instances": ROWS}).json()["id"]
        assert ended(client, job)["state"] == "done"
        until = time.monotonic() + 10
        while (tmp_path / "jobs" / job).exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        assert client.get(f"/batch-predict/{job}").status_code == 404


def test_a_job_is_its_owners(tmp_path: Path, options: dict[str, Any]) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ada:first\nbob:second\n")
    ada, bob = {"x-api-key": "first"}, {"x-api-key": "second", "idempotency-key": "k"}
    with (
        threaded(affine(tmp_path / "affine"), api_keys_file=keys, **options) as server,
        server.client() as client,
    ):
        body = {"instances": ROWS}
        job = client.post("/batch-predict", json=body, headers=ada | {"idempotency-key": "k"}).json()["id"]
        assert client.post("/batch-predict", json=body, headers=bob).json()["id"] != job
        assert client.get(f"/batch-predict/{job}", headers=ada).status_code == 200
        assert client.post("/batch-predict", json=body).status_code == 401
        for method, path in (("GET", ""), ("GET", "/results"), ("DELETE", "")):
            answer = client.request(method, f"/batch-predict/{job}{path}", headers=bob)
            assert answer.status_code == 404


def test_too_large_a_job_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    store = tmp_path / "jobs"
    bundle = affine(tmp_path / "affine", jobs={"max_rows": 20, "max_body_bytes": 2000, "chunk_rows": 8})
    with threaded(bundle, **options) as server, server.client() as client:
        many = client.post("/batch-predict", json={"instances": ROWS})
        assert (many.status_code, many.json()["detail"]) == (422, "a job may have at most 20 rows")
        assert [path.name for path in store.iterdir()] == ["inputs"]
        assert client.post("/batch-predict", json={"instances": ROWS * 10}).status_code == 413
        (store / "inputs" / "many.jsonl").write_text("[1,2,3,4]\n" * 21)
        job = client.post("/batch-predict", json={"input_uri": str(store / "inputs" / "many.jsonl")}).json()[
            "id"
        ]
        assert ended(client, job)["error"] == "a job may have at most 20 rows"


def test_a_queue_that_is_full_is_503(tmp_path: Path, options: dict[str, Any]) -> None:
    bundle = people(tmp_path / "people", batching={"max_rows": 1}, jobs={"max_queued": 2})
    with threaded(bundle, **options) as server, server.client() as client:
        slow_job(client, 500)
        statuses = [
            client.post("/batch-predict", json={"instances": [person()]}).status_code for _ in range(6)
        ]
        assert statuses.count(202) in (2, 3)
        assert statuses[-1] == 503


def test_without_a_database_only_jobs_are_missing(tmp_path: Path) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/x"
    bundle = affine(tmp_path / "affine")
    with threaded(bundle, database_url=url, jobs_uri=str(tmp_path)) as server, server.client() as client:
        answer = client.post("/batch-predict", json={"instances": ROWS}, headers={"idempotency-key": "k"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert client.get(f"/batch-predict/{'0' * 32}").status_code == 503
        assert client.get("/readyz").status_code == 200
        assert client.post("/predict", json={"instances": ROWS[:1]}).status_code == 200
    with threaded(bundle) as server, server.client() as client:
        answer = client.post("/batch-predict", json={"instances": ROWS})
        assert answer.status_code == 503
        assert "SERVING_DATABASE_URL" in answer.json()["detail"]


def test_a_database_that_drops_its_connections_is_no_fault(
    tmp_path: Path, options: dict[str, Any], database: str
) -> None:
    bundle = people(tmp_path / "people", batching={"max_rows": 2}, jobs={"chunk_rows": 5})
    with threaded(bundle, **options) as server, server.client() as client:
        job = slow_job(client, 100)
        stop = threading.Event()

        def drop() -> None:
            connection = psycopg2.connect(database)
            connection.autocommit = True
            with connection.cursor() as cursor:
                while not stop.wait(0.3):
                    cursor.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE application_name = 'modelserve-jobs' AND datname = current_database()"
                    )
            connection.close()

        dropping = threading.Thread(target=drop)
        dropping.start()
        try:
            done = ended(client, job)
        finally:
            stop.set()
            dropping.join()
        assert (done["state"], done["rows_done"]) == ("done", 100)
        assert [row["row"] for row in results(client, job)] == list(range(100))


def test_online_requests_pass_a_job_by(tmp_path: Path, options: dict[str, Any]) -> None:
    bundle = people(tmp_path / "people", batching={"max_rows": 4})
    with threaded(bundle, **options) as server, server.client() as client:
        job = slow_job(client, 300)
        for _ in range(10):
            # Behind the job it would wait for six seconds.
            answer = client.post(
                "/predict", json={"instances": [person()]}, headers={"x-request-timeout": "2"}
            )
            assert answer.status_code == 200
        assert client.get(f"/batch-predict/{job}").json()["state"] == "running"
        client.delete(f"/batch-predict/{job}")
