"""Amazon ECR: the login for pushing images, and the digest under which the registry knows one.

The credentials are the caller's own (IRSA in a pod, a role in CI); the password that ECR gives is good for
twelve hours and goes to the image tool's standard input, never onto a command line.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

from flows.domain.errors import DependencyDown, ImageFailed

NAME = "Amazon ECR"


@dataclass(frozen=True)
class Login:
    """What `buildah login REGISTRY -u USER --password-stdin` needs."""

    registry: str
    user: str
    password: str = field(repr=False)


class Ecr:
    """One account's registry in one region. `client` is boto3's `ecr` client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def login(self) -> Login:
        """Raises DependencyDown when AWS refuses or does not answer."""
        data = self._call("get_authorization_token")["authorizationData"][0]
        user, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
        return Login(data["proxyEndpoint"].removeprefix("https://"), user, password)

    def pinned(self, repository: str, tag: str) -> str:
        """`REGISTRY/REPOSITORY@sha256:…` of a pushed tag.

        The digest is asked of the registry: what a build tool prints changes when it compresses layers anew
        for the push. Raises ImageFailed when the tag is not there, DependencyDown as `login` does.
        """
        try:
            answer = self._call("describe_images", repositoryName=repository, imageIds=[{"imageTag": tag}])
        except ImageMissing as error:
            raise ImageFailed(
                f"{repository}:{tag} is not in {NAME}; push it first, or create the repository with Terraform"
            ) from error
        found = answer["imageDetails"][0]
        registry = f"{found['registryId']}.dkr.ecr.{self._client.meta.region_name}.amazonaws.com"
        return f"{registry}/{repository}@{found['imageDigest']}"

    def _call(self, operation: str, **arguments: Any) -> Any:
        try:
            return getattr(self._client, operation)(**arguments)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("ImageNotFoundException", "RepositoryNotFoundException"):
                raise ImageMissing(code) from error
            raise DependencyDown(
                f"{NAME} refused {operation} ({code}: {error.response['Error']['Message']}); "
                "check the role's policy"
            ) from error
        except BotoCoreError as error:
            raise DependencyDown(f"{NAME} does not answer ({error}); check region and network") from error


class ImageMissing(Exception):
    """No such repository or tag."""
