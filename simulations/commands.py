"""`fedward simulate`: a whole federation on this machine."""

import json
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console

from fedward.common.errors import SettingRefused
from fedward.common.printing import printable
from fedward.common.typed import typed_names
from fedward.server.recipes import values_of
from fedward.simulations.options import Options
from fedward.simulations.prepare import Simulation, prepare, reopen
from fedward.simulations.simulate import Finished, run
from fedward.simulations.wording import spent

_D = Options()
_HELP = (
    "Train, release and report a federated study on this machine, with the code that hospitals run. "
    "Writes report.html, metrics.json and the signed release/ into --out. The noise of a simulation comes "
    "from --seed, so that it can be repeated: its release protects nobody, and says so."
)
_STUDY, _PRIVACY, _TRAINING = "The study", "Privacy", "Training in a hospital"
_COORDINATOR, _PUBLIC, _CONTINUE = "The coordinator", "Public reference data", "Continuing an earlier study"
_RUN = "The run"


def _option(panel: str, help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel)


def _epsilon(text: str) -> float | None:
    if text.strip().lower() == "none":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise SettingRefused(f"--epsilon takes a number or none, not {text!r}.") from error


def simulate(
    dataset: Annotated[
        str,
        _option(
            _STUDY,
            "auto (PneumoniaMNIST, else phantoms), a MedMNIST name, mednist, phantom, phantom-colour, "
            "phantom-findings, or the path of an npz in MedMNIST's layout.",
        ),
    ] = _D.dataset,
    hospitals: Annotated[int, _option(_STUDY, "Number of simulated hospitals.")] = _D.hospitals,
    partition: Annotated[
        str,
        _option(
            _STUDY,
            "How the images are spread: iid; dirichlet:A (classes skewed, more so the smaller A); size:P "
            "(hospital k gets a share by k to the power -P); scanner (each with its own contrast).",
        ),
    ] = _D.partition,
    student: Annotated[
        str,
        _option(
            _STUDY,
            "ternary-, int8- or fp32-, then cnn, depthwise, mobile, embed (whose body can be distilled), "
            "or a vision transformer: vit, vit-s, vit-m or vit-l, with -mq behind it for multi-query "
            "attention; for example int8-cnn or ternary-vit-m.",
        ),
    ] = _D.student,
    recipe: Annotated[
        str,
        _option(
            _STUDY,
            "Settings that go together: from-scratch (the defaults shown here), distilled (the body learns "
            "from public images, only the head from patients), or imagenet (the body has ImageNet's "
            "weights). What you set yourself comes first.",
        ),
    ] = _D.recipe,
    rounds: Annotated[int, _option(_STUDY, "Rounds of the study.")] = _D.rounds,
    seed: Annotated[int, _option(_STUDY, "Key of all randomness, noise included; 0 or more.")] = _D.seed,
    epsilon: Annotated[
        str,
        _option(
            _PRIVACY,
            "What each hospital spends at most on the study; none trains without noise.",
        ),
    ] = "3",
    delta: Annotated[float, _option(_PRIVACY, "Delta of the guarantee.")] = _D.delta,
    max_grad_norm: Annotated[
        float, _option(_PRIVACY, "Clip: the largest norm of one image's gradient.")
    ] = _D.max_grad_norm,
    private_metrics: Annotated[
        float,
        _option(
            _PRIVACY,
            "Noise multiplier of counts on the hospitals' own records, from which accuracy and AUC follow: "
            "asked once, charged within --epsilon; for example 10. 0 asks for none.",
        ),
    ] = _D.private_metrics,
    private_fisher: Annotated[
        float,
        _option(
            _PRIVACY,
            "Noise multiplier of a Fisher by output channel on the hospitals' own records, for EWC in a "
            "later study (fisher.npy): asked once, charged within --epsilon; for example 2. 0 asks for none.",
        ),
    ] = _D.private_fisher,
    sample_rate: Annotated[
        float, _option(_PRIVACY, "Probability that an image takes part in a step (Poisson sampling).")
    ] = _D.sample_rate,
    local_steps: Annotated[int, _option(_TRAINING, "Noised steps a round.")] = _D.local_steps,
    learning_rate: Annotated[
        float | None, _option(_TRAINING, "Of a hospital's step; planned from the noise by default.")
    ] = _D.learning_rate,
    schedule: Annotated[
        str, _option(_TRAINING, "Learning rate over the rounds: constant, or cosine to a tenth.")
    ] = _D.schedule,
    augmentation: Annotated[str, _option(_TRAINING, "none, shift or affine.")] = _D.augmentation,
    trained: Annotated[str, _option(_TRAINING, "all, or head: the last layer alone.")] = _D.trained,
    views: Annotated[
        int, _option(_TRAINING, "Augmented views of an image, averaged before the clip.")
    ] = _D.views,
    server_learning_rate: Annotated[
        float, _option(_COORDINATOR, "Of the step along the mean update.")
    ] = _D.server_learning_rate,
    server_momentum: Annotated[
        float, _option(_COORDINATOR, "Momentum of that step (FedAvgM); 0 is plain FedAvg.")
    ] = _D.server_momentum,
    averaged_rounds: Annotated[
        int, _option(_COORDINATOR, "The release is the mean of the models after the last so many rounds.")
    ] = _D.averaged_rounds,
    quorum: Annotated[
        int | None,
        _option(_COORDINATOR, "Fewest hospitals that must reply to a round; by default half of them."),
    ] = None,
    round_timeout: Annotated[
        float, _option(_COORDINATOR, "Seconds that a round waits for replies.")
    ] = _D.round_timeout,
    uplink: Annotated[
        str,
        _option(
            _COORDINATOR,
            "How updates travel: fp32, int8, or with noise coded8, coded4, coded3, coded2: about so many "
            "bits a weight. auto is coded3, or int8 without noise.",
            "--uplink-codec",
            "--uplink",
        ),
    ] = _D.uplink,
    downlink: Annotated[
        str,
        _option(
            _COORDINATOR,
            "How the model travels: fp32, int8, diff4, diff3 or diff2. auto is diff3, or int8 without noise.",
            "--downlink-codec",
            "--downlink",
        ),
    ] = _D.downlink,
    reference: Annotated[
        str,
        _option(
            _PUBLIC,
            "val (the data set's own validation split), another data set, or none. Half of it calibrates, "
            "half measures the rounds.",
        ),
    ] = _D.reference,
    prior: Annotated[
        str, _option(_PUBLIC, "Where the class prior of training comes from: reference or none.")
    ] = _D.prior,
    decision: Annotated[
        str, _option(_PUBLIC, "balanced (threshold 0), or calibrated (thresholds from the reference data).")
    ] = _D.decision,
    public: Annotated[
        str,
        _option(_PUBLIC, "Public images of the distilled recipe: a data set, or auto (MedNIST, if at hand)."),
    ] = _D.public,
    start: Annotated[
        str | None, _option(_PUBLIC, "The file of a public start that was made before; else it is made anew.")
    ] = None,
    teacher: Annotated[
        str, _option(_PUBLIC, "none, or reference: a teacher trained on the reference data, then distilled.")
    ] = _D.teacher,
    distillation_alpha: Annotated[
        float, _option(_PUBLIC, "Weight of the teacher in the loss, up to 1.")
    ] = _D.distillation_alpha,
    distillation_temperature: Annotated[
        float, _option(_PUBLIC, "Softens teacher and student before they are compared.")
    ] = _D.distillation_temperature,
    continue_from: Annotated[
        str | None, _option(_CONTINUE, "Release to start from: a directory or a tar.")
    ] = None,
    trust: Annotated[
        Path | None, _option(_CONTINUE, "Trust file that verifies that release; by default your own.")
    ] = None,
    prune: Annotated[
        float,
        _option(
            _CONTINUE,
            "Share of that release's channels to take away first, where the reference data say they are "
            "missed least; 0 takes none.",
        ),
    ] = _D.prune,
    model_bytes: Annotated[
        int | None,
        _option(
            _CONTINUE,
            "Bytes that the model file may take: weights of that int8 release get 8, 4 or 2 bits, by what "
            "the reference data say that they bear.",
        ),
    ] = _D.model_bytes,
    ewc_lambda: Annotated[
        float, _option(_CONTINUE, "Strength of EWC's pull toward that release; 0 is none.")
    ] = _D.ewc_lambda,
    ewc_reference: Annotated[
        str | None,
        _option(
            _CONTINUE, "Public data of the earlier task, for EWC's Fisher; by default the study's reference."
        ),
    ] = None,
    ewc_fisher: Annotated[
        str | None,
        _option(
            _CONTINUE,
            "The earlier study's private Fisher for EWC: fisher.npy in its folder. By default the Fisher is "
            "of public reference data.",
        ),
    ] = None,
    out: Annotated[Path, _option(_RUN, "Folder of the run.")] = Path("runs/simulation"),
    resume: Annotated[
        bool, _option(_RUN, "Go on with the run in --out, with the settings it was started with.", "--resume")
    ] = False,
    engine: Annotated[
        str, _option(_RUN, "inproc (in this process), or ray (flwr run on Flower's simulation engine).")
    ] = _D.engine,
    compare: Annotated[
        bool,
        _option(
            _RUN,
            "Compare with public data alone, one hospital alone, and all images pooled without privacy; "
            "takes minutes.",
            "--compare",
        ),
    ] = False,
    as_json: Annotated[bool, _option(_RUN, "Print metrics.json instead of the summary.", "--json")] = False,
) -> None:
    """Start a run or go on with one; see `_HELP`, which is what a person reads."""
    given: dict[str, Any] = {**locals(), "epsilon": _epsilon(epsilon)}
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    _check_given(resume)
    if resume:
        simulation = reopen(out)
    else:
        options = _options(given)
        console.print("Preparing data, hospitals and noise ...")
        simulation = prepare(options, out, trust, console.print)
    console.print(printable(f"{simulation.dataset.name}: {simulation.dataset.source}"))
    finished = _run(simulation, out, console)
    if as_json:
        sys.stdout.write(json.dumps(finished.metrics, indent=1, allow_nan=False) + "\n")
    else:
        typer.echo("\n".join(_summary(finished.metrics, out, finished.bundle)))


