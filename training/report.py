"""Write the tables of the README and the model cards from the results that stand in JSON beside each card.

    python training/report.py

The tables stand between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; no number in them is typed by hand.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

ROOT = Path(__file__).resolve().parents[1]
CARD_FOLDER = ROOT / "model_cards" / "lvnar-tatoeba-en-de"


def quality_table() -> str:
    """BLEU and chrF on the test set, ELBO on test and validation set, by refinement step."""
    test = json.loads((CARD_FOLDER / "results" / "test.json").read_text("utf-8"))
    valid = json.loads((CARD_FOLDER / "results" / "valid.json").read_text("utf-8"))
    rows = [
        "| refinement steps | BLEU, test | chrF, test | BLEU, valid | ELBO, valid | mean steps taken |",
        "|---|---|---|---|---|---|",
    ]
    for on_test, on_valid in zip(test["results"], valid["results"], strict=True):
        rows.append(
            f"| {on_test['num_refinement_steps']} | {on_test['bleu']['score']:.1f} | {on_test['chrf']['score']:.1f} "
            f"| {on_valid['bleu']['score']:.1f} | {on_valid['elbo_of_translations']['elbo']:.3f} "
            f"| {on_test['elbo_of_translations']['mean_steps_taken']:.2f} |"
        )
    signature = test["results"][0]["bleu"]["signature"]
    return "\n".join(rows) + (
        f"\n\n{test['num_sentences']:,} test and {valid['num_sentences']:,} validation sentences of this project's own "
        f"Tatoeba splits, English to German; {test['num_parameters'] / 1e6:.1f} M parameters, trained on raw data (no "
        f"distillation), one latent, no rescoring. BLEU: `{signature}`; chrF: "
        f"`{test['results'][0]['chrf']['signature']}`. ELBO: nats a token of the model's own translation, "
        f"{valid['num_elbo_samples']} latent samples a sentence; higher is better."
    )


def latency_table() -> str:
    """Latency at the paper's sizes beside the autoregressive baseline."""
    benchmark = json.loads((CARD_FOLDER / "results" / "latency_paper_sizes.json").read_text("utf-8"))
    rows = ["| system | ms a sentence (median) | std | speed-up |", "|---|---|---|---|"]
    for name, row in benchmark["systems"].items():
        speed_up = row["speed_up_over_baseline"]
        rows.append(f"| {name} | {row['median_ms']:.0f} | {row['std_ms']:.0f} | {speed_up:.1f}x |")
    machine = benchmark["machine"]
    return "\n".join(rows) + (
        f"\n\nSpeed-up over {benchmark['baseline']}. {benchmark['what'][0].upper()}{benchmark['what'][1:]}; `generate` "
        f"alone, in one run on {machine['threads']} threads of {machine['processor']}; "
        f"torch {benchmark['versions']['torch']}, transformers {benchmark['versions']['transformers']}."
    )


