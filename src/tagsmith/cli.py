"""The command line: each verb reads its arguments, calls one function, and prints."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagsmith.errors import ResourceError, SettingError, TagsmithError

if TYPE_CHECKING:
    from tagsmith.config import Config
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.deployment.engine import Answer

app = typer.Typer(
    help="Turn a table of labelled text into a classifier, and say honestly whether the LLM was worth it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Source = Annotated[
    str,
    typer.Argument(
        help="A CSV, TSV, JSON, JSON-lines, Parquet, Arrow or Excel file, plain or in a zip, gz or zst; a quoted "
        "pattern of files; a folder per label; '-'; sqlite:///FILE or postgresql://...; hf:NAME[:SPLIT]; or a named "
        "data set."
    ),
]
Query = Annotated[str | None, typer.Option(help="What a database is asked, as 'SELECT text, label FROM reviews'.")]
BundleFolder = Annotated[Path, typer.Argument(help="The folder of a trained bundle.")]
On = Annotated[
    str | None,
    typer.Option(
        metavar="ray[://HOST:PORT]", help="Work on a Ray cluster: ray starts one on this machine; needs tagsmith[ray]."
    ),
]
Setting = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting.")]


@app.command()
def train(
    source: Source,
    out: Annotated[Path | None, typer.Option(help="Folder of the bundle; ./NAME-tagsmith by default.")] = None,
    validation: Annotated[str | None, typer.Option(help="Rows of your own to choose by.")] = None,
    test: Annotated[str | None, typer.Option(help="Rows of your own to measure on.")] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(help="Rows without labels: a faster student learns from them, and they are ranked for labelling."),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="With --unlabelled: tfidf, an encoder, or auto; short for tuning.student.")
    ] = None,
    query: Query = None,
    preset: Annotated[str, typer.Option(help="Named settings to start from: auto, fixed or book.")] = "auto",
    budget: Annotated[
        str | None, typer.Option(help="Time for the search and the tuning, as 90s, 10m or 1h: short for tuning.budget.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Recipes that Optuna samples after the search: short for tuning.trials.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Train as that bundle was trained, without a search.")
    ] = None,
    take: Annotated[
        int | None, typer.Option(min=1, help="With --plan: another of that bundle's candidates, by its number.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings; `tagsmith init` writes one.")] = None,
    settings: Setting = None,
    backbone: Annotated[str | None, typer.Option(help="Short for --set model.backbone=NAME.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The one seed of the run.")] = None,
    earlier: Annotated[
        str | None, typer.Option("--from", metavar="BUNDLE", help="An earlier bundle, whose rows keep their part.")
    ] = None,
    corrections: Annotated[
        Path | None, typer.Option(help="Corrections that `serve --corrections` kept, to learn from as well.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WHERE]",
            help="Have a tracker follow the run: jsonl, tensorboard, mlflow, wandb, or one of `tagsmith plugins`.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --out.")] = False,
    on: Annotated[
        str | None,
        typer.Option(metavar="ray[://HOST:PORT]", help="Train on a Ray cluster: this machine's, or another."),
    ] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N or MIN:MAX", help="With --on: how many workers, one a machine by default.")
    ] = None,
) -> None:
    """Train a classifier, measure it, and save it as a bundle."""
    from tagsmith.console import Console
    from tagsmith.naming import default_out
    from tagsmith.trackers import Trackers
    from tagsmith.tuning.parallel import launched

    if student is not None and unlabelled is None:
        raise SettingError("--student names who learns from rows without labels. Give them: --unlabelled FILE.")
    data = {"query": query, "earlier": earlier, "corrections": None if corrections is None else str(corrections)}
    planned = _planned(plan, take)
    tuning = {"budget": budget, "trials": trials, "student": student}
    chosen = _config(preset, config, settings, backbone=backbone, seed=seed, data=data, tuning=tuning, planned=planned)
    folder = out or default_out(source, resume=resume)
    speaks = launched().is_first  # of several processes one does
    run = _trained_on(on, workers, unlabelled)
    with (
        Console() as console,
        _stoppable(console) as stop,
        Trackers.of((track or ()) if speaks else (), out=folder, resume=resume, first=console) as listen,
    ):
        try:
            bundle = run(
                source,
                validation=validation,
                test=test,
                out=folder,
                config=chosen,
                force=force,
                resume=resume,
                stop=stop,
                listen=listen,
            )
        except KeyboardInterrupt:
            raise SystemExit(_interrupted(_left_by_interrupt(folder))) from None
        except TagsmithError as error:
            if error.exit_code == _INTERRUPTED:
                raise SystemExit(_interrupted(f"{error} To go on: {_again(folder)}")) from None
            raise
    if speaks:
        console.summary(bundle.report, folder)
        print(folder)


def _trained_on(on: str | None, workers: str | None, unlabelled: Path | None = None) -> Callable[..., Bundle]:
    """The function that trains: on this machine, or on a cluster."""
    from functools import partial

    if on is not None and unlabelled is not None:
        raise SettingError("--unlabelled is read by one machine. Leave out --on, or --unlabelled.")
    if on is not None:
        from tagsmith.scale.train import Workers
        from tagsmith.scale.train import train as run_on

        return partial(run_on, on=on, workers=Workers.read(workers))
    if workers is not None:
        raise SettingError("--workers goes with --on ray. Give both, or leave it out.")
    from tagsmith.pipeline import train as run

    return partial(run, unlabelled=unlabelled)


@app.command()
def check(
    source: Source,
    against: Annotated[
        str | None, typer.Option(help="Rows that are to be measured on: do they stand in the source?")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    page: Annotated[Path | None, typer.Option("--html", help="Write a page that needs nothing else.")] = None,
    settings: Setting = None,
    backbone: Annotated[
        str | None, typer.Option(help="Whose tokens are counted; fetched where the cache lacks it.")
    ] = None,
    query: Query = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --html.")] = False,
) -> None:
    """Look at a table before any training: what it holds, and what could mislead."""
    from tagsmith.console import Console
    from tagsmith.pipeline import check as run

    chosen = _config("fixed", None, settings, backbone=backbone, data={"query": query})
    if page is not None:
        _refuse_existing(page, force=force)
    with Console() as console:
        found = run(source, against=against, config=chosen, download=backbone is not None, listen=console).as_dict()
    if page is not None:
        from tagsmith.data.check_page import draw_check

        page.write_text(draw_check(found), encoding="utf-8")
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    elif page is not None:
        print(page)
    else:
        console.check(found)


def _refuse_existing(file: Path, *, force: bool) -> None:
    if file.exists() and not force:
        raise SettingError(f"'{file}' exists. Expected a new name; choose another, or give --force to replace it.")


@app.command()
def predict(
    bundle: BundleFolder,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to label; '-' reads one from each line of standard input.")
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="A table to label instead; '-' reads it from standard input.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the labelled table goes: .csv, .tsv, .jsonl or .parquet.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="The column of --file that holds the text, or a template.")] = None,
    query: Query = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a text, with all probabilities.")] = False,
    device: Annotated[str, typer.Option(help="Where it is computed: cpu, cuda, cuda:1, mps, or auto.")] = "cpu",
    engine: Annotated[
        str,
        typer.Option(
            help="What computes: the first in fp32 that is installed (reference), the fastest here that is exact "
            "enough (auto), torch-fp32, torch-bf16, onnxruntime, onnxruntime-int8, openvino, openvino-bf16, or tfidf."
        ),
    ] = "reference",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted --file stopped.")] = False,
    spreadsheet_safe: Annotated[
        bool,
        typer.Option("--spreadsheet-safe", help="Put an apostrophe before cells that a spreadsheet would compute."),
    ] = False,
    on: On = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --on: at most so many workers of one CPU; all that fit by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --out.")] = False,
) -> None:
    """Label texts, or the rows of a file."""
    from tagsmith.deployment.bundle import load
    from tagsmith.deployment.manifest import refuse_existing

    if (file is None) != (out is None):
        raise typer.BadParameter("--file and --out go together: the rows of one are written to the other.")
    if (file is None) == (not texts):
        raise typer.BadParameter("give either texts, or --file and --out.")
    if on is None and workers is not None:
        raise typer.BadParameter("--workers goes with --on.")
    if on is not None and file is None:
        raise typer.BadParameter("--on goes with --file: a few texts need no cluster.")
    if file is not None and out is not None:
        from tagsmith.console import Console
        from tagsmith.deployment.scoring import score

        if not resume:
            refuse_existing(out, force=force)
        asked = {"text": text, "query": query, "force": force, "resume": resume, "spreadsheet_safe": spreadsheet_safe}
        with Console() as console:
            if on is not None:
                from tagsmith.scale.score import score_on

                how = {"engine": engine, "device": device, "workers": workers}
                rows = score_on(on, bundle, file, out=out, **asked, **how, listen=console)
            else:
                rows = score(load(bundle, device=device, engine=engine), file, out=out, **asked, listen=console)
        typer.echo(f"{rows} rows labelled.", err=True)
        print(out)
        return
    lines = [line.rstrip("\r\n") for line in sys.stdin] if texts == ["-"] else texts or []
    loaded = load(bundle, device=device, engine=engine)
    for line, answer in zip(lines, loaded.answer(lines), strict=True):
        print(_as_json(line, answer, loaded) if as_json else _as_line(line, answer, loaded))


def _as_json(text: str, answer: Answer, bundle: Bundle) -> str:
    values: dict[str, Any] = {"text": text}
    values |= {"labels": list(answer.labels)} if bundle.multi_label else {"label": answer.label}
    values["probabilities"] = dict(zip(bundle.labels, answer.probabilities, strict=False))
    if bundle.multi_label:
        values["thresholds"] = dict(zip(bundle.labels, bundle.engine.thresholds.tolist(), strict=True))
    values["truncated"] = answer.truncated
    return json.dumps(values | ({"reason": answer.reason} if answer.reason else {}), ensure_ascii=False)


def _as_line(text: str, answer: Answer, bundle: Bundle) -> str:
    """Labels, probabilities and text with tabs between them; `-` for none."""
    if answer.reason is not None:
        return f"-\t-\t{text}\t({answer.reason})"
    chances = dict(zip(bundle.labels, answer.probabilities, strict=True))
    shown = ", ".join(f"{chances[label]:.4f}" for label in answer.labels)
    return f"{', '.join(answer.labels) or '-'}\t{shown or '-'}\t{' '.join(text.split())}"


@app.command()
def serve(
    bundle: BundleFolder,
    host: Annotated[str, typer.Option(help="Where to listen; an address that others reach needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Which port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Who may ask: a line name:key for each client. TAGSMITH_API_KEY is one more.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A name that this server goes by, as in the Host header; several times.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the model is called; the folder's name by default.")] = None,
    engine: Annotated[str, typer.Option(help="What computes the answers.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine; all cores by default.")] = None,
    watch: Annotated[
        Path | None, typer.Option(help="Take up each new version: a bundle, a link to one, or a folder of bundles.")
    ] = None,
    shadow: Annotated[
        Path | None, typer.Option(help="A bundle that is asked the same; its answers are compared and dropped.")
    ] = None,
    canary: Annotated[
        str | None, typer.Option(metavar="BUNDLE=SHARE", help="A bundle that answers a share of the texts, as 0.1.")
    ] = None,
    corrections: Annotated[
        Path | None, typer.Option(help="A file that keeps the corrections made on the page, for the next training.")
    ] = None,
    log_hashes: Annotated[
        Path | None, typer.Option(help="A file of the SHA-256 of each text with its answer, to label some later.")
    ] = None,
    settings: Setting = None,
    on: Annotated[
        str | None,
        typer.Option(metavar="ray[://HOST:PORT]", help="Serve on a Ray cluster: this machine's, or another."),
    ] = None,
    replicas: Annotated[
        str | None, typer.Option(metavar="N or MIN:MAX", help="With --on: how many servers, as requests come in.")
    ] = None,
) -> None:
    """Answer over HTTP, to the clients of Hugging Face, vLLM, OpenAI, KServe and SageMaker. Ctrl-C stops it."""
    from tagsmith.deployment.corrections import Corrections, HashLog
    from tagsmith.deployment.limits import Keys, refuse_open_host
    from tagsmith.deployment.server import Door
    from tagsmith.deployment.server import serve as run
    from tagsmith.deployment.service_log import start_logging
    from tagsmith.deployment.supervisor import Launch
    from tagsmith.deployment.ui import Desk
    from tagsmith.deployment.versions import Plan, canary_of

    chosen = _deployment_settings(settings)
    keys = Keys.of(api_key_file, environment=os.environ.get("TAGSMITH_API_KEY"))
    refuse_open_host(host, keys)
    beside, share = canary_of(canary) if canary is not None else (None, 0.0)
    plan = Plan(
        launch=Launch(bundle, engine=engine, threads=threads),
        name=name or bundle.resolve().name,
        settings=chosen,
        shadow=shadow,
        canary=beside,
        canary_share=share,
        watch=watch,
    )
    door = Door(host=host, port=port, keys=keys, key_file=api_key_file, allowed_hosts=tuple(allowed_host or ()))
    desk = Desk(
        None if corrections is None else Corrections(corrections), None if log_hashes is None else HashLog(log_hashes)
    )

    def started(address: str) -> None:
        print(f"Serving {bundle} on {address}; how to ask: {address}/docs", flush=True)

    if on is not None or replicas is not None:
        _serve_on(on, replicas, plan, door, started, alone={"--corrections": corrections, "--log-hashes": log_hashes})
        return
    start_logging()
    run(plan, door, desk=desk, started=started)


def _serve_on(
    on: str | None,
    replicas: str | None,
    plan: Any,
    door: Any,
    started: Callable[[str], None],
    *,
    alone: Mapping[str, Path | None],
) -> None:
    """Serve on a cluster; SettingError for what a single server alone can do."""
    if on is None:
        raise SettingError("--replicas goes with --on ray. Give both, or leave it out.")
    given = [name for name, value in alone.items() if value is not None]
    if given:
        raise SettingError(
            f"{given[0]} keeps a file that one server writes, and --on starts several. Expected one or the other; "
            "leave one of them out."
        )
    from tagsmith.scale.serve import Replicas
    from tagsmith.scale.serve import serve as run_on

    run_on(plan, door, on=on, replicas=Replicas.read(replicas, cpus=float(plan.launch.threads or 1)), started=started)


def _deployment_settings(settings: list[str] | None) -> dict[str, Any]:
    from tagsmith.config import Config, merge, parse_setting

    given = merge(*(parse_setting(assignment) for assignment in settings or []))
    beyond = sorted(set(given) - {"deployment"})
    if beyond:
        raise SettingError(
            f"'{beyond[0]}' was settled in training. Expected settings of the section deployment; train anew to "
            "change others."
        )
    Config.of(given)
    return given.get("deployment", {})


@app.command()
def explain(
    bundle: BundleFolder,
    texts: Annotated[
        list[str], typer.Argument(help="Texts whose answers are explained; '-' reads one from each line.")
    ],
    label: Annotated[str | None, typer.Option(help="The label to explain; the answer by default.")] = None,
    gradients: Annotated[
        bool,
        typer.Option("--gradients", help="Integrated gradients, instead of leaving out words; needs tagsmith[why]."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a text, with all of its pieces.")] = False,
) -> None:
    """Say which words mattered for an answer: by how much each raises the log-odds of the label."""
    from tagsmith.deployment.bundle import load
    from tagsmith.deployment.explaining import explain as run

    lines = [line.rstrip("\r\n") for line in sys.stdin] if texts == ["-"] else texts
    for each in run(load(bundle), lines, label=label, gradients=gradients):
        if as_json:
            print(json.dumps(each.as_dict(), ensure_ascii=False))
            continue
        print(f"{each.label or '-'}\t{' '.join(each.text.split())}")
        for span in each.strongest():
            print(f"{span.weight:+.2f}\t{' '.join(each.text[span.start : span.end].split())}")


@app.command()
def evaluate(
    bundle: BundleFolder,
    source: Source,
    query: Query = None,
    out: Annotated[Path | None, typer.Option(help="A folder for report.json and report.html.")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write the page alone; it quotes texts of rows.")] = None,
    settings: Setting = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Measure a bundle on other labelled rows, and say whether they differ from those that it was tested on."""
    from tagsmith.config import merge, parse_setting
    from tagsmith.console import Console
    from tagsmith.pipeline import evaluate as run

    with Console() as console:
        chosen = merge(*(parse_setting(each) for each in settings or ()))
        found = run(bundle, source, query=query, settings=chosen, out=out, page=page, force=force, listen=console)
        report = found.as_dict()
    if as_json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return
    console.scores(report, file=sys.stdout)
    for written in ([] if out is None else [out / "report.html"]) + ([] if page is None else [page]):
        print(written)


