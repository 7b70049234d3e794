"""`modelserve`: the command line. Every verb is a few lines over the same functions that the flows use."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows.domain.errors import ModelServeError
from flows.terminal import state_folder
from flows.terminal.control import plane, settings
from flows.terminal.experiment_cli import experiment

app = typer.Typer(
    name="modelserve",
    help="Canary releases of machine-learning models that promote, judge and roll back by themselves.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Start here: modelserve up, modelserve init NAME --from FILE, modelserve register NAME, "
    "modelserve promote NAME 1",
)
NO_TERMINAL_WIDTH = 120
# What others said is printed as they said it: `:x:` is no cross here, `[foo]` no style.
console = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else NO_TERMINAL_WIDTH)
errors = Console(stderr=True, highlight=False, emoji=False)

Model = Annotated[str, typer.Argument(help="The model's name, as in its model.yaml.", show_default=False)]
Folder = Annotated[Path, typer.Argument(help="The model's folder, with model.yaml.", show_default=False)]
Artifacts = Annotated[
    list[str] | None,
    typer.Argument(
        help="Trained files or folders that lie elsewhere: paths, s3://BUCKET/KEY, https://… with --digest, "
        "models:/NAME/VERSION and runs:/RUN/PATH (MLflow), hf://ORG/REPOSITORY@COMMIT.",
        show_default=False,
    ),
]
Digest = Annotated[
    str | None, typer.Option(help="sha256:…, what the file at an address has to be.", show_default=False)
]
Version = Annotated[int, typer.Argument(help="The registered version.", min=1, show_default=False)]


def say(line: str) -> None:
    """One line of progress."""
    console.print(line, markup=False)


BEGIN_HERE = frozenset({"up", "demo", "prepare"})
"""Verbs that make a state folder where they are called; every other one looks for a stack that is there."""
WORK_ALONE = frozenset({"check", "init"})
"""Verbs that use the folder of a stack where there is one, for what is cached there."""
NEED_NO_STACK = frozenset({"traffic"})


@app.callback()
def prepare(context: typer.Context) -> None:
    """Find the stack that is meant; Prefect, which reads its settings when it is imported, must know it."""
    verb = context.invoked_subcommand
    if verb in NEED_NO_STACK or "--help" in sys.argv:
        return
    if verb not in BEGIN_HERE and settings().mode == "local":
        found = state_folder.find_or_own() if verb in WORK_ALONE else state_folder.find()
        os.environ[state_folder.VARIABLE] = str(found)
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
    state_folder.remember(chosen.state)
    bring_up(chosen, say)
    console.print(addresses(chosen))


@app.command(rich_help_panel="This machine")
def down() -> None:
    """Stop everything that `up` and promotions have started. Data stays."""
    from flows.adapters import stack

    stack.down(settings(), say)


@app.command(rich_help_panel="This machine")
def status() -> None:
    """Show the parts of the stack, the release servers, and who gets which share of the traffic.

    Releases that serve nobody are in: modelserve history MODEL. Exits with 1 when a part is down.
    """
    from flows.adapters import stack
    from flows.console.paging import show
    from flows.console.tables import models_table, parts_table

    chosen = settings()
    parts = stack.status(chosen)
    tables = [parts_table(parts)]
    if any(part.name == "postgres" and part.healthy for part in parts):
        registry = plane().registry
        tables.append(models_table(registry.standings(), registry.unanswered()))
    show(console, tables)
    down = [part.name for part in parts if not part.healthy]
    if down:
        raise ModelServeError(
            f"{len(down)} of {len(parts)} parts are down (state folder {chosen.state}): {', '.join(down)}; "
            "'modelserve up' starts what is missing"
        )


@app.command("prepare", rich_help_panel="This machine")
def prepare_images(
    database: Annotated[
        bool, typer.Option("--database", help="Only fetch the scanner's vulnerability database.")
    ] = False,
) -> None:
    """Make what images are built on: base system and Python packages. Once, about three minutes."""
    from flows.domain.spec import ScanPolicy
    from flows.wiring import image_builder, scanner

    chosen = settings()
    trivy = scanner(chosen)
    runtime = "" if database else image_builder(chosen).prepare(progress=say)
    problem = trivy.refresh(progress=say)
    if problem:
        say(f"scanner: no vulnerability database could be downloaded: {problem}")
    if database:
        raise typer.Exit(1 if problem else 0)
    # What is known of these layers is kept: a release's scan then reads the release's own layer only.
    say("scanner: reading what all images share (about a minute the first time)")
    say(trivy.scan(runtime, ScanPolicy(mode="record")).sentence)


# -- releases -----------------------------------------------------------------------------------------


@app.command(rich_help_panel="Releases")
def register(
    folder: Folder,
    artifacts: Artifacts = None,
    digest: Digest = None,
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
    tried: Annotated[
        bool, typer.Option("--try/--no-try", help="Start a server first and ask it the samples.")
    ] = True,
) -> None:
    """Check a model, put its bundle into the artifact store and add it to the registry as a release.

    The bundle is everything in FOLDER, but what [bold].modelserveignore[/] (as .gitignore) leaves out. One
    ARTIFACT takes the name that serving.runtime.file wants; several keep their own. What has an address is
    downloaded once, into the bundle.
    """
    from flows.steps.fetching import at_hand
    from flows.steps.registration import register_release

    control = plane()
    with at_hand(control.settings, artifacts or (), digest, say) as paths:
        release = register_release(control, folder, paths, version, training, holdout, say, tried=tried)
    say(f"registered {release.name} (sha256 {release.sha256[:12]}…)")
    say(f"next: modelserve promote {release.model} {release.version} --watch")


@app.command(rich_help_panel="Releases")
def init(
    name: Annotated[str, typer.Argument(help="What the model will be called.", show_default=False)],
    source: Annotated[str, typer.Option("--from", help="The trained model: a file, a folder or an address.")],
    digest: Digest = None,
    into: Annotated[
        Path | None, typer.Option(help="The folder to write; NAME, here, if not given.", show_default=False)
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Read a pickle. It can run anything: only your own.")
    ] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="What it takes, NAME:TYPE:SHAPE, where its file does not tell.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a model's folder from its trained file: model.yaml, samples.jsonl with real answers, a handler.

    Looks into ONNX, .pt2, TorchScript, safetensors, skops, joblib, XGBoost, LightGBM, and folders of
    TensorFlow, MLflow and Hugging Face, with the packages that the release will have, and says what it had to
    guess. Needs no stack, overwrites nothing.
    """
    from flows.steps.drafting import make_folder
    from flows.steps.fetching import at_hand

    chosen, folder = settings(), into or Path(name)
    with at_hand(chosen, [source], digest, say) as (path,):
        whole = make_folder(chosen, name, path, folder, say, trust_pickle=trust_pickle, inputs=inputs or ())
    if not whole:
        raise typer.Exit(1)
    say(f"next: modelserve check {folder}; modelserve register {folder}")


