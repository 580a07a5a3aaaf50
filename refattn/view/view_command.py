"""``refattn view``: a page that shows what a model of handwritten digits attends to."""

from __future__ import annotations

import webbrowser
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import get_args

import refattn
from refattn.examples import digits
from refattn.view.maps import AttentionMap, attention_maps
from refattn.view.page import page
from refattn.view.table import Table

TITLES = {"cnn": "What the gates of a small CNN let through", "transformer": "Where the heads of a small Transformer look"}
ABOUT = {
    "cnn": "A network reads a digit in stages. In each, a convolution looks for features, one in each channel; then CBAM gates say how "
    "much of each channel, and how much at each position of the image, goes on to the next stage.",
    "transformer": "A network reads a digit as patches of the image. In each layer every patch looks at all patches, in several heads at "
    "once, and takes from each a share of what it knows. Choose a patch to see where it looks.",
}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of ``refattn view``."""
    parser.add_argument("--model", choices=get_args(digits.Name), default="cnn", help="CBAM gates or attention heads; default: cnn")
    parser.add_argument("--image", metavar="N", type=int, default=0, help="which of the images that come along, from 0; default: 0")
    parser.add_argument("--weights", metavar="FILE", help="what `refattn train --save` has written, instead of what comes along")
    parser.add_argument("--output", metavar="FILE", help="where to write; default: attention_MODEL.html")
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def run_view(args: Namespace) -> int:
    """Write the page, and say what it shows."""
    html, maps, said = digits_page(args.model, args.image, args.weights)
    path = Path(args.output or f"attention_{args.model}.html")
    path.write_text(html, encoding="utf-8")
    table = Table("what", "kind", "shape", "mechanisms")
    for m in maps:
        table.row(m.title, m.kind, " x ".join(map(str, m.array.shape)), m.name)
    table.print(wrap=True)
    print(f"\n{said}\n{path.resolve()}")
    if args.open and not webbrowser.open(path.resolve().as_uri()):
        raise OSError(f"no browser could be opened for {path}")
    return 0


def digits_page(model: digits.Name, image: int, weights: str | None = None) -> tuple[str, list[AttentionMap], str]:
    """The page of one image, the maps in it, and what the model answered."""
    trained = digits.load(model, weights)
    if not 0 <= image < len(trained.images):
        raise ValueError(f"--image is {image}, but must be in 0 to {len(trained.images) - 1}")
    given, label = trained.images[image : image + 1], int(trained.labels[image])
    (scores, _), maps = attention_maps(trained.forward, given, trained.weights)
    shares = refattn.softmax(scores)[0]
    answer = int(shares.argmax())
    facts = {
        "Prediction": f"{answer}, {'right' if answer == label else 'wrong'}",
        "Label": str(label),
        "Image": f"number {image} of the test set",
    }
    probabilities = {str(d): float(p) for d, p in enumerate(shares)}
    html = page(TITLES[model], maps, about=ABOUT[model], image=given[0], ink=True, facts=facts, probabilities=probabilities)
    return html, maps, f"image {image} is a {label}; the model says {answer} ({100 * shares[answer]:.1f} %)"
