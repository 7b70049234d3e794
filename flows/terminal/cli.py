"""`modelserve`: the command line. Every verb is a few lines over the same functions that the flows use."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from flows.domain.errors import ModelServeError
from flows.settings import Settings

app = typer.Typer(
    name="modelserve",
    help="Canary releases of machine-learning models that promote, judge and roll back by themselves.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Start here: modelserve up, modelserve register FOLDER ARTIFACT, modelserve promote MODEL 1",
)
NO_TERMINAL_WIDTH = 120
console = Console(highlight=False, width=None if sys.stdout.isatty() else NO_TERMINAL_WIDTH)
errors = Console(stderr=True, highlight=False)

Model = Annotated[str, typer.Argument(help="The model's name, as in its model.yaml.", show_default=False)]
Version = Annotated[int, typer.Argument(help="The registered version.", min=1, show_default=False)]


def say(line: str) -> None:
    """One line of progress."""
    console.print(line, markup=False)


def settings() -> Settings:
    """The settings of this call. Raises ModelServeError that names the variable."""
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            f"MODELSERVE_{'__'.join(str(part) for part in detail['loc']).upper()}: {detail['msg']}"
            for detail in error.errors()
        ]
        raise ModelServeError("; ".join(problems)) from error


@app.callback()
def prepare_prefect() -> None:
    """Prefect reads its settings when it is imported, which the verbs do: so they come first."""
    chosen = settings()
    for name, value in chosen.prefect_environment().items():
        if chosen.mode == "local":
            # A shell of somebody who uses Prefect elsewhere too must not send our flow runs there.
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)
    with suppress(OSError):  # a root that is read-only; Prefect says so itself
        Path(os.environ["PREFECT_HOME"]).mkdir(mode=0o700, parents=True, exist_ok=True)


# -- the stack ----------------------------------------------------------------------------------------


@app.command(rich_help_panel="This machine")
def up() -> None:
    """Start the local stack: PostgreSQL, Redis, Envoy, Prometheus, Alertmanager, Prefect, alert receiver.

    Data, logs and generated configuration live under one folder ([bold]MODELSERVE_STATE[/], by default
    ./.modelserve). A second call finds everything running and changes nothing. A port is moved with
    [bold]MODELSERVE_PORTS__PREFECT=4201[/] and so on.
    """
    from flows.bootstrap import bring_up
    from flows.console.tables import addresses

    chosen = settings()
    bring_up(chosen, say)
    console.print(addresses(chosen))


@app.command(rich_help_panel="This machine")
def down() -> None:
    """Stop everything that `up` and promotions have started. Data stays."""
    from flows.adapters import stack

    stack.down(settings(), say)


@app.command(rich_help_panel="This machine")
def status() -> None:
    """Show the parts of the stack, the release servers, and who gets which share of the traffic."""
    from flows.adapters import stack
    from flows.console.tables import parts_table, standings_table

    chosen = settings()
    parts = stack.status(chosen)
    console.print(parts_table(parts))
    if any(part.name == "postgres" and part.healthy for part in parts):
        from flows.wiring import control_plane

        plane = control_plane(chosen)
        for model in plane.registry.models():
            console.print(standings_table(plane.registry.standing(model)))


@app.command(rich_help_panel="This machine")
def prepare() -> None:
    """Make what images are built on: base system and Python packages. Once, about three minutes."""
    from flows.domain.spec import ScanPolicy
    from flows.wiring import image_builder, scanner

    chosen = settings()
    runtime = image_builder(chosen).prepare(progress=say)
    trivy = scanner(chosen)
    problem = trivy.refresh(progress=say)
    if problem:
        say(f"scanner: no vulnerability database could be downloaded: {problem}")
    # What is known of these layers is kept: a release's scan then reads the release's own layer only.
    say("scanner: reading what all images share (about a minute the first time)")
    say(trivy.scan(runtime, ScanPolicy(mode="record")).sentence)


# -- releases -----------------------------------------------------------------------------------------


@app.command(rich_help_panel="Releases")
def register(
    folder: Annotated[Path, typer.Argument(help="The model's folder, with model.yaml.", show_default=False)],
    artifact: Annotated[Path, typer.Argument(help="The trained model's file.", show_default=False)],
    version: Annotated[
        int | None, typer.Option(help="Version number; the next free one if not given.", min=1)
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(help="Training rows (Parquet): makes the reference of drift checks."),
    ] = None,
    holdout: Annotated[
        Path | None,
        typer.Option(help="Rows it has not learned, with its predictions and outcomes: how good it is."),
    ] = None,
) -> None:
    """Check a model, put its bundle into the artifact store and add it to the registry as a release."""
    from flows.steps.registration import register_release
    from flows.wiring import control_plane

    release = register_release(control_plane(settings()), folder, artifact, version, training, holdout)
    say(f"registered {release.name} (sha256 {release.sha256[:12]}…)")
    say(f"next: modelserve promote {release.model} {release.version} --watch")


@app.command(rich_help_panel="Releases")
def promote(
    model: Model,
    version: Version,
    watch: Annotated[bool, typer.Option(help="Follow it to its end; exit 1 unless promoted.")] = False,
) -> None:
    """Promote a release: build, scan, canary, judge, and all of the traffic or back to the old one.

    It runs on the Prefect worker. With --watch, Ctrl-C cancels it and the traffic goes back.
    """
    from flows.console.following import follow
    from flows.steps.starting import start_promotion
    from flows.wiring import control_plane

    plane = control_plane(settings())
    started = start_promotion(plane, model, version)
    say(f"promotion of {model} v{version} started: {started.url}")
    if watch and not follow(plane, started, console):
        raise typer.Exit(1)


@app.command(rich_help_panel="Releases")
def rollback(
    model: Model,
    to: Annotated[
        int | None,
        typer.Option(
            help="Version to go back to, one that has been stable; else the stable or previous one."
        ),
    ] = None,
    unproven: Annotated[
        bool,
        typer.Option(help="Let --to name one that never was: it is scanned and asked its samples first."),
    ] = False,
    reason: Annotated[str, typer.Option(help="Recorded in the history.")] = "asked for by a person",
) -> None:
    """Take the canary out, or go back from the stable release to the previous one. Works without Prefect.

    Calling it again is safe: the last release that serves stays. To take a model out: modelserve retire.
    """
    from flows.steps.restore import roll_back
    from flows.wiring import control_plane

    restored = roll_back(control_plane(settings()), model, reason, to, unproven=unproven)
    say(restored.sentence)
    if restored.retreat is None:
        raise typer.Exit(1)


@app.command(rich_help_panel="Releases")
def retire(
    model: Model,
    reason: Annotated[str, typer.Option(help="Recorded in the history.")] = "retired by a person",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take a model out: nobody answers for it. Undone by: modelserve rollback MODEL --to VERSION."""
    from flows.steps.restore import retire as empty
    from flows.wiring import control_plane

    plane = control_plane(settings())
    standing = plane.registry.standing(model)
    if standing.stable is None and standing.canary is None:
        raise ModelServeError(f"{model} serves nobody; see 'modelserve status'")
    if not yes:
        typer.confirm(f"Every request for {model} will be answered with 503. Go on?", abort=True)
    say(empty(plane, model, reason).sentence)