@app.command(rich_help_panel="Releases")
def check(
    folder: Folder,
    artifacts: Artifacts = None,
    digest: Digest = None,
) -> None:
    """Do all that `register` does before it stores anything: needs no stack, says in a line what is wrong.

    A server is started from the bundle, with the packages that it asks for and no others, and is asked the
    requests of samples.jsonl.
    """
    from flows.steps.fetching import at_hand
    from flows.steps.registration import checked_bundle

    chosen = settings()
    with (
        at_hand(chosen, artifacts or (), digest, say) as paths,
        checked_bundle(chosen, folder, paths, (), say, tried=True),
    ):
        say(f"{folder}: nothing is wrong")


@app.command(rich_help_panel="Releases")
def promote(
    model: Model,
    version: Version,
    watch: Annotated[
        bool, typer.Option(help="Follow it to its end; the exit code says how it ended.")
    ] = False,
    hotfix: Annotated[
        bool,
        typer.Option("--hotfix", help="It mends what fails now: shorter steps; says what is skipped."),
    ] = False,
    reason: Annotated[str, typer.Option(help="Why it cannot wait; recorded. With --hotfix.")] = "",
    who: Annotated[str, typer.Option(help="Who you are; recorded. With --hotfix.", envvar="USER")] = "",
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only say what it would find and when, and the minutes of each pace."),
    ] = False,
) -> None:
    """Promote a release: build, scan, canary, judge, and all of the traffic or back to the old one.

    It runs on the Prefect worker. With --watch, Ctrl-C cancels it and the traffic goes back. A first
    release has nobody to go back to: once it serves everybody, and Ctrl-C is typed or nobody calls it, the
    command ends with 0 and it is watched in the background.
    A canary that is proven better than a stable that fails goes on sooner by itself; --hotfix shortens the
    steps whatever the stable does.
    Exit codes of --watch: 0 promoted; 3 its deadline came without proof, and nothing spoke against it
    (unproven, or kept at its weight); 1 everything else, such as rejected.
    """
    from flows.console.following import follow
    from flows.domain.spec import parse_spec
    from flows.steps.hotfix import skipped
    from flows.steps.starting import start_promotion
    from flows.steps.watch import forecast

    if hotfix and not (reason.strip() and who.strip()):
        raise typer.BadParameter("a hotfix says why and for whom: --reason TEXT --who NAME")
    if reason and not hotfix:
        raise typer.BadParameter("--reason is recorded of a --hotfix only")
    control = plane()
    if plan:
        policy = parse_spec(control.registry.spec(model, version), "model.yaml").promotion
        for sentence in forecast(control, model, policy):
            say(sentence)
        return
    started = start_promotion(control, model, version, (who, reason) if hotfix else None, say=say)
    how = "is under way already, this joins it" if started.joined else "started"
    say(f"promotion of {model} v{version} {how}: {started.url}")
    if hotfix:
        policy = parse_spec(control.registry.spec(model, version), "model.yaml").promotion
        say(f"hotfix, by {who}: {skipped(policy)}")
    if watch and (code := follow(control, started, console)):
        raise typer.Exit(code)


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

    restored = roll_back(plane(), model, reason, to, unproven=unproven)
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

    control = plane()
    standing = control.registry.standing(model)
    if standing.stable is None and standing.canary is None:
        raise ModelServeError(f"{model} serves nobody; see 'modelserve status'")
    if not yes:
        typer.confirm(f"Every request for {model} will be answered with 503. Go on?", abort=True)
    say(empty(control, model, reason).sentence)


