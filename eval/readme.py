"""Write the README's results table from the result files of simcse-eval: ``python -m eval.readme``."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TASKS = {
    "STS12": "STS12",
    "STS13": "STS13",
    "STS14": "STS14",
    "STS15": "STS15",
    "STS16": "STS16",
    "STSB": "STS-B",
    "SICKR": "SICK-R",
}
BEGIN = "<!-- results: written by `python -m eval.readme` from eval/results/*.json -->"
END = "<!-- end of results -->"


def table(results: Path) -> str:
    """One row a model, from every result file in a folder; figures to two decimals, as the papers print them."""
    lines = [
        "Spearman x100, aggregation `all`, text as SentEval prepares it (tokenised), test splits:",
        "",
        f"| model | pooling | {' | '.join(TASKS.values())} | Avg. |",
        f"|---|---|{'---|' * (len(TASKS) + 1)}",
    ]
    for path in sorted(results.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for model in content["models"]:
            values = {r["task"]: r["value"] for r in content["results"] if r["model"] == model["id"]}
            average = next(a["value"] for a in content["averages"] if a["model"] == model["id"])
            figures = [f"{values[task]:.2f}" for task in TASKS]
            lines.append(f"| {path.stem} | {model['pooling']} | {' | '.join(figures)} | {average:.2f} |")
    return "\n".join(lines)


def with_table(readme: str, results: Path) -> str:
    """The README with its results table written anew."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_table(path.read_text(encoding="utf-8"), ROOT / "eval" / "results"), encoding="utf-8")