@app.command(rich_help_panel="Releases")
def pause(model: Model) -> None:
    """Freeze a running promotion at its weight; the judge may still reject."""
    _set_paused(model, paused=True)


@app.command(rich_help_panel="Releases")
def resume(model: Model) -> None:
    """Let a paused promotion go on."""
    _set_paused(model, paused=False)


def _set_paused(model: str, *, paused: bool) -> None:
    from flows.wiring import control_plane

    promotion = control_plane(settings()).registry.pause(model, paused)
    word = "paused" if paused else "resumed"
    say(f"{word} the promotion of {model} v{promotion.version} at {promotion.weight} %")


@app.command(rich_help_panel="Releases")
def abort(
    model: Model,
    reason: Annotated[str, typer.Option(help="Recorded in the history.")] = "aborted by a person",
) -> None:
    """End a running promotion and put the traffic back."""
    from flows.steps.restore import restore
    from flows.wiring import control_plane

    plane = control_plane(settings())
    promotion = plane.registry.standing(model).promotion
    if promotion is None:
        raise ModelServeError(f"no promotion of {model} is open; see 'modelserve history {model}'")
    say(restore(plane, model, reason, only=promotion).sentence)


@app.command(rich_help_panel="Releases")
def approve(
    model: Model,
    step: Annotated[int, typer.Argument(help="The step, in percent, that waits.", show_default=False)],
    comment: Annotated[str, typer.Option(help="Why you let it go on; recorded.", prompt=True)],
    approver: Annotated[str, typer.Option(help="Who you are.", envvar="USER")] = "unknown",
) -> None:
    """Let a promotion go on to a step that waits for a person. The form in the Prefect UI does the same."""
    from flows.steps.approval import approve as give
    from flows.wiring import control_plane

    give(control_plane(settings()), model, step, approver, comment)
    say(f"approved: {model} may go on to {step} %")