@app.command(rich_help_panel="Releases")
def pause(model: Model) -> None:
    """Freeze a running promotion at its weight; the judge may still reject."""
    _set_paused(model, paused=True)


@app.command(rich_help_panel="Releases")
def resume(model: Model) -> None:
    """Let a paused promotion go on."""
    _set_paused(model, paused=False)


def _set_paused(model: str, *, paused: bool) -> None:
    promotion = plane().registry.pause(model, paused)
    word = "paused" if paused else "resumed"
    say(f"{word} the promotion of {model} v{promotion.version} at {promotion.weight} %")


@app.command(rich_help_panel="Releases")
def abort(
    model: Model,
    reason: Annotated[str, typer.Option(help="Recorded in the history.")] = "aborted by a person",
) -> None:
    """End a running promotion and put the traffic back."""
    from flows.steps.restore import restore

    control = plane()
    promotion = control.registry.standing(model).promotion
    if promotion is None:
        raise ModelServeError(f"no promotion of {model} is open; see 'modelserve history {model}'")
    say(restore(control, model, reason, only=promotion).sentence)


@app.command(rich_help_panel="Releases")
def approve(
    model: Model,
    step: Annotated[int, typer.Argument(help="The step, in percent, that waits.", show_default=False)],
    comment: Annotated[str, typer.Option(help="Why you let it go on; recorded.", prompt=True)],
    approver: Annotated[str, typer.Option(help="Who you are.", envvar="USER")] = "unknown",
) -> None:
    """Let a promotion go on to a step that waits for a person. The form in the Prefect UI does the same."""
    from flows.steps.approval import approve as give

    give(plane(), model, step, approver, comment)
    say(f"approved: {model} may go on to {step} %")


@app.command(rich_help_panel="Releases")
def thaw(model: Model) -> None:
    """Let a model be promoted again that drift or a shared incident has frozen."""
    plane().registry.freeze(model, None)
    say(f"{model} may be promoted again")


app.command(rich_help_panel="Releases")(experiment)


