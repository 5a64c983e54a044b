"""The tables of README, cards and docs/EXPERIMENTS.md, each made of the JSON in one folder of results.

A table is a function of a folder, `model_cards/<model id>/results`; no number stands in its text.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from training.reports.results import (
    ELBO_PARTS_SHOWN,
    has_result,
    machine_of,
    name_signatures,
    name_steps,
    name_test_set,
    read_result,
    show_score,
    table,
)
from training.reports.speed_tables import (
    loading_table,
    pages_table,
    render_brief,
    render_summary,
    server_table,
    time_budget_table,
    translate_table,
)
from training.reports.summary import summary_table
from training.reports.training_tables import TRAINING_TABLES


def _other_bleu(result: dict[str, Any]) -> tuple[str, str]:
    """Key and heading of the paper's BLEU for this corpus."""
    return ("bleu_moses", "BLEU, Moses tok.") if "bleu_moses" in result else ("bleu_intl_lowercased", "BLEU, intl lc")


def quality_table(results: Path) -> str:
    """The test set's scores by refinement step, and the ELBO of its references."""
    test = read_result(results, "test")
    key, heading = _other_bleu(test["results"][0])
    rows = []
    for result in test["results"]:
        repeated = result["repeated_tokens"]
        rows.append(
            (
                result["num_refinement_steps"],
                f"{result['mean_steps_taken']:.2f}",
                show_score(result["bleu"]),
                show_score(result[key]),
                show_score(result["chrf"]),
                f"{result['length_ratio']:.3f}",
                f"{repeated['before_removal']['words']:.1%} → {repeated['after_removal']['words']:.1%}",
            )
        )
    header = ("steps", "taken, mean", "BLEU", heading, "chrF", "length ratio", "repeated words, before → after removal")
    elbo = test["elbo_of_references"]
    parts = ", ".join(f"{name} {elbo[key]:.3f}" for name, key in ELBO_PARTS_SHOWN.items() if key in elbo)
    repeated_in_references = test["results"][0]["repeated_words_in_references"]
    return table(header, rows) + (
        f"\n\n{name_test_set(test)}; {test['num_parameters'] / 1e6:.1f} M parameters; one latent, no rescoring. ± is "
        f"half the 95 % bootstrap interval. Repeated words in the references: {repeated_in_references:.1%}. "
        f"{name_signatures(test['results'][0])}. ELBO of the references: {elbo['elbo']:.3f} nats per target token "
        f"({parts}), "
        f"{elbo['num_samples']} latent samples per sentence."
    )


def everyday_table(results: Path) -> str:
    """The thirty everyday sentences, and whether somebody who read the translation found it adequate."""
    everyday = read_result(results, "everyday")
    sentences = everyday["sentences"]
    rows = [(s["source"], s["translation"], "" if s["is_adequate"] else "inadequate") for s in sentences]
    num_adequate = sum(s["is_adequate"] for s in sentences)
    return table(("source", f"{everyday['num_refinement_steps']} step", "by reading"), rows) + (
        f"\n\n{num_adequate} of {len(rows)} adequate: the sense is there, if not every ending."
    )


def spans_table(results: Path) -> str:
    """Numbers, names, prices and times in sentences written for it, with and without the protection of text."""
    spans = read_result(results, "spans")
    return table(
        ("preserve_format", "spans", "in the translation"),
        [(key, f"{part['num_spans']}", f"{part['share']:.1%}") for key, part in spans.items()],
    )


def length_table(results: Path) -> str:
    """BLEU by source length, a column for each number of steps."""
    test = read_result(results, "test")
    of_steps = [result["bleu_by_source_length"] for result in test["results"]]
    header = ["source tokens", "sentences"]
    header += [f"BLEU, {name_steps(result['num_refinement_steps'])}" for result in test["results"]]
    rows = []
    for buckets in zip(*of_steps, strict=True):
        shortest, longest = buckets[0]["source_tokens"]
        name = f"{shortest} or more" if longest is None else f"{shortest} to {longest}"
        rows.append((name, buckets[0]["num_sentences"], *(f"{bucket['bleu']:.1f}" for bucket in buckets)))
    return table(header, rows)