def _options(given: dict[str, Any]) -> Options:
    """What was typed, then what the recipe says, then the defaults."""
    values = {field.name: given[field.name] for field in fields(Options) if field.name in given}
    return Options(**values | values_of(given["recipe"], typed_names()))


def _check_given(resume: bool) -> None:
    """An option that would be ignored in silence is refused.

    Raises:
        SettingRefused: settings beside --resume, which keeps the run's own, or an option whose partner is
            missing.
    """
    context, given = click.get_current_context(), typed_names()
    if resume:
        if extra := sorted(given - {"resume", "out", "as_json"}):
            flags = ", ".join(map(_flag, extra))
            raise SettingRefused(f"--resume goes on with the run's own settings: leave out {flags}.")
        return
    has_teacher = context.params["teacher"] != "none"
    for name, partner, is_there in (
        ("distillation_alpha", "--teacher reference", has_teacher),
        ("distillation_temperature", "--teacher reference", has_teacher),
        ("trust", "--continue-from", context.params["continue_from"] is not None),
    ):
        if name in given and not is_there:
            raise SettingRefused(f"{_flag(name)} does nothing without {partner}: add that, or leave it out.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _run(simulation: Simulation, out: Path, console: Console) -> Finished:
    try:
        return run(simulation, console)
    except KeyboardInterrupt:
        command = f"fedward simulate --resume --out {shlex.quote(str(out))}"
        console.print(printable(f"No closed round is lost; go on with: {command}"))
        raise


def _summary(metrics: dict[str, Any], out: Path, bundle: Path) -> list[str]:
    """The lines that a person reads at the end."""
    release, hospitals = metrics["release"], metrics["hospitals"]
    auc = "undefined" if release["auc"] is None else f"{release['auc']:.3f}"
    figures = f"accuracy {release['accuracy']:.3f}, balanced accuracy {release['balanced_accuracy']:.3f}"
    costs = [site["epsilon"] for site in hospitals if site["epsilon"] is not None]
    privacy = "none: trained without noise"
    if costs:
        budget, delta, unit = (hospitals[0][key] for key in ("budget", "delta", "unit"))
        cost = f"epsilon {spent(max(costs))} of {budget:g} at most in any hospital"
        privacy = f"{cost}, by {unit} at delta {delta:g}; "
        privacy += "its noise came from the seed, so it protects nobody"
    return [
        f"test     AUC {auc}, {figures}",
        *_private(metrics),
        f"privacy  {privacy}",
        f"model    {release['bytes']:,} bytes, {release['fp32_bytes'] / release['bytes']:.1f} times smaller "
        f"than fp32; the bundle {release['bundle_bytes']:,}",
        printable(f"report   {out / 'report.html'}"),
        printable(f"release  {bundle}"),
    ]


def _private(metrics: dict[str, Any]) -> list[str]:
    """What the hospitals counted under privacy, where they were asked."""
    measured = metrics.get("measurement")
    if measured is None or measured["figures"] is None:
        return []
    auc, error = measured["figures"]["auc"], measured["standard_errors"]["auc"]
    said = "hidden by the noise" if auc is None else f"{auc:.3f} (standard error {error:.3f})"
    return [f"private  AUC {said} on {measured['on']}"]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=_HELP)
app.command(name="simulate", help=_HELP)(simulate)
