"""ECR through boto3's own request and answer checks (botocore's Stubber); no account is contacted."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from flows.adapters.ecr import Ecr
from flows.domain.errors import DependencyDown, ImageFailed

DIGEST = "sha256:" + "9" * 64


@pytest.fixture
def client() -> Any:
    return boto3.client(
        "ecr", region_name="eu-central-1", aws_access_key_id="id", aws_secret_access_key="secret"
    )


@pytest.fixture
def stub(client: Any) -> Iterator[Stubber]:
    with Stubber(client) as stub:
        yield stub
        stub.assert_no_pending_responses()


def test_the_login(client: Any, stub: Stubber) -> None:
    token = base64.b64encode(b"AWS:pass:word").decode()
    endpoint = "https://111111111111.dkr.ecr.eu-central-1.amazonaws.com"
    data = {"authorizationToken": token, "proxyEndpoint": endpoint}
    stub.add_response("get_authorization_token", {"authorizationData": [data]}, {})
    login = Ecr(client).login()
    assert (login.registry, login.user, login.password) == (endpoint[8:], "AWS", "pass:word")
    assert "pass:word" not in repr(login)


def test_the_digest_is_the_registrys(client: Any, stub: Stubber) -> None:
    stub.add_response(
        "describe_images",
        {"imageDetails": [{"registryId": "111111111111", "imageDigest": DIGEST}]},
        {"repositoryName": "modelserve/flights", "imageIds": [{"imageTag": "flights-v2"}]},
    )
    assert Ecr(client).pinned("modelserve/flights", "flights-v2") == (
        f"111111111111.dkr.ecr.eu-central-1.amazonaws.com/modelserve/flights@{DIGEST}"
    )


@pytest.mark.parametrize("code", ["ImageNotFoundException", "RepositoryNotFoundException"])
def test_an_image_that_was_not_pushed(client: Any, stub: Stubber, code: str) -> None:
    stub.add_client_error("describe_images", code, "not there", 400)
    with pytest.raises(ImageFailed, match="flights:flights-v2 is not in Amazon ECR; push it first"):
        Ecr(client).pinned("modelserve/flights", "flights-v2")


def test_a_role_that_may_not(client: Any, stub: Stubber) -> None:
    stub.add_client_error("get_authorization_token", "AccessDeniedException", "no", 403)
    with pytest.raises(
        DependencyDown, match=r"refused get_authorization_token \(AccessDeniedException: no\)"
    ):
        Ecr(client).login()