@app.command()
def export(
    bundle: BundleFolder,
    to: Annotated[str, typer.Option(help="onnx, onnx-int8, openvino, torch-bf16, hf, or tfidf.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    rows: Annotated[
        str | None,
        typer.Option(help="Labelled rows to compare on, as of `train`; the source of the training by default."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --out.")] = False,
) -> None:
    """Write a bundle for another engine, if it answers as the bundle does."""
    from tagsmith.console import Console
    from tagsmith.deployment.exporters import export as run
    from tagsmith.deployment.exporters import sentence

    with Console() as console:
        done = run(bundle, to=to, out=out, rows=rows, force=force, listen=console)
        for name, parity in done.parity.items():
            console.say(sentence(parity, done.refusals[name]))
    print(done.folder)


@app.command()
def report(
    bundle: BundleFolder,
    compare: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="Set another bundle beside it; may be given several times."),
    ] = None,
    page: Annotated[Path | None, typer.Option("--html", help="With --compare: write the comparison as a page.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --html.")] = False,
) -> None:
    """Show what a bundle's report says and where its page is, or several reports side by side."""
    from tagsmith.console import Console
    from tagsmith.deployment.manifest import verify

    if not compare:
        if page is not None:
            raise typer.BadParameter("--html goes with --compare; a bundle has its own page, report.html.")
        verify(bundle)
        with Console() as console:
            console.scores(json.loads((bundle / "report.json").read_text(encoding="utf-8")), file=sys.stdout)
        print(bundle / "report.html")
        return
    from tagsmith.deployment.reports import compared, draw_compared

    if page is not None:
        _refuse_existing(page, force=force)
    reports, found = compared([bundle, *compare])
    with Console() as console:
        console.side_by_side(found)
    if page is not None:
        page.write_text(draw_compared(reports, found), encoding="utf-8")
        print(page)


@app.command()
def push(
    bundle: BundleFolder,
    repo: Annotated[str, typer.Argument(help="NAME or OWNER/NAME on the Hugging Face hub.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be pushed; ask nobody.")] = False,
    with_texts: Annotated[bool, typer.Option("--with-texts", help="Push report.html too, which holds texts.")] = False,
    public: Annotated[bool, typer.Option("--public", help="A repository that is made now is for everybody.")] = False,
    message: Annotated[str, typer.Option(help="What the commit says.")] = "",
) -> None:
    """Push a bundle to the Hugging Face hub, in one commit."""
    from tagsmith.deployment.pushing import pack
    from tagsmith.deployment.pushing import push as run

    shipment = pack(bundle, repo, with_texts=with_texts)
    for name, reason in shipment.left.items():
        typer.echo(f"Left behind: {name} ({reason}).", err=True)
    if dry_run:
        for name, size in shipment.files.items():
            print(f"{size}\t{name}")
        typer.echo(f"{len(shipment.files)} files, {shipment.size} bytes, would go to {repo}.", err=True)
        return
    print(run(shipment, public=public, message=message))


@app.command()
def forecast(
    source: Annotated[
        str | None, typer.Argument(help="As of `train`: a training on it is measured here; without one, figures are.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="On many machines: prepare, train or score.")] = None,
    rows: Annotated[float | None, typer.Option(help="How many rows, as 1e9; those of the source by default.")] = None,
    nodes: Annotated[int, typer.Option(help="How many machines.")] = 1,
    machine: Annotated[
        str | None, typer.Option(help="Of which kind: cpu-2 or h100-8; with a source, one like this.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="What a machine costs an hour, in any currency.")] = None,
    weights: Annotated[float | None, typer.Option(help="Weights of the backbone, as 7e9.")] = None,
    learning: Annotated[float | None, typer.Option(help="How many of them learn; all by default.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens of a row.")] = None,
    epochs: Annotated[int | None, typer.Option(help="How often all rows are learnt from.")] = None,
    preset: Annotated[str, typer.Option(help="Named settings that the training starts from.")] = "fixed",
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings.")] = None,
    settings: Setting = None,
    query: Query = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a training would take here, or a stage on many machines: time, money, and where it stops scaling."""
    from tagsmith.scale.capacity_page import told
    from tagsmith.scale.foretelling import Asked, foretold

    if source is None and stage is None:
        raise typer.BadParameter("give a SOURCE, to forecast a training here, or --stage and --rows.")
    if source is None and rows is None:
        raise typer.BadParameter("--stage goes with --rows, or with a SOURCE whose rows are counted.")
    given = {"weights": weights, "learning": learning, "tokens": tokens, "epochs": epochs}
    asked = Asked(stage, rows=rows, machine=machine, count=nodes, price=price, given=given)
    if source is None:
        found, here = foretold(asked), None
    else:
        from tagsmith.console import Console
        from tagsmith.pipeline import forecast as run

        chosen = _config(preset, config, settings, data={"query": query})
        with Console() as console:
            here = run(source, config=chosen, listen=console)
        found = None if stage is None else foretold(asked, here)
    if as_json:
        both = {} if here is None else {"training": {**here.forecast.as_dict(), "rows": here.rows}}
        print(json.dumps(both | ({} if found is None else {"capacity": found.as_dict()}), indent=1))
        return
    for text in ([] if here is None else [here.forecast.told]) + ([] if found is None else [told(found)]):
        print(text)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The settings file to write.")] = Path("tagsmith.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a settings file with every setting, its default and its meaning."""
    from tagsmith.config import settings_file

    _refuse_existing(file, force=force)
    file.write_text(settings_file(), encoding="utf-8")
    print(file)


@app.command()
def assets() -> None:
    """List the backbones and data sets that have a name, and where they come from."""
    from tagsmith.assets import ASSETS, cached

    for name, asset in ASSETS.items():
        here = "here" if cached(name) else "-"
        print(f"{name}\t{asset.kind}\t{here}\t{asset.licence}\t{asset.description}")


@app.command()
def plugins() -> None:
    """List the parts that have a choice, where each comes from, and what it lacks."""
    from tagsmith.plugins import available

    for each in available():
        state = f'pip install "{each.lacks}"' if each.lacks else "here"
        print(f"{each.kind}\t{each.name}\t{each.package}\t{state}\t{each.target}")


def main() -> None:
    """Run the command line: a mendable error is one paragraph and exit code 3, wrong usage 2."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait for one another spin for milliseconds by default: on cores that other programs use too, a
        # step then took up to 20 times as long. This many rounds are some microseconds, and cost nothing when alone.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except TagsmithError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("Interrupted.", _INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(
            f"The disk is full ({error.filename or 'while writing'}). Free some space and try again.",
            ResourceError.exit_code,
        )


_INTERRUPTED = 130


def _fail(message: str, code: int) -> None:
    typer.echo(f"tagsmith: {message}", err=True)
    raise SystemExit(code)


def _interrupted(message: str) -> int:
    typer.echo(f"\ntagsmith: {message}", err=True)
    return _INTERRUPTED


def _left_by_interrupt(folder: Path) -> str:
    if folder.with_name(f"{folder.name}.checkpoint").exists():
        return f"Interrupted: no bundle was written. To go on from the last checkpoint: {_again(folder)}"
    return "Interrupted: nothing was written."


def _again(folder: Path) -> str:
    from tagsmith.data.readers import redacted

    words = ["tagsmith", *map(redacted, sys.argv[1:])]
    if "--out" not in words and not any(word.startswith("--out=") for word in words):
        words += ["--out", str(folder)]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])


def _config(
    preset: str,
    file: Path | None,
    settings: list[str] | None,
    *,
    backbone: str | None = None,
    seed: int | None = None,
    data: Mapping[str, str | None],
    tuning: Mapping[str, str | int | None] | None = None,
    planned: Mapping[str, Any] | None = None,
) -> Config:
    """Settings laid over one another, `planned` in the place of a preset; in `data` and `tuning` None is not given."""
    from tagsmith.config import Config, load_settings, merge, parse_setting, settings_of

    layers: list[Mapping[str, Any]] = [settings_of(preset) if planned is None else planned]
    if file is not None:
        layers.append(load_settings(file))
    layers += [parse_setting(assignment) for assignment in settings or []]
    if backbone is not None:
        layers.append({"model": {"backbone": backbone}})
    for section, values in (("data", data), ("tuning", tuning or {})):
        layers.append({section: {name: value for name, value in values.items() if value is not None}})
    if seed is not None:
        layers.append({"seed": seed})
    return Config.of(merge(*layers))


def _planned(plan: Path | None, take: int | None) -> dict[str, Any] | None:
    """The settings of an earlier bundle's training, or of another of its candidates; None without `--plan`."""
    from tagsmith.deployment.planned import planned_settings

    if plan is not None:
        return planned_settings(plan, take=take)
    if take is not None:
        raise SettingError("--take names a candidate of an earlier search. Give the bundle that has it: --plan BUNDLE.")
    return None


@contextmanager
def _stoppable(console: Any) -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks a tuning to stop after its step; before tuning, or a second time, it stops at once."""
    asked = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or not console.tuning:
            raise KeyboardInterrupt
        asked = True
        console.say("Stopping after this step; Ctrl-C again stops at once.")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