def systems_table(results: Path) -> str:
    """Teacher, student on raw text and student on distilled text, on the same test set."""
    rows, shown = [], None
    for name, what in (
        ("teacher_test", "teacher"),
        ("teacher_test_back", "teacher, back-translation"),
        ("teacher_test_12_1", "12-1, autoregressive, distilled text"),
        ("test_raw", "student, raw text"),
        ("test", "student, distilled text"),
        ("test_10_1", "10-1 layers, distilled text"),
    ):
        if not has_result(results, name):
            continue
        shown = read_result(results, name)
        key, heading = _other_bleu(shown["results"][0])
        for result in shown["results"]:
            is_searched = "num_beams" in result
            decoding = f"beam {result['num_beams']}" if is_searched else name_steps(result["num_refinement_steps"])
            scores = (show_score(result[part]) for part in ("bleu", key, "chrf"))
            rows.append((f"{what}, {shown['num_parameters'] / 1e6:.1f} M", decoding, *scores))
    if shown is None:
        raise FileNotFoundError(f"There is neither teacher_test.json nor test.json in {results}.")
    return table(("model, parameters", "decoding", "BLEU", heading, "chrF"), rows) + (
        f"\n\n{name_test_set(shown)}. {name_signatures(shown['results'][0])}."
    )


def refinement_table(results: Path) -> str:
    """ELBO and BLEU of the model's own translations by refinement step, and where sentences stop."""
    analysis = read_result(results, "analysis")
    shares = {row["step"]: row["share"] for row in analysis["stopping"]["steps"]}
    rows = [
        (row["step"], f"{row['elbo']:.4f}", f"{row['bleu']:.2f}", f"{shares[row['step']]:.1%}" if row["step"] else "")
        for row in analysis["steps"]
    ]
    rest = analysis["stopping"]["not_converged"]["share"]
    return table(("step", "ELBO", "BLEU", "stop here"), rows) + (
        f"\n\n{analysis['num_sentences']:,} sentences of {analysis['test_set']}. ELBO: nats per token of the "
        f"model's own translation, {analysis['num_elbo_samples']} latent samples per sentence. "
        f"{rest:.1%} still change at the last step. BLEU: `{analysis['bleu_signature']}`."
    )


def elbo_speed_table(results: Path) -> str:
    """Many samples at once against as many passes."""
    result = read_result(results, "elbo_speed")
    names = {"1": "sentence by sentence", "64": "in batches of 64"}
    rows = [
        (
            names[size],
            f"{result['num_samples'] * row['seconds_one_pass']:.1f}",
            f"{row['seconds_many_samples']:.1f}",
            f"{row['times_as_fast']:.1f}",
        )
        for size, row in result["batch_sizes"].items()
    ]
    # As many passes, sentence by sentence, against the samples in batches: the two as they would be used.
    passes = result["num_samples"] * result["batch_sizes"]["1"]["seconds_one_pass"]
    fastest = passes / result["batch_sizes"]["64"]["seconds_many_samples"]
    header = ("", f"{result['num_samples']} passes, s", f"{result['num_samples']} samples at once, s", "times as fast")
    return table(header, rows) + (
        f"\n\n{result['num_sentences']} sentences of {result['test_set']}, medians of {result['num_repeats']} turns, "
        f"{machine_of(result)}. Samples at once in batches of 64 against passes sentence by sentence: {fastest:.1f} "
        "times as fast."
    )


def oracles_table(results: Path) -> str:
    """Where points are lost: what one pass scores when told the reference's length or latents."""
    oracles = read_result(results, "analysis")["oracles"]
    rows = [(given, f"{bleu:.2f}") for given, bleu in oracles["bleu"].items()]
    return table(("given of the reference", "BLEU, 0 steps"), rows) + (
        f"\n\n{oracles['num_sentences']:,} test sentences. The predicted length is the reference's in "
        f"{oracles['length_accuracy']:.0%}, and {oracles['mean_length_difference']:+.2f} tokens off on the mean. BLEU: "
        f"`{oracles['bleu_signature']}`."
    )


def training_step_table(results: Path) -> str:
    """Where the time of a training step goes."""
    step = read_result(results, "training_step")
    total = sum(step["seconds"].values())
    parts = [(part, f"{seconds:.3f}", f"{seconds / total:.0%}") for part, seconds in step["seconds"].items()]
    operators = [(f"`{name}`", f"{share:.0%}") for name, share in step["operator_shares"].items() if share >= 0.02]
    names = {"torch": "torch's", "fast": "of training on the CPU (`training/loop/cpu_operators.py`)"}
    ways = [
        (names[way], f"{of['step']:.3f}", *(f"{1 - of[f'without_{part}'] / of['step']:.0%}" for part in _LEFT_OUT))
        for way, of in step.get("operators", {}).items()
    ]
    number_type = {"bf16": "bfloat16 autocast"}.get(step.get("mixed_precision", "no"), "float32")
    return "\n\n".join(
        (
            table(("part of the step", "seconds", "share"), parts),
            table(("operator", "share of the step"), operators),
            *([table(("attention and dropout", "seconds per step", *_LEFT_OUT), ways)] if ways else []),
            f"{step['target_tokens_per_second']:,.0f} target tokens per second: {step['num_parameters'] / 1e6:.1f} M "
            f"parameters, alignment {step.get('alignment', 'length')}, {step['num_sentences']} sentences of "
            f"{step['sentence_length']} tokens per step, {number_type}, {machine_of(step)}, torch "
            f"{step['versions']['torch']}.",
        )
    )