@app.command(rich_help_panel="Releases")
def thaw(model: Model) -> None:
    """Let a model be promoted again that drift or a shared incident has frozen."""
    from flows.wiring import control_plane

    control_plane(settings()).registry.freeze(model, None)
    say(f"{model} may be promoted again")


# -- looking back -------------------------------------------------------------------------------------


@app.command(rich_help_panel="Looking back")
def history(model: Model) -> None:
    """Every release, promotion and event of a model, from the registry."""
    from flows.console.tables import events_table, promotions_table, standings_table
    from flows.wiring import control_plane

    registry = control_plane(settings()).registry
    console.print(standings_table(registry.standing(model)))
    console.print(promotions_table(registry.promotions(model)))
    console.print(events_table(registry.events(model)))


@app.command(rich_help_panel="Looking back")
def explain(
    promotion: Annotated[str, typer.Argument(help="Its id, 8 characters or more.", show_default=False)],
    replay: Annotated[
        bool, typer.Option("--replay", help="Judge the stored windows again; exit 1 if a verdict differs.")
    ] = False,
) -> None:
    """Why a promotion ended as it did: the windows, the evidence, the verdicts."""
    from flows.console.tables import windows_table
    from flows.steps.replay import replay_verdicts
    from flows.wiring import control_plane

    registry = control_plane(settings()).registry
    found = registry.promotion(promotion)
    windows = registry.windows(found)
    console.print(windows_table(found, windows))
    if replay:
        different = replay_verdicts(registry.spec(found.model, found.version), windows)
        say(f"replayed {len(windows)} verdicts: {len(windows) - different} identical, {different} different")
        if different:
            raise typer.Exit(1)


# -- regular work -------------------------------------------------------------------------------------


@app.command(rich_help_panel="Regular work")
def sweep() -> None:
    """Restore promotions that nobody drives any more. Needs no Prefect server."""
    from flows.sweep import sweep_once
    from flows.wiring import control_plane

    swept = sweep_once(control_plane(settings()))
    for sentence in swept.sentences:
        say(sentence)
    if swept.problems:
        raise typer.Exit(1)


@app.command(rich_help_panel="Regular work")
def drift(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models to check; all that are due if none.", show_default=False),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="First moment: 2013-07-01, 2013-07-01T12:00, or an age such as 7d.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Last moment, in the same forms.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every model, due or not.")] = False,
) -> None:
    """Check traffic for drift, as the schedule does. Needs no Prefect server. Exit 1 if a check failed."""
    from flows.domain.drift.report import table
    from flows.drift import check_by_hand
    from flows.wiring import control_plane

    plane = control_plane(settings())
    results = check_by_hand(plane, plane.registry.models() if every else models, since, until)
    for result in results:
        console.print(table(result))
    if not results:
        say("no model is due")
    if any(result.outcome == "failed" for result in results):
        raise typer.Exit(1)


@app.command(
    rich_help_panel="This machine",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def traffic(context: typer.Context) -> None:
    """Replay rows through the gateway as live traffic; 'modelserve traffic --help' lists the options."""
    from flows.demo.traffic import main as replay

    raise typer.Exit(replay(context.args))


# -- the demonstration --------------------------------------------------------------------------------


@app.command(rich_help_panel="This machine")
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running to play with.")] = False,
) -> None:
    """Show everything on this machine: promote a real model, reject a sick one, roll back on an alert."""
    from flows.demo.demo import run_demo

    if not run_demo(settings(), console, keep=keep):
        raise typer.Exit(1)


def main() -> None:
    """The entry point: errors meant for people become one line and exit code 1."""
    try:
        app()
    except ModelServeError as error:
        errors.print(f"[bold red]error:[/] {' '.join(str(error).split())}")
        sys.exit(1)
