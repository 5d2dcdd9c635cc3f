"""Install a trained model into the package: `python -m training.finish --from DIR`.

Copies the files, writes the model card and the loss curve, and refuses a model that is too large
or has not learned what the package needs of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from training.card import CURVE_FILE, model_card
from training.curve import loss_curve_svg

TARGET = Path(__file__).parent.parent / "attnbench" / "models" / "embedded"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
LARGEST_BYTES = 12_000_000
LEAST_RECALL = 0.9
RECALL_TOKENS = "2048"
CURVE_FIGURES = (
    *("kind", "step", "progress", "row_tokens", "rate"),
    *("prose_loss", "echo_loss", "recall_loss", "held_out_loss"),
)


class NotGoodEnough(Exception):
    """The trained model must not be shipped; the text lists why."""


def finish(source: Path, target: Path) -> None:
    """Install `source` (an --out folder of training.train) as `target`.

    Raises NotGoodEnough, and leaves the target alone, when the model fails `shortcomings`.
    """
    results = json.loads((source / "results.json").read_text())
    log = [json.loads(line) for line in (source / "train.jsonl").read_text().splitlines()]
    folder_bytes = sum((source / "model" / name).stat().st_size for name in FILES)
    failed = shortcomings(results, folder_bytes)
    if failed:
        raise NotGoodEnough("; ".join(failed))
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        # copyfile: the weights are saved readable by their owner alone.
        shutil.copyfile(source / "model" / name, target / name)
    (target / "__init__.py").touch()
    (target / "curves.json").write_text(curves_json(log))
    (target / CURVE_FILE).write_text(loss_curve_svg(log))
    (target / "MODEL_CARD.md").write_text(model_card(results, log, folder_bytes))
    (target / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def shortcomings(results: dict[str, Any], folder_bytes: int) -> list[str]:
    """Why this model must not be shipped; empty when it may."""
    failed = []
    if folder_bytes > LARGEST_BYTES:
        failed.append(f"the files have {folder_bytes} bytes, {LARGEST_BYTES} are allowed")
    for name, row in results["perplexity"].items():
        if not row["model"] < 0.8 * row["bigram"]:
            failed.append(f"perplexity on {name} is not well under the bigram's")
    recall = results["recall"].get(RECALL_TOKENS, {"retrieved": 0.0})["retrieved"]
    if not recall >= LEAST_RECALL:
        failed.append(f"retrieves {recall:.1%} at {RECALL_TOKENS} tokens")
    return failed


def curves_json(log: list[dict[str, Any]]) -> str:
    """The losses logged while training, as a JSON list, a line each."""
    figures = [
        {name: value for name, value in line.items() if name in CURVE_FIGURES}
        for line in log
        if line["kind"] in ("step", "check")
    ]
    return "[\n" + ",\n".join(map(json.dumps, figures)) + "\n]\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--to", dest="target", type=Path, default=TARGET)
    options = parser.parse_args()
    finish(options.source, options.target)
    print((options.target / "MODEL_CARD.md").read_text())


if __name__ == "__main__":
    main()
