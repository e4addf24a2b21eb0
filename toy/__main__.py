"""`python -m toy COMMAND --out DIR`: compute a study and write its figure, its numbers and its summary."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from toy.problems import ProblemError
from toy.studies.study import Item, write

COMMANDS = {
    "variance": "variance, bias and error of every estimator against the proposal and the group size",
    "frontier": "KL-reward frontier of each method when it trains the same policy",
    "samples": "outcome against the number of completions, BRAIn and DPO-sft",
    "bias": "the self-normalised KL divergence against the KL divergence and the group size",
    "ablation": "from DPO-sft to BRAIn part by part, baselines, reward noise, stale proposals",
    "gap": "weight and pull of a pair against its reward gap: argmax, softmax, logistic goodness",
    "rejection": "the exact rejection sampler of the target and its cost, against the trained policy",
    "scale": "steps to a given KL divergence against the number of possible completions",
    "family": "the power family, from reverse-KL policy gradient to argmax",
}
"""The studies, one module of `toy.studies` each, and what they show."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows `python -m toy`; by default those of this process.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 for an interruption.
    """
    options = _parser().parse_args(arguments)
    try:
        _check_folder(options.out)
        for name in COMMANDS if options.command == "all" else [options.command]:
            _run(name, options.out)
    except (ProblemError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    """The options and their help."""
    described = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m toy",
        description="Exact studies of BRAIn and its relatives on problems small enough to enumerate.",
        epilog=f"commands:\n{described}\n  all        every one of these\n\n"
        "Each writes NAME.png, NAME.svg, NAME.csv and NAME.json. The same command gives the same numbers.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=[*COMMANDS, "all"], help="what to compute; see below")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=_folder,
        default=Path("figures"),
        help="folder to write into, made if missing (figures)",
    )
    return parser


def _folder(text: str) -> Path:
    """The folder of that name; an empty name would be the current folder, and is refused."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty; name a folder, or . for this one")
    return Path(text)


def _check_folder(folder: Path) -> None:
    """Make the folder and write there once, so that a study does not end in an error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise OSError(f"--out {folder}: cannot write there ({reason}); name a folder that can be written") from None


def _run(name: str, folder: Path) -> None:
    """Compute one study, write its files and print their paths and the time taken."""
    start = time.perf_counter()
    study = import_module(f"toy.studies.{name}").study(_bar)
    for path in write(study, folder):
        print(path)
    print(f"{name}: {time.perf_counter() - start:.1f} s")


def _bar(items: Iterable[Item], label: str) -> Iterable[Item]:
    """The items, with a bar on stderr where that is a terminal."""
    shown: Iterable[Item] = tqdm(items, desc=label, leave=False, disable=None)
    return shown


if __name__ == "__main__":
    sys.exit(main())
