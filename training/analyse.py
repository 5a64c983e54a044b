"""Draw what refinement does to a test set: the paper's Fig. 3 and 4 and its Table 3, for any model of this package.

    python training/analyse.py --model model_cards/lvnar-tatoeba-en-de --source_file test.en --target_file test.de \
        --output_folder runs/analysis

Writes `elbo_and_bleu.png`, `stopping.png`, `examples.md`, `examples.html`, and `analysis.json`, from which all of them
are drawn. Of a model with a calibration also `reliability.png`: how often words of each confidence are right.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.outputs import refuse_existing, refuse_missing_folder
from training.data.evaluation_sets import TestSetArguments, load_test_set


@dataclass
class AnalysisArguments:
    """Which model, on what, and where the results go."""

    model: str = field(metadata={"help": "folder or Hub id of a model of this package"})
    output_folder: str = field(metadata={"help": "where figures, examples and analysis.json go"})
    max_steps: int = field(default=10, metadata={"help": "refinement steps allowed"})
    num_examples: int = field(default=10, metadata={"help": "sentences shown step by step"})
    num_elbo_samples: int = field(default=20, metadata={"help": "latent samples per sentence"})
    batch_size: int = field(default=64, metadata={"help": "sentences translated at once"})
    seed: int = field(default=1, metadata={"help": "of the latent samples"})
    overwrite: bool = field(default=False, metadata={"help": "write into an output folder that is not empty"})

    def __post_init__(self) -> None:
        for name in ("max_steps", "num_examples", "num_elbo_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Translate, measure, draw, write; return what is in analysis.json.

    Raises:
        FileExistsError: the output folder is not empty and `--overwrite` is not given.
        ValueError, FileNotFoundError, OSError: what `load_test_set` refuses; or all sources are blank, a number is too
            small, or the model is not of this package.
    """
    parser = HfArgumentParser((AnalysisArguments, TestSetArguments))
    arguments, test_set_arguments = parser.parse_args_into_dataclasses(argv)

    from lvnar_hf.jobs.environment import describe_machine, describe_versions
    from lvnar_hf.words_lvnar import is_unspaced
    from training.quality.confidence import generate_refined, measure_calibration, score_words
    from training.quality.oracles import oracle_scores
    from training.quality.refinement import analyse_refinement, load_lvnar
    from training.reports.examples import choose_examples, describe_example, render_html, render_markdown
    from training.reports.figures import plot_elbo_and_bleu, plot_reliability, plot_stopping, save_figure

    folder = refuse_existing(arguments.output_folder, arguments.overwrite, "--output_folder")
    test_set = load_test_set(test_set_arguments)
    sources, references = test_set.source_texts, test_set.target_texts
    model, tokenizer = load_lvnar(refuse_missing_folder(arguments.model))
    measured, refinements, elbos = analyse_refinement(
        *(model, tokenizer, sources, references),
        *(arguments.max_steps, arguments.num_elbo_samples, arguments.seed, arguments.batch_size),
    )
    unspaced = is_unspaced(references)
    data = {
        "model": arguments.model,
        "num_parameters": model.num_parameters(),
        "test_set": test_set.name,
        "max_steps": arguments.max_steps,
        "num_elbo_samples": arguments.num_elbo_samples,
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        **measured,
        "oracles": oracle_scores(model, tokenizer, sources, references, arguments.batch_size),
        "examples_by_subword": unspaced,
        "examples": [
            {
                "line": test_set.line_numbers[i],
                "source": sources[i],
                "reference": references[i],
                **describe_example(tokenizer, refinements[i], elbos.get(i), unspaced),
            }
            for i in choose_examples(refinements, arguments.num_examples)
        ],
        "versions": describe_versions(),
        "machine": describe_machine(model.device),
    }
    if model.calibration is not None:
        limit = model.config.max_position_embeddings
        generate = generate_refined(model, tokenizer)
        scored = score_words(generate, tokenizer, sources, references, arguments.batch_size, limit)
        data["confidence"] = measure_calibration(scored, model.calibration)
    write_json(folder / "analysis.json", data)
    save_figure(plot_elbo_and_bleu(data), folder / "elbo_and_bleu.png")
    save_figure(plot_stopping(data), folder / "stopping.png")
    if "confidence" in data:
        save_figure(plot_reliability({**data, **data["confidence"]}), folder / "reliability.png")
        print(f"confidence of words: expected calibration error {data['confidence']['error']:.3f}")
    (folder / "examples.md").write_text(render_markdown(data), "utf-8")
    (folder / "examples.html").write_text(render_html(data), "utf-8")
    for row in data["steps"]:
        print(f"step {row['step']}: ELBO {row['elbo']:.4f} nats per target token, BLEU {row['bleu']:.2f}")
    for given, bleu in data["oracles"]["bleu"].items():
        print(f"one pass, given {given}: BLEU {bleu:.2f}")
    print(f"BLEU {data['bleu_signature']}; written to {folder}")
    return data


if __name__ == "__main__":
    main()