# -- looking back -------------------------------------------------------------------------------------


@app.command(rich_help_panel="Looking back")
def history(
    model: Model,
    last: Annotated[int, typer.Option(help="How many of each: releases, promotions, events.", min=1)] = 20,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """The newest releases, promotions and events of a model, from the registry."""
    from flows.console.paging import show
    from flows.console.tables import events_table, promotions_table, releases_table

    registry = plane().registry
    standing = registry.standing(model)
    count = None if everything else last + 1  # one more says whether there are older ones
    releases, promotions = registry.releases(model, count), registry.promotions(model, count)
    events = registry.events(model, last=count)
    first = 0 if everything else -last
    more = [not everything and len(found) > last for found in (releases, promotions, events)]
    show(
        console,
        [
            releases_table(standing, releases[first:], older=more[0]),
            promotions_table(promotions[first:], older=more[1]),
            events_table(events[first:], older=more[2]),
        ],
    )


@app.command(rich_help_panel="Looking back")
def logs(
    model: Model,
    version: Annotated[
        int | None,
        typer.Argument(help="The version; the newest in service if none.", min=1, show_default=False),
    ] = None,
    last: Annotated[int, typer.Option(help="How many lines of each server.", min=1)] = 200,
    raw: Annotated[bool, typer.Option("--raw", help="As they were written: JSON, a line each.")] = False,
) -> None:
    """What a release's servers have said, also those that could not start."""
    from flows.domain.logs import readable
    from flows.domain.promotion import newest

    control = plane()
    if version is None:
        serving = newest(control.registry.standing(model))
        if serving is None:
            raise ModelServeError(f"{model} serves nobody; name a version: modelserve logs {model} VERSION")
        version = serving.version
    release = control.registry.release(model, version)
    lines = control.platform.log(release, last)
    if not lines:
        raise ModelServeError(f"{release.name} has no log: it was never started here")
    for line in lines:
        console.print(line if raw else readable(line), markup=False, soft_wrap=True)


@app.command(rich_help_panel="Looking back")
def explain(
    promotion: Annotated[str, typer.Argument(help="Its id, 8 characters or more.", show_default=False)],
    replay: Annotated[
        bool, typer.Option("--replay", help="Judge the stored windows again; exit 1 if a verdict differs.")
    ] = False,
) -> None:
    """Why a promotion ended as it did: the windows, the evidence, the verdicts."""
    from flows.console.tables import windows_table
    from flows.domain.spec import parse_spec
    from flows.steps.hotfix import policy_of
    from flows.steps.replay import replay_verdicts

    registry = plane().registry
    found = registry.promotion(promotion)
    windows = registry.windows(found)
    spec = registry.spec(found.model, found.version)
    events = registry.events(found.model, found)
    policy = policy_of(events, parse_spec(spec, "model.yaml").promotion)
    console.print(windows_table(found, windows, policy))
    if replay:
        different = replay_verdicts(spec, windows, events)
        say(f"replayed {len(windows)} verdicts: {len(windows) - different} identical, {different} different")
        if different:
            raise typer.Exit(1)


# -- regular work -------------------------------------------------------------------------------------


@app.command(rich_help_panel="Regular work")
def sweep() -> None:
    """Restore promotions that nobody drives any more. Needs no Prefect server."""
    from flows.sweep import sweep_once

    swept = sweep_once(plane())
    for sentence in swept.sentences:
        say(sentence)
    if swept.problems:
        raise typer.Exit(1)


@app.command(rich_help_panel="Regular work")
def notify() -> None:
    """Send a test to everybody who is told of promotions that end, wait, or need somebody.

    They are in [bold]MODELSERVE_NOTIFY[/], as URLs of Apprise separated by blanks: mailto://…, slack://…
    Exits with 1 when one was not sent.
    """
    from flows.steps.telling import spoken, try_addresses

    tried = try_addresses(plane())
    for line in spoken(tried):
        say(line)
    if any(problem for _, problem in tried):
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

    control = plane()
    results = check_by_hand(control, control.registry.models() if every else models, since, until)
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
        errors.print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}")
        sys.exit(1)


if __name__ == "__main__":
    main()