def training_table() -> str:
    """Validation after each epoch of the run that made the model."""
    lines = [json.loads(line) for line in (CARD_FOLDER / "results" / "log.jsonl").read_text("utf-8").splitlines()]
    rows = [
        "| epoch | step | ELBO | token NLL | KL | length NLL | length accuracy | BLEU, 0 steps | BLEU, 1 step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        if line["kind"] == "valid":
            parts = " | ".join(f"{line[name]:.3f}" for name in ("elbo", "token_nll", "kl", "length_nll"))
            bleu = " | ".join(f"{line[f'bleu_{steps}_steps']:.1f}" for steps in (0, 1))
            rows.append(f"| {line['epoch'] + 1} | {line['step']} | {parts} | {line['length_accuracy']:.2f} | {bleu} |")
    return (
        "\n".join(rows) + "\n\nNats a target token on the 2,000 validation pairs; BLEU (13a, cased) on the first 500, "
        "which are its shortest (since this run the 500 are taken at even distances)."
    )


def training_step_table() -> str:
    """Where the time of a training step goes."""
    step = json.loads((CARD_FOLDER / "results" / "training_step.json").read_text("utf-8"))
    total = sum(step["seconds"].values())
    rows = ["| part of the step | seconds | share |", "|---|---|---|"]
    rows += [f"| {part} | {seconds:.3f} | {seconds / total:.0%} |" for part, seconds in step["seconds"].items()]
    rows += ["", "| operator | share of the step |", "|---|---|"]
    rows += [f"| `{name}` | {share:.0%} |" for name, share in step["operator_shares"].items() if share >= 0.02]
    return "\n".join(rows) + (
        f"\n\n{step['target_tokens_per_second']:,.0f} target tokens a second: {step['num_parameters'] / 1e6:.1f} M "
        f"parameters, {step['num_sentences']} sentences of {step['sentence_length']} tokens a step, float32, "
        f"{step['machine']['threads']} threads of {step['machine']['processor']}, torch {step['versions']['torch']}."
    )


def teacher_table() -> str:
    """The teacher on the test set, beside what the shipped student reaches there."""
    teacher = json.loads((CARD_FOLDER / "results" / "teacher_test.json").read_text("utf-8"))
    student = json.loads((CARD_FOLDER / "results" / "test.json").read_text("utf-8"))
    rows = ["| model | decoding | BLEU | chrF |", "|---|---|---|---|"]
    rows += [
        f"| teacher, {teacher['num_parameters'] / 1e6:.1f} M parameters | beam {result['num_beams']} "
        f"| {result['bleu']['score']:.1f} | {result['chrf']['score']:.1f} |"
        for result in teacher["results"]
    ]
    rows += [
        f"| student on raw text, {student['num_parameters'] / 1e6:.1f} M parameters | "
        f"{result['num_refinement_steps']} steps | {result['bleu']['score']:.1f} | {result['chrf']['score']:.1f} |"
        for result in student["results"]
    ]
    signatures = teacher["results"][0]
    return "\n".join(rows) + (
        f"\n\n{teacher['num_sentences']:,} test sentences. BLEU: `{signatures['bleu']['signature']}`; chrF: "
        f"`{signatures['chrf']['signature']}`."
    )


def teacher_training_table() -> str:
    """The teacher's validation after each epoch."""
    lines = [json.loads(s) for s in (CARD_FOLDER / "results" / "teacher_log.jsonl").read_text("utf-8").splitlines()]
    rows = ["| epoch | step | nats a token | token accuracy | BLEU, beam 1 |", "|---|---|---|---|---|"]
    rows += [
        f"| {line['epoch'] + 1} | {line['step']} | {line['token_nll']:.3f} | {line['token_accuracy']:.3f} "
        f"| {line['bleu_beam_1']:.1f} |"
        for line in lines
        if line["kind"] == "valid"
    ]
    return "\n".join(rows) + "\n\nBLEU (13a, cased) on 500 validation sentences at even distances."


def distillation_table() -> str:
    """What the teacher made of the training text."""
    result = json.loads((CARD_FOLDER / "results" / "distillation.json").read_text("utf-8"))
    (engine,), counts = result["engines"], result["counts"]
    degenerate = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts["degenerate"].items() if count)
    return (
        f"{counts['pairs']:,} sentences by {engine['engine']} {engine['version']} ({engine['compute_type']}), beam "
        f"{result['num_beams']}, length penalty {result['length_penalty']}: {result['seconds'] / 60:.0f} minutes, "
        f"{result['sentences_per_second']:.0f} sentences/s. Degenerate: {degenerate}; on_degenerate: "
        f"{result['on_degenerate']}."
    )


def teacher_engines_table() -> str:
    """The teacher's engines on the same sentences."""
    result = json.loads((CARD_FOLDER / "results" / "teacher_engines.json").read_text("utf-8"))
    rows = ["| engine | sentences/s | times as fast | same translations | BLEU |", "|---|---|---|---|---|"]
    rows += [
        f"| {name} | {engine['sentences_per_second']:.0f} | {engine['times_as_fast_as_transformers']:.1f} "
        f"| {engine['equal_to_transformers_early_stopping']:.1%} | {engine['bleu']['score']:.2f} |"
        for name, engine in result["engines"].items()
    ]
    return "\n".join(rows) + (
        f"\n\nBeam {result['num_beams']}, {result['sentences']} training sentences, batches of "
        f"{result['max_batch_tokens']:,} source tokens, medians of 3 rounds in turns, "
        f"{result['machine']['threads_per_process']} threads of {result['machine']['processor']}. The same "
        f"translations: as transformers with `early_stopping=True`, CTranslate2's rule. BLEU on training sentences, "
        f"only to compare: `{result['engines']['transformers']['bleu']['signature']}`."
    )


TABLES: dict[str, Callable[[], str]] = {
    "quality": quality_table,
    "latency": latency_table,
    "training": training_table,
    "training_step": training_step_table,
    "teacher": teacher_table,
    "teacher_training": teacher_training_table,
    "distillation": distillation_table,
    "teacher_engines": teacher_engines_table,
}
DOCUMENTS = (ROOT / "README.md", CARD_FOLDER / "README.md", ROOT / "EXPERIMENTS.md")


def render(document: str) -> str:
    """The document with each marked table written anew.

    Raises:
        ValueError: for a marker of a table that is not known.
    """

    def replace(match: re.Match) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"There is no table {name}; known are {', '.join(TABLES)}.")
        return f"<!-- {name}: begin -->\n{TABLES[name]()}\n<!-- {name}: end -->"

    return re.sub(r"<!-- (?P<name>\w+): begin -->.*?<!-- (?P=name): end -->", replace, document, flags=re.DOTALL)


def main() -> None:
    """Render every document in place."""
    for path in DOCUMENTS:
        path.write_text(render(path.read_text("utf-8")), "utf-8")
        print(f"rendered {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
