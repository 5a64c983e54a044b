"""Make a model's shortlist, and measure what it leaves out.

    python training/shortlist.py --config training/configs/tatoeba_en_de.yaml --model model_cards/lvnar-tatoeba-en-de \
        --results_file runs/shortlist.json

Writes `shortlist.safetensors` into the model's folder, see `lvnar_hf.engines.shortlist`. The candidates of a source
token are the target tokens that IBM Model 1 (Brown et al., 1993) aligns with it most often in the recipe's training
text. The least confidence is such that a given share of the target positions has the whole vocabulary; it is set on one
half of the validation sources, and what is missed is counted on the other, both after one refinement step. With
alignment "ctc" a position is a cell, and blank, which no training text has, is always tried.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.outputs import refuse_existing, refuse_missing_folder
from training.data.evaluation_sets import evenly_spaced
from training.recipe import parse_recipe
from training.sections import DataArguments


@dataclass
class ShortlistArguments:
    """Section `shortlist`: the model, and how long the lists are."""

    model: str = field(metadata={"help": "model folder or Hub id"})
    output_folder: str | None = field(
        default=None, metadata={"help": "shortlist.safetensors goes there; by default into the model's own folder"}
    )
    results_file: str | None = field(default=None, metadata={"help": "JSON with what was measured"})
    num_pairs: int = field(default=200_000, metadata={"help": "training pairs that are aligned, evenly spaced"})
    num_iterations: int = field(default=5, metadata={"help": "of IBM Model 1"})
    num_frequent: int = field(default=256, metadata={"help": "most frequent target tokens, tried for every sentence"})
    num_candidates: int = field(default=64, metadata={"help": "target tokens for each source token"})
    compared_candidates: list[int] = field(
        default_factory=lambda: [16, 32, 128], metadata={"help": "other numbers of candidates, measured alone"}
    )
    whole_share: float = field(default=0.01, metadata={"help": "share of positions with the whole vocabulary"})
    num_sentences: int = field(default=1000, metadata={"help": "validation sources, evenly spaced"})
    overwrite: bool = field(default=False, metadata={"help": "write over output files"})

    def __post_init__(self) -> None:
        if not 0 <= self.whole_share < 1:
            raise ValueError(f"whole_share is {self.whole_share}; it must be at least 0 and less than 1.")
        for name in ("num_pairs", "num_iterations", "num_frequent", "num_candidates", "num_sentences"):
            if getattr(self, name) < (2 if name == "num_sentences" else 1):
                raise ValueError(f"{name} is {getattr(self, name)}; that is too few.")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Make the shortlist, print one JSON line; return what is in it.

    Raises:
        FileExistsError: there is an output file, and `--overwrite` is not given.
        ValueError: --model is no folder, and no --output_folder is given; and what the recipe's text is refused for.
    """
    data, arguments = parse_recipe({"data": DataArguments, "shortlist": ShortlistArguments}, argv)

    import torch

    import lvnar_hf  # noqa: F401  (registers model and tokenizer)
    from lvnar_hf.engines.shortlist import FILE, Shortlist
    from lvnar_hf.jobs.environment import describe_machine, describe_versions
    from lvnar_hf.loading import load_model, load_tokenizer
    from training.data.corpora import load_pairs
    from training.speed.shortlists import aligned_counts, calibrate, make_shortlist, measure, states_of

    refuse_missing_folder(arguments.model)
    folder = Path(arguments.output_folder or arguments.model)
    if arguments.output_folder is None and not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give --output_folder.")
    refuse_existing(folder / FILE, arguments.overwrite, "--output_folder")
    if arguments.results_file is not None:
        refuse_existing(arguments.results_file, arguments.overwrite, "--results_file")
    model: Any = load_model(arguments.model, dtype=torch.float32).eval()
    tokenizer: Any = load_tokenizer(arguments.model)
    config = model.config
    target_size = config.decoder_vocab_size

    sources, targets = load_pairs(data, "train").columns()
    chosen = evenly_spaced(len(sources), min(arguments.num_pairs, len(sources)))
    source_ids = tokenizer([sources[i] for i in chosen], verbose=False)["input_ids"]
    target_ids = tokenizer(text_target=[targets[i] for i in chosen], verbose=False)["input_ids"]
    pairs = list(zip(source_ids, target_ids, strict=True))
    counts = aligned_counts(pairs, config.vocab_size, target_size, arguments.num_iterations)
    frequencies = torch.bincount(torch.tensor([i for ids in target_ids for i in ids]), minlength=target_size)
    frequent = frequencies.topk(min(arguments.num_frequent, target_size)).indices

    valid = load_pairs(data, "valid")["source"]
    texts = [valid[i] for i in evenly_spaced(len(valid), min(arguments.num_sentences, len(valid)))]
    calibration, held_out = (list(states_of(model, tokenizer, texts[half::2])) for half in (0, 1))

    def of_size(num_candidates: int) -> Shortlist:
        shortlist = make_shortlist(counts, frequent, num_candidates, config.pad_token_id)
        return calibrate(shortlist, calibration, config, arguments.whole_share)

    folder.mkdir(parents=True, exist_ok=True)
    file = of_size(arguments.num_candidates).save(folder)
    sizes = sorted({arguments.num_candidates, *arguments.compared_candidates})
    result = {
        "model": arguments.model,
        "file": file.name,
        "num_pairs": len(pairs),
        "num_sentences": len(texts[1::2]),
        "num_positions": sum(len(states.logits) for states in held_out),
        "alignment": config.alignment,
        "target_vocab_size": target_size,
        "num_frequent": len(frequent),
        "num_candidates": arguments.num_candidates,
        "candidates": {str(size): measure(of_size(size), held_out, config) for size in sizes},
        "versions": describe_versions(),
        "machine": describe_machine(torch.device("cpu")),
    }
    print(json.dumps(result))
    if arguments.results_file is not None:
        write_json(Path(arguments.results_file), result)
    return result


if __name__ == "__main__":
    main()