_LEFT_OUT = ("attention", "dropout")


def back_translation_table(results: Path) -> str:
    """Validation scores of a teacher, and of those that went on from it with back-translated pairs and without."""
    rows, shown = [], {}
    for name, what in (("start", "that both begin with"), ("no_back", "without"), ("back", "with")):
        shown = read_result(results, f"teacher_valid_{name}")
        for result in shown["results"]:
            scores = (f"{result[part]['score']:.1f}" for part in ("bleu", "chrf"))
            rows.append((what, f"beam {result['num_beams']}", *scores))
    return table(("teacher", "decoding", "BLEU", "chrF"), rows) + (
        f"\n\n{name_test_set(shown)}. {name_signatures(shown['results'][0])}."
    )


def distillation_table(results: Path, name: str = "distillation") -> str:
    """What the teacher made of the training text; one sentence, in fact."""
    result = read_result(results, name)
    (engine,), counts = result["engines"], result["counts"]
    degenerate = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts["degenerate"].items() if count)
    seconds = result["seconds"]
    duration = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    return (
        f"{counts['translated']:,} sentences by {engine['engine']} {engine['version']} ({engine['compute_type']}), "
        f"beam {result['num_beams']}, length penalty {result['length_penalty']}: {duration}, "
        f"{result['sentences_per_second']:,.0f} sentences/s. Degenerate: {degenerate or 'none'}; on_degenerate: "
        f"{result['on_degenerate']}."
    )


def teacher_engines_table(results: Path) -> str:
    """The teacher's engines on the same sentences."""
    result = read_result(results, "teacher_engines")
    num_rounds = len(result["engines"]["transformers"]["seconds"])
    rows = [
        (
            name,
            f"{engine['sentences_per_second']:.0f}",
            f"{engine['times_as_fast_as_transformers']:.1f}",
            f"{engine['equal_to_transformers_early_stopping']:.1%}",
            f"{engine['bleu']['score']:.2f}",
        )
        for name, engine in result["engines"].items()
    ]
    return table(("engine", "sentences/s", "times as fast", "same translations", "BLEU"), rows) + (
        f"\n\nBeam {result['num_beams']}, {result['sentences']} training sentences, batches of "
        f"{result['max_batch_tokens']:,} source tokens, medians of {num_rounds} rounds in turns, "
        f"{machine_of(result)}. The same translations: as transformers with `early_stopping=True`, CTranslate2's "
        "rule. BLEU on training sentences, only to compare: "
        f"`{result['engines']['transformers']['bleu']['signature']}`."
    )


def confidence_table(results: Path) -> str:
    """What the confidences of words are worth, beside the teacher's."""
    result = read_result(results, "confidence")
    systems = {f"this model, {name_steps(result['num_refinement_steps'])}": result}
    if result["teacher"]:
        systems["autoregressive teacher, greedy"] = result["teacher"]
    rows = []
    for name, measured in systems.items():
        lowest, of_sentences = measured["lowest_tenth"], measured["sentences"]
        rows.append(
            (
                *(name, f"{measured['wrong_share']:.1%}"),
                f"{measured['error_uncalibrated']:.3f} → {measured['error']:.3f}",
                f"{lowest['share_of_wrong_words']:.1%} of {lowest['largest_possible']:.1%}",
                f"{lowest['wrong_share']:.1%}",
                f"{of_sentences['error_uncalibrated']:.3f} → {of_sentences['error']:.3f}",
                f"{of_sentences['rank_correlation']:.2f}",
            )
        )
    header = (
        *(
            "",
            "wrong words",
            "error of words, raw → calibrated",
            "wrong words in the lowest tenth, of the most possible",
        ),
        *("wrong in that tenth", "error of sentences", "rank correlation of sentences"),
    )
    calibrated = result["calibrated_on"]
    return table(header, rows) + (
        f"\n\n{result['num_sentences']:,} sentences of {result['test_set']}, {result['num_words']:,} words of this "
        f"model; calibrated on {calibrated['num_sentences']:,} others, each system by itself. A word is wrong that the "
        "one reference has not (as often), good or bad. Error: expected calibration error, ten bins of one width. The "
        "lowest tenth are the words with the lowest confidence; no more wrong ones fit into it than it has words. Of "
        "sentences, the confidence is compared with the share of their words that are right."
    )


