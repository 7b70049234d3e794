"""The one port: what differs between one machine and EKS."""

from __future__ import annotations

from typing import Protocol

from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.domain.spec import ModelSpec


class Platform(Protocol):
    """Starts servers for releases and splits a model's traffic between them.

    Every method is idempotent. Errors: `ReleaseNotReady` with the server's own reason, `RouteConflict`
    when somebody else keeps changing the route, `DependencyDown` when the platform does not answer.
    """

    def start(self, release: Release, spec: ModelSpec, *, takes_over: bool = False) -> None:
        """Start the release's servers; return when as many as the model asks for are ready to answer.

        `takes_over`: it gets everybody's traffic at once, and needs what the release that has it now has
        grown to. Where there is no room for that many, it begins with fewer rather than never.
        """

    def stop(self, release: Release) -> None:
        """Drain and remove the release's servers; nothing happens when there are none."""

    def route(self, model: str, routes: Routes) -> None:
        """Set the whole route; return when the data plane serves it."""

    def routes(self, model: str) -> Routes:
        """Read back the route that the data plane serves now; empty when it has none."""

    def url(self, release: Release) -> str:
        """Base URL of the release's own servers, past the traffic split."""

    def settle(self, model: str) -> None:
        """A promotion or an experiment is over: whatever was pinned for its time (the least number of
        servers, say) goes back to what the model's own settings say."""

    def log(self, release: Release, last: int) -> list[str]:
        """The last lines of each of the release's servers, as they wrote them; empty when none is left."""

    def running(self) -> frozenset[str]:
        """Names of the releases that have servers, ready or not."""
