"""Train the embedded model from scratch: `python -m training.train --help`.

Reads novels and WikiText-2, trains a tokenizer and the model, evaluates what was saved (not what
is in memory) and writes it all to one folder, which `python -m training.finish` then installs
into the package.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from attnbench.quality.recall import training_keys
from training.corpus import read_corpus
from training.evaluate import Scored, model_nll
from training.exam import NEEDLES_HELP, Exam, environment, final_exam
from training.loop import Log, Task, train, warm_up_shapes
from training.model import Trainee, new_model, parameters, save_bf16
from training.recall import Prose, sentence_gaps, tokenise_keys
from training.schedule import SMOKE, Recipe
from training.tokenizer import (
    BOS,
    EOS,
    join_documents,
    save_tokenizer,
    train_tokenizer,
)

CHECKS = (0.1, 0.3, 0.5, 0.7, 0.9)
SMOKE_CHECKS = (0.5,)


def main() -> None:
    options = _options()
    started = time.perf_counter()
    recipe = SMOKE if options.smoke else Recipe()
    device = torch.device(options.device)
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "train.jsonl")

    corpus = read_corpus(options.books, options.wikitext)
    tokenizer = train_tokenizer(corpus.training.values(), recipe.vocabulary)
    save_tokenizer(tokenizer, options.out / "model", recipe.context)
    training_ids = join_documents(tokenizer, corpus.training.values())
    exam = Exam.build(corpus, tokenizer, recipe, options.needles)
    task = _task(tokenizer, training_ids, recipe, device)
    model = new_model(recipe, tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)).to(device)
    trainee = Trainee(model, recipe.dropout, compiled=not options.no_compile)
    log.write(kind="prepared", seconds=time.perf_counter() - started, tokens=len(training_ids))
    log.write(kind="compiled", seconds=warm_up_shapes(trainee, task))

    def check(progress: float) -> None:
        save_bf16(model, options.out / "model")
        log.write(kind="check", progress=progress, held_out_loss=_held_out_loss(model, exam))

    checks = SMOKE_CHECKS if options.smoke else CHECKS
    steps = train(trainee, task, 60 * options.minutes, log, dict.fromkeys(checks, check))
    save_bf16(model, options.out / "model")

    results = {
        "recipe": asdict(recipe),
        "training": {
            "steps": steps,
            "minutes": options.minutes,
            "compiled": not options.no_compile,
            "tokens_seen": steps * recipe.batch_tokens,
            "training_tokens": len(training_ids),
            "documents": sorted(corpus.training),
            "parameters": parameters(model),
            "training_keys": len(training_keys()),
        },
        "environment": environment(device),
        **final_exam(options.out / "model", exam, training_ids, recipe.vocabulary, device),
    }
    results["training"]["wall_seconds"] = round(time.perf_counter() - started, 1)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    _print_summary(results)


def _task(tokenizer: Tokenizer, ids: np.ndarray, recipe: Recipe, device: torch.device) -> Task:
    on_device = torch.from_numpy(ids).to(device)
    prose = Prose(on_device, sentence_gaps(tokenizer, on_device).to(device))
    sentences = tokenise_keys(tokenizer, training_keys(), device)
    return Task(prose, sentences, tokenizer.token_to_id(BOS), recipe)


def _held_out_loss(model: LlamaForCausalLM, exam: Exam) -> float:
    """Nats a token on a quarter of the first held-out text."""
    first = next(iter(exam.texts.values()))
    part = slice(None, None, 4)
    return model_nll(model, Scored(first.inputs[part], first.targets[part], first.text_bytes // 4))


def _print_summary(results: dict) -> None:
    print(f"\n{'text':28}{'tokens':>9}{'model':>9}{'bigram':>9}{'unigram':>9}   perplexity a token")
    for name, row in results["perplexity"].items():
        print(
            f"{name:28}{row['tokens']:9}{row['model']:9.2f}{row['bigram']:9.2f}"
            f"{row['unigram']:9.2f}"
        )
    print(f"\n{'context':>8}{'needles':>9}{'retrieved':>11}   by depth, start to end")
    for tokens, row in results["recall"].items():
        depths = " ".join(f"{share:.3f}" for share in row["by_depth"])
        print(f"{tokens:>8}{row['needles']:9}{row['retrieved']:11.3f}   {depths}")
    print(f"\n{json.dumps(results['training'] | {'documents': ''})}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=Path, required=True, help="folder with *.txt novels")
    parser.add_argument("--wikitext", type=Path, required=True, help="folder: valid.txt, test.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time alone")
    parser.add_argument("--needles", type=int, default=500, help=NEEDLES_HELP)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", action="store_true", help="run the layers uncompiled")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, to try the script")
    return parser.parse_args()


if __name__ == "__main__":
    main()
