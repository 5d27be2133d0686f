"""`fedward edge`: ask a signed release about images, on a machine that has nothing of the training stack."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedward.client.edge import tuning
from fedward.client.edge.images import prepare, read_image
from fedward.client.edge.runtime import Answer, EdgeModel
from fedward.client.edge.tuning import open_tuned
from fedward.common.bundle import read_bundle
from fedward.common.decision import decide, probabilities
from fedward.common.errors import ImageRefused
from fedward.common.manifest import Manifest, release_digest
from fedward.common.printing import printable
from fedward.common.trust import load_trust

app = typer.Typer(no_args_is_help=True, help="Run a signed release beside the scanner.")


@app.callback()
def _edge() -> None:
    """Run a signed release beside the scanner."""


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="The release: a directory or a tar.")],
    images: Annotated[list[str], typer.Argument(help="PNG, JPEG, DICOM, npz, or file.npz:test_images[3].")],
    trust: Annotated[Path | None, typer.Option(help="The study's trust file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Verify BUNDLE, check its golden outputs, and print class, probability and latency of each image.

    An image that is refused is named on standard error, the others are answered, and the exit code is 1.
    """
    model = open_tuned(bundle, load_trust(trust))
    answered: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    for image in images:
        try:
            rows = _rows(model, image)
        except ImageRefused as refusal:
            refused.append({"image": image, "error": refusal.name, "message": str(refusal)})
            typer.echo(printable(f"{refusal.name}: {refusal}"), err=True)
            continue
        answered += rows
        if not as_json:
            typer.echo("\n".join(_line(row) for row in rows))
    if as_json:
        digest = release_digest(model.manifest)
        typer.echo(json.dumps({"release": digest, "images": answered, "refused": refused}))
    if refused:
        raise typer.Exit(1)


@app.command()
def tune(
    bundle: Annotated[Path, typer.Argument(help="The release: a directory or a tar.")],
    trust: Annotated[Path | None, typer.Option(help="The study's trust file.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="For each form of the model.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find out in which form BUNDLE's model is the fastest on this machine, for `predict` to use.

    Only forms that reproduce the release's golden outputs are used. What is found is remembered for this
    model, this machine and this version of onnxruntime.
    """
    found = read_bundle(bundle, load_trust(trust))
    tried = tuning.tune(found, seconds)
    if as_json:
        forms = [dataclasses.asdict(one) for one in tried]
        typer.echo(
            json.dumps({"release": release_digest(found.manifest), "fastest": tried[0].form, "forms": forms})
        )
        return
    for one in tried:
        told = one.refusal if one.milliseconds is None else f"{one.milliseconds:.3f} ms an image"
        typer.echo(printable(f"{one.form:6} {told}"))
    typer.echo(f"{tried[0].form} is used from now on.")


def _rows(model: EdgeModel, image: str) -> list[dict[str, Any]]:
    pictures = prepare(read_image(image), model.manifest["preprocessing"])
    names = [image] if len(pictures) == 1 else [f"{image}#{number}" for number in range(len(pictures))]
    return [
        _row(name, answer, model.manifest)
        for name, answer in zip(names, model.answers(pictures), strict=True)
    ]


def _row(image: str, answer: Answer, manifest: Manifest) -> dict[str, Any]:
    """One answer as it is printed; a multi-label release has a list of classes and of probabilities."""
    task, classes = manifest["task"], manifest["classes"]
    logits = answer.logits[None]
    shares = [
        float(share) for share in probabilities(logits, task, manifest["calibration"]["temperature"])[0]
    ]
    decided = decide(logits, task, manifest["decision"]["thresholds"])[0]
    row = {
        "image": image,
        "probabilities": dict(zip(classes, shares, strict=True)),
        "latency_ms": round(answer.seconds * 1000, 3),
    }
    if task == "multi-label":
        present = [k for k, is_present in enumerate(decided) if is_present]
        return row | {"class": [classes[k] for k in present], "probability": [shares[k] for k in present]}
    return row | {"class": classes[decided], "probability": shares[decided]}


def _line(row: dict[str, Any]) -> str:
    if isinstance(row["class"], list):
        named = zip(row["class"], row["probability"], strict=True)
        found = ", ".join(f"{name} {share:.4f}" for name, share in named) or "none"
    else:
        found = f"{row['class']}  {row['probability']:.4f}"
    return printable(f"{row['image']}  {found}  {row['latency_ms']:.2f} ms")
