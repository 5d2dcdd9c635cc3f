"""Train the embedded model from scratch: `python -m training.train --help`.

Reads novels and WikiText-2, trains a tokenizer and the model, evaluates what was saved (not what
is in memory) and writes it all to one folder, which `python -m training.finish` then installs
into the package.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from attnbench.quality.recall import Needle, training_keys
from training.baselines import Bigram, Unigram
from training.corpus import Corpus, read_corpus
from training.evaluate import (
    DISTRACTORS,
    Scored,
    attention_table,
    model_nll,
    needles,
    perplexities,
    recall_by_depth,
    retrieved,
    score_windows,
)
from training.loop import Log, Task, train, warm_up_shapes
from training.model import Trainee, new_model, parameters, save_bf16
from training.recall import Prose, sentence_gaps, tokenise_keys
from training.schedule import SMOKE, Recipe
from training.tokenizer import (
    BOS,
    EOS,
    encode_document,
    join_documents,
    save_tokenizer,
    train_tokenizer,
)

CHECKS = (0.1, 0.3, 0.5, 0.7, 0.9)
SMOKE_CHECKS = (0.5,)


@dataclass(frozen=True)
class Exam:
    """Held-out material, tokenised once."""

    texts: dict[str, Scored]
    needles: dict[int, list[Needle]]

    @classmethod
    def build(cls, corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe, count: int) -> Exam:
        bos = tokenizer.token_to_id(BOS)
        held_out = {**corpus.held_out_books, "wikitext-2-test": corpus.wikitext_test}
        window = min(2048, recipe.context)
        texts = {
            name: score_windows(
                encode_document(tokenizer, text), bos, window, len(text.encode("utf-8"))
            )
            for name, text in held_out.items()
        }
        prose = "\n\n".join(corpus.held_out_books.values())
        lengths = [n for n in (256, 512, 1024, 2048, 4096) if n <= recipe.context]
        asked = {
            n: needles(tokenizer, prose, tokens=n, count=count, bos=bos, seed=n) for n in lengths
        }
        return cls(texts, asked)


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
        log.write(kind="check", progress=progress, **_quick_check(model, exam))

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
        "environment": _environment(device),
        **final_exam(options.out / "model", exam, training_ids, recipe.vocabulary, device),
    }
    results["training"]["wall_seconds"] = round(time.perf_counter() - started, 1)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    _print_summary(results)


def final_exam(
    folder: Path, exam: Exam, training_ids: np.ndarray, vocabulary: int, device: torch.device
) -> dict[str, object]:
    """Everything that the model card reports, measured on the saved bfloat16 model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    unigram, bigram = Unigram(training_ids, vocabulary), Bigram(training_ids, vocabulary)
    texts = {
        name: perplexities(model, scored, unigram, bigram) for name, scored in exam.texts.items()
    }
    recall = {}
    for tokens, asked in exam.needles.items():
        right = retrieved(model, asked)
        recall[str(tokens)] = {
            "needles": len(right),
            "retrieved": float(np.mean(right)),
            "by_depth": recall_by_depth(right),
        }
    eager = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    rows = next(iter(exam.texts.values())).inputs[:16, :1024]
    return {
        "perplexity": texts,
        "recall": recall,
        "distractors": DISTRACTORS,
        "attention": attention_table(eager.to(device).eval(), rows),
    }


def _task(tokenizer: Tokenizer, ids: np.ndarray, recipe: Recipe, device: torch.device) -> Task:
    on_device = torch.from_numpy(ids).to(device)
    prose = Prose(on_device, sentence_gaps(tokenizer, on_device).to(device))
    sentences = tokenise_keys(tokenizer, training_keys(), device)
    return Task(prose, sentences, tokenizer.token_to_id(BOS), recipe)


def _quick_check(model: LlamaForCausalLM, exam: Exam) -> dict[str, float]:
    """Held-out loss on a quarter of the first text, and retrieval with an eighth of the needles."""
    first = next(iter(exam.texts.values()))
    part = slice(None, None, 4)
    scored = Scored(first.inputs[part], first.targets[part], first.text_bytes // 4)
    figures = {"held_out_loss": model_nll(model, scored)}
    for tokens, asked in exam.needles.items():
        figures[f"recall_{tokens}"] = float(np.mean(retrieved(model, asked[::8])))
    return figures


def _environment(device: torch.device) -> dict[str, str]:
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.processor() or "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


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
    parser.add_argument("--needles", type=int, default=500, help="needles a context length")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", action="store_true", help="run the layers uncompiled")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, to try the script")
    return parser.parse_args()


if __name__ == "__main__":
    main()
