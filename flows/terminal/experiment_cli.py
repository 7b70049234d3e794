"""`modelserve experiment`: an A/B test driven from this terminal. It needs no Prefect server.

Ctrl-C ends it: the traffic goes back, and what was found by then is repeated. The same on the Prefect worker,
ended by cancelling the run: `prefect deployment run experiment/experiment -p model=… -p a=… -p b=…`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.terminal.control import plane

Arm = Annotated[int, typer.Argument(help="A registered version in service.", min=1, show_default=False)]


def experiment(
    model: Annotated[str, typer.Argument(help="The model's name, as in its model.yaml.", show_default=False)],
    a: Arm,
    b: Arm,
    share: Annotated[int, typer.Option(help="Percent of new visitors for B.", min=1, max=99)] = 50,
    sticky: Annotated[
        Literal["cookie", "header", "none"],
        typer.Option(
            help="How a visitor stays on his release: the cookie that his first answer sets, the header "
            "x-experiment-arm (a or b) that the client sends, or not at all."
        ),
    ] = "cookie",
    measure: Annotated[
        str,
        typer.Option(
            help="'outcome' (the reported values, more is better), or an output's name: right when it "
            "equals the outcome."
        ),
    ] = "outcome",
    alpha: Annotated[float, typer.Option(help="Chance of calling equal releases different.")] = 0.05,
    minimum: Annotated[int, typer.Option(help="Outcomes that each arm needs before a decision.")] = 100,
    hours: Annotated[float, typer.Option(help="When to give up.")] = 336,
    look_seconds: Annotated[float, typer.Option(help="Time between two looks at the outcomes.")] = 15,
    report: Annotated[Path | None, typer.Option(help="Write the report there, as Markdown.")] = None,
) -> None:
    """Compare two releases in service on live traffic, until outcomes decide (POST /feedback) or Ctrl-C.

    Exit 1 when it ended otherwise: out of time, or because somebody else moved the traffic.
    """
    from flows.domain.experiment import Plan
    from flows.domain.release import release_name
    from flows.steps.experimenting import report_markdown, run

    plan = Plan(model, release_name(model, a), release_name(model, b), share, sticky, measure, alpha)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        typer.echo(line)

    try:
        ended = run(plane(), plan, minimum, hours * 3600, look_seconds, say)
    except KeyboardInterrupt as interrupt:
        typer.echo(f"ended by hand, the traffic is back; {said[-1] if said else 'nothing was found yet'}")
        raise typer.Exit(1) from interrupt
    typer.echo(ended.sentence)
    if report is not None:
        report.write_text(report_markdown(plan, ended), encoding="utf-8")
        typer.echo(f"report: {report}")
    if ended.why != "decided":
        raise typer.Exit(1)
