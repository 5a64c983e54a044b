"""Score a model on a test set: this package's with each number of refinement steps, another with each beam.

    python training/evaluate.py --model model_cards/lvnar-tatoeba-en-de --source_file test.en --target_file test.de \
        --output_folder runs/evaluation

Writes `hypotheses.N-steps.txt` for each number of steps N (`hypotheses.beam-N.txt` for an autoregressive model), and
`metrics.json`. Speed is not measured here: see benchmark.py. What an ELBO is of, the references or the model's own
translations, makes the difference; here it is of the references, and analyse.py has the other.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import training.command  # noqa: F401  (ends the script with one line where that is enough)

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import lvnar_hf  # noqa: F401  (registers model and tokenizer)
from lvnar_hf.files.outputs import refuse_existing, refuse_missing_folder
from lvnar_hf.jobs.environment import describe_machine, describe_versions
from training.data.evaluation_sets import TestSet, TestSetArguments, load_test_set
from training.quality.decoding import refine_texts, repetition_removal, translate_texts
from training.quality.elbo import can_be_scored, elbo_of_sequences
from training.translation_quality.measures import bleu_by_length, corpus_scores, repeated_share, words

REMOVALS: dict[str, bool | str] = {"words": True, "tokens": "tokens", "none": False}


@dataclass
class EvaluationArguments:
    """What to score, and where the results go."""

    model: str = field(metadata={"help": "model folder or Hub id"})
    output_folder: str = field(metadata={"help": "where hypotheses and metrics.json go"})
    num_refinement_steps: list[int] | None = field(
        default=None, metadata={"help": "each is scored; for this package's models; by default 0 1 3"}
    )
    num_beams: list[int] | None = field(
        default=None, metadata={"help": "each is scored; for autoregressive models; by default 1 3"}
    )
    num_elbo_samples: int = field(default=20, metadata={"help": "latent samples a sentence; 0: no ELBO"})
    num_bootstrap: int = field(default=1000, metadata={"help": "resamples for the scores' 95 %% intervals; 0: none"})
    remove_repetitions: str | None = field(
        default=None,
        metadata={
            "choices": [*REMOVALS],
            "help": "tokens: consecutive equal ones, as the paper does; words; none; by default what the model's "
            "generation_config.json says",
        },
    )
    batch_size: int = field(default=64, metadata={"help": "sentences translated at once"})
    seed: int = field(default=1, metadata={"help": "of the latent samples"})
    revision: str | None = field(default=None, metadata={"help": "the model's revision on the Hub"})
    overwrite: bool = field(default=False, metadata={"help": "write into an output folder that is not empty"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Translate, score, write; return what is in metrics.json.

    Raises:
        FileExistsError: the output folder is not empty and `--overwrite` is not given.
        ValueError, FileNotFoundError, OSError: what `load_test_set` refuses; options and languages that are not the
            model's.
    """
    parser = HfArgumentParser((EvaluationArguments, TestSetArguments))
    arguments, test_set_arguments = parser.parse_args_into_dataclasses(argv)
    refuse_missing_folder(arguments.model)
    folder = refuse_existing(arguments.output_folder, arguments.overwrite, "--output_folder")
    test_set = load_test_set(test_set_arguments)
    where = {} if arguments.revision is None else {"revision": arguments.revision}
    model = AutoModelForSeq2SeqLM.from_pretrained(arguments.model, dtype=torch.float32, **where).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, **where)
    is_lvnar = model.config.model_type == "lvnar"
    names = ["num_beams"] if is_lvnar else ["num_refinement_steps", "remove_repetitions"]
    if wrong := [name for name in names if getattr(arguments, name) is not None]:
        raise ValueError(
            f"--{wrong[0]} means nothing for {arguments.model}, a model of type {model.config.model_type}."
        )
    if is_lvnar:
        model.config.check_languages(test_set.source_language, test_set.target_language)
    folder.mkdir(parents=True, exist_ok=True)
    if is_lvnar and arguments.remove_repetitions is not None:
        model.generation_config.remove_repetitions = REMOVALS[arguments.remove_repetitions]
    option, default = ("num_refinement_steps", [0, 1, 3]) if is_lvnar else ("num_beams", [1, 3])
    results = []
    for value in getattr(arguments, option) or default:
        result: dict[str, Any] = {
            option: value,
            "hypotheses": f"hypotheses.{f'{value}-steps' if is_lvnar else f'beam-{value}'}.txt",
        }
        score = score_refined if is_lvnar else score_searched
        hypotheses, scores = score(model, tokenizer, test_set, value, arguments.batch_size, arguments.num_bootstrap)
        (folder / result["hypotheses"]).write_text("".join(h + "\n" for h in hypotheses), "utf-8")
        results.append(result | scores)
        print(f"{result['hypotheses']}: {json.dumps(scores)}", flush=True)
    metrics = {
        "model": arguments.model,
        "num_parameters": model.num_parameters(),
        "test_set": test_set.name,
        "source_language": test_set.source_language,
        "target_language": test_set.target_language,
        "num_sentences": len(test_set.source_texts),
        "batch_size": arguments.batch_size,
        "remove_repetitions": repetition_removal(model) if is_lvnar else None,
        "results": results,
        "elbo_of_references": None,
        "versions": describe_versions(),
        "machine": describe_machine(model.device),
    }
    if is_lvnar and arguments.num_elbo_samples:
        metrics["elbo_of_references"] = elbo_of_references(
            model, tokenizer, test_set, arguments.num_elbo_samples, arguments.seed, arguments.batch_size
        )
        print(f"ELBO of the references: {json.dumps(metrics['elbo_of_references'])}", flush=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    return metrics


def score_refined(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test_set: TestSet,
    num_steps: int,
    batch_size: int,
    num_bootstrap: int,
) -> tuple[list[str], dict[str, Any]]:
    """Hypotheses, a line each, and scores of this package's model."""
    texts = [text for text in test_set.source_texts if text.strip()]
    refinements = refine_texts(model, tokenizer, texts, num_steps, batch_size)
    of_texts = iter(refinements)
    hypotheses = [next(of_texts).texts[-1] if text.strip() else "" for text in test_set.source_texts]
    before = [refinement.target_ids[-1] for refinement in refinements]
    after = [refinement.kept_ids[-1] for refinement in refinements]
    return hypotheses, {
        "mean_steps_taken": sum(refinement.num_steps_taken for refinement in refinements) / len(refinements),
        **_text_scores(hypotheses, tokenizer, test_set, num_bootstrap),
        "repeated_tokens": {
            "before_removal": {
                "subwords": repeated_share(before),
                "words": repeated_share(words(tokenizer.batch_decode(before, skip_special_tokens=True))),
            },
            "after_removal": {
                "subwords": repeated_share(after),
                "words": repeated_share(words(hypotheses)),
            },
        },
    }


def score_searched(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test_set: TestSet,
    num_beams: int,
    batch_size: int,
    num_bootstrap: int,
) -> tuple[list[str], dict[str, Any]]:
    """Hypotheses, a line each, and scores of a model that searches token by token."""
    texts = translate_texts(model, tokenizer, test_set.source_texts, batch_size, num_beams=num_beams)
    hypotheses = [_one_line(text) for text in texts]
    scores = _text_scores(hypotheses, tokenizer, test_set, num_bootstrap)
    return hypotheses, scores | {"repeated_tokens": {"words": repeated_share(words(hypotheses))}}


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


def _text_scores(
    hypotheses: list[str], tokenizer: PreTrainedTokenizerBase, test_set: TestSet, num_bootstrap: int
) -> dict[str, Any]:
    languages = (test_set.source_language, test_set.target_language)
    # without </s>
    source_lengths = [len(ids) for ids in tokenizer(test_set.source_texts, add_special_tokens=False)["input_ids"]]
    references = test_set.target_texts
    return {
        **corpus_scores(hypotheses, references, *languages, num_bootstrap),
        "repeated_words_in_references": repeated_share(words(references)),
        "bleu_by_source_length": bleu_by_length(hypotheses, references, source_lengths, test_set.target_language),
    }


def elbo_of_references(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test_set: TestSet,
    num_samples: int,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """Nats a target token, with the parts, over the pairs that the model gives a probability; how many those are."""
    source_ids = tokenizer(test_set.source_texts, verbose=False)["input_ids"]
    target_ids = tokenizer(text_target=test_set.target_texts, verbose=False)["input_ids"]
    scored = [ids for ids in zip(source_ids, target_ids, strict=True) if can_be_scored(model, *ids)]
    counts = {"num_samples": num_samples, "seed": seed, "num_sentences": len(scored)}
    if not scored:
        return counts
    sources, targets = map(list, zip(*scored, strict=True))
    bounds = elbo_of_sequences(model, sources, targets, num_samples, seed, batch_size)
    num_tokens = sum(map(len, targets))
    per_token = {name: float(values.sum()) / num_tokens for name, values in bounds.items()}
    return per_token | counts


if __name__ == "__main__":
    main()