def engine_quality_table(results: Path) -> str:
    """What other engines and smaller numbers cost in BLEU."""
    result = read_result(results, "engine_quality")
    all_steps = [row["num_refinement_steps"] for row in next(iter(result["engines"].values()))["results"]]
    header = ["engine", *(f"BLEU, {name_steps(steps)}" for steps in all_steps)]
    header += [f"other sentences, {name_steps(steps)}" for steps in all_steps]
    rows = []
    for name, engine in result["engines"].items():
        shares = [row["different_sentences"] / result["num_sentences"] for row in engine["results"]]
        rows.append(
            (name, *(f"{row['bleu']['score']:.2f}" for row in engine["results"]), *map("{:.1%}".format, shares))
        )
    signature = next(iter(result["engines"].values()))["results"][0]["bleu"]["signature"]
    return table(header, rows) + (
        f"\n\n{name_test_set(result)}; other sentences: than eager in float32; {machine_of(result)}. "
        f"BLEU: `{signature}`."
    )


def shortlist_table(results: Path) -> str:
    """What a shortlist leaves out, by the number of candidates."""
    result = read_result(results, "shortlist")
    positions = "cells" if result.get("alignment") == "ctc" else "target positions"
    rows = [
        (
            count,
            f"{row['mean_size']:,.0f}",
            f"{row['missed_without_check']:.2%}",
            f"{row['whole_share']:.2%}",
            f"{row['missed']:.2%}",
        )
        for count, row in sorted(result["candidates"].items(), key=lambda item: int(item[0]))
    ]
    header = (
        *("candidates a source token", "tokens tried", "missed without check", "whole vocabulary"),
        "missed",
    )
    return "\n\n".join(
        (
            table(header, rows),
            f"{result['num_positions']:,} {positions} of {result['num_sentences']} validation sentences, after one "
            f"step; {result['target_vocab_size']:,} target tokens, of which the {result['num_frequent']} most frequent "
            f"are always tried. The shortlist that ships has {result['num_candidates']} candidates.",
        )
    )


def speed_brief_table(results: Path) -> str:
    """Random weights at the paper's sizes: latency, speed-up and throughput."""
    return render_brief(read_result(results, "benchmark"), "random")


def speed_table(results: Path, name: str = "benchmark") -> str:
    """Random weights at the paper's sizes, or others, beside the autoregressive baselines, with crossovers."""
    return render_summary(read_result(results, name), "random")


def speed_trained_table(results: Path, name: str = "benchmark") -> str:
    """The trained models on real sentences, quality beside speed; nothing where none was timed."""
    benchmark = read_result(results, name)
    return render_summary(benchmark, "trained") if "trained" in benchmark["modes"] else ""


TABLES: dict[str, Callable[[Path], str]] = {
    "summary": summary_table,
    "quality": quality_table,
    "length": length_table,
    "everyday": everyday_table,
    "spans": spans_table,
    "systems": systems_table,
    "refinement": refinement_table,
    "oracles": oracles_table,
    "elbo_speed": elbo_speed_table,
    "confidence": confidence_table,
    "server": server_table,
    "pages": pages_table,
    "loading": loading_table,
    "translate": translate_table,
    "time_budget": time_budget_table,
    "engine_quality": engine_quality_table,
    "shortlist": shortlist_table,
    "speed_brief": speed_brief_table,
    "speed": speed_table,
    "speed_ctc": partial(speed_table, name="benchmark_ctc"),
    "speed_ctc_shallow": partial(speed_table, name="benchmark_ctc_shallow"),
    "speed_trained": speed_trained_table,
    "speed_length": partial(speed_trained_table, name="benchmark_trained"),
    **TRAINING_TABLES,
    "training_step": training_step_table,
    "distillation": distillation_table,
    "distillation_back": partial(distillation_table, name="distillation_back"),
    "back_translation": back_translation_table,
    "teacher_engines": teacher_engines_table,
}
