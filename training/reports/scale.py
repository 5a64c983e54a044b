"""The tables of docs/SCALE.md, from what was counted (`training/speed/scale.json`) and the benchmarks of the cards."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from training.reports.results import name_steps, read_result, table
from training.speed.scale import (
    BATCHES_PER_STEP,
    CARDS,
    FAST_CALL,
    GPUS_PER_MACHINE,
    NUM_PAIRS,
    PAIR_SOURCES,
    PEAK_SHARES,
    PRICE_SOURCES,
    THREAD_PRICE,
    THREADS_PER_MACHINE,
    TRANSLATION_TOKENS,
    Card,
    Range,
    memory,
    of_a_batch,
    search_seconds,
    training_step,
    translation,
)

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "training" / "speed" / "scale.json"
CONFIGS = ROOT / "training" / "configs"
CARD_FOLDERS = ROOT / "model_cards"
RECIPES = {name: CONFIGS / f"{name}.yaml" for name in NUM_PAIRS}
CORPORA = {"wmt14_en_de": "WMT14 En-De", "aspec_ja_en": "ASPEC Ja-En"}
CTC_RECIPE = CONFIGS / "tatoeba_en_de_ctc.yaml"
CTC_KEYS = ("alignment", "upsampling_ratio", "carries_source_states", "initial_glancing_ratio", "final_glancing_ratio")
SEEN_LOG = CARD_FOLDERS / "lvnar-tatoeba-en-de" / "results" / "log_sprint.jsonl"
TIMED_MODEL = "lvnar-tatoeba-en-de-length"
BENCHMARKS = {TIMED_MODEL: "paper's sizes, newstest2014", "lvnar-tatoeba-ja-en-length": "shipped size, Tatoeba"}
MODELS = {"teacher": "teacher", "length": "student, length", "ctc": "student, ctc"}
LARGER = "64, larger"
# GPUs, and how many times the recipe's batch a step has.
WAYS = {"1 GPU": (1, 1), "8 GPUs": (8, 1), "64 GPUs": (64, 1), LARGER: (64, 8)}
STEPS = (0, 1)
BILLION = 1e9


def alignments() -> dict[str, dict[str, Any]]:
    """What each student has in place of the recipe's keys: nothing, or what the recipe with CTC says of it."""
    sections = yaml.safe_load(CTC_RECIPE.read_text("utf-8"))
    keys = {**sections["model"], **sections["training"]}
    return {"length": {}, "ctc": {key: keys[key] for key in CTC_KEYS}}


class _Counted:
    """What was counted, and what follows from it."""

    def __init__(self) -> None:
        self.result = json.loads(RESULT.read_text("utf-8"))
        self.seen = self.result["seen"]
        self.slow_call = self.seen["seconds_per_step"] / self.seen["calls"]

    def models(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Recipe, heading and counts of each model."""
        for recipe, counted in self.result["recipes"].items():
            for name, what in MODELS.items():
                yield recipe, f"{CORPORA[recipe]}, {what}", counted["models"][name]

    def step(self, card: Card, model: dict[str, Any], num_gpus: int = BATCHES_PER_STEP, growth: int = 1) -> Range:
        return training_step(card, num_gpus, model, model["plan"], self.slow_call, growth)

    def translating(self, card: Card, alignment: str, num_steps: int) -> Range:
        """Sentences a second of a GPU."""
        counted = self.result["recipes"]["wmt14_en_de"]["translations"][alignment]
        sentences = TRANSLATION_TOKENS / counted["source_length"]
        return translation(card, counted, num_steps, sentences, self.slow_call).per(sentences)

    def fetched(self, recipe: str) -> float:
        """Pairs a second that one process fetches and collates: of the median batch, which is disturbed the least."""
        batches = self.result["input"][recipe]["batches"]
        return 1e3 * batches["pairs_per_batch"] / batches["median_milliseconds_a_batch"]

    def tokenised(self, recipe: str) -> float:
        """Pairs in a second of a core."""
        return self.result["input"][recipe]["tokenising"]["pairs_per_cpu_second"]


def _figure(value: float) -> str:
    """Two significant digits."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:.1f}" if rounded >= 1 else f"{rounded:g}"


def _show(values: Range) -> str:
    ends = [_figure(values.fast), _figure(values.slow)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _money(card: Card, num_gpus: int, hours: Range) -> str:
    return f"{_show(hours)} (${_show(hours.times(card.price * num_gpus))})"


def cards_table() -> str:
    """What is assumed of the cards, and of everything else."""
    counted = _Counted()
    header = ("card", "peak, TFLOPS", "memory, GB", "bandwidth, GB/s", "$ an hour", "exchange, GB/s", "read in")
    rows = [
        (
            card.name,
            f"{card.teraflops:g}",
            f"{card.memory:g}",
            f"{card.bandwidth:,.0f}",
            f"{card.price:.2f}",
            f"{card.link:g}, {card.network:g}",
            f"[page]({card.source})",
        )
        for card in CARDS
    ]
    offers = ", ".join(f"[{number}]({source})" for number, source in enumerate(PRICE_SOURCES, 1))
    pairs = ", ".join(f"[{CORPORA[name]}]({PAIR_SOURCES[name]}) {count:,}" for name, count in NUM_PAIRS.items())
    changed = ", ".join(f"`{key}: {json.dumps(value).strip(chr(34))}`" for key, value in alignments()["ctc"].items())
    upper, lower = PEAK_SHARES
    notes = (
        "Peak: bfloat16, without sparsity.",
        f"Price, assumed: a round figure among the offers of 2026 ({offers}). A CPU thread: ${THREAD_PRICE:.2f} an "
        "hour, assumed. Every cost is proportional to these.",
        f"Exchange, assumed: GB/s with which a GPU adds up gradients with others, in a machine of {GPUS_PER_MACHINE} "
        "and between such machines.",
        f"Fast end, assumed: {upper:.0%} of the peak, or {FAST_CALL * 1e6:.0f} µs for each call if that is longer, or "
        "the exchange if that is longer.",
        f"Slow end: {lower:.0%} of the peak, or {counted.slow_call * 1e6:.0f} µs for each call if that is longer, and "
        "then the exchange. The µs were seen: a step on an H200 took "
        f"{1e3 * counted.seen['seconds_per_step']:.0f} ms (median of a log, reading included), and has "
        f"{counted.seen['calls']:,} calls (counted).",
        f"Training pairs, as published: {pairs}. Lengths: newstest2014's, for ASPEC too (assumed).",
        f"Student, ctc: the recipe with {changed}, as our model that ships.",
    )
    return table(header, rows) + "\n\n" + "\n".join(f"- {note}" for note in notes)


def steps_table() -> str:
    """What was counted."""
    counted, rows = _Counted(), []
    for _, what, model in counted.models():
        plan, batch = model["plan"], of_a_batch(model, model["plan"])
        rows.append(
            (
                what,
                f"{model['parameters'] / 1e6:.1f}",
                f"{plan['sentences']:.0f}",
                f"{plan['source_length']:.0f}, {plan['target_length']:.0f}",
                f"{plan['target_tokens']:,.0f}",
                f"{batch['operations'] / 1e12:.2f}",
                f"{batch['operations'] / plan['target_tokens'] / 1e6:,.0f}",
                f"{model['calls']:,}",
            )
        )
    header = ("model", "parameters, M", "sentences", "longest source, target", "target tokens", "10¹² operations")
    versions = ", ".join(f"{name} {version}" for name, version in counted.result["versions"].items())
    return table((*header, "10⁶ a target token", "calls"), rows) + f"\n\nOf one batch of one process. {versions}."


def speeds_table() -> str:
    """Target tokens a second of one of eight GPUs."""
    counted, rows = _Counted(), []
    for _, what, model in counted.models():
        plan, cells = model["plan"], []
        operations = of_a_batch(model, plan)["operations"]
        for card in CARDS:
            bound = [plan["target_tokens"] * share * card.teraflops * 1e12 / operations for share in PEAK_SHARES]
            cells += [_show(Range(*bound)), _show(counted.step(card, model).per(plan["target_tokens"]))]
        rows.append((what, *cells))
    shares = " to ".join(f"{share:.0%}" for share in PEAK_SHARES)
    columns = [column for card in CARDS for column in (f"{card.name}, {shares} of the peak", "with calls, exchange")]
    return table(("target tokens/s of a GPU", *columns), rows)


def training_table() -> str:
    """Hours and dollars of each stage."""
    counted, rows = _Counted(), []
    for recipe, of_recipe in counted.result["recipes"].items():
        search, num_pairs = of_recipe["search"], NUM_PAIRS[recipe]
        for card in CARDS:
            for name, what in MODELS.items():
                model = of_recipe["models"][name]
                num_steps = model["max_steps"]
                if name != "teacher":  # and the epoch at zero budget
                    num_steps += num_pairs / (BATCHES_PER_STEP * model["plan"]["sentences"])
                hours = [counted.step(card, model, *way).times(num_steps / way[1] / 3600) for way in WAYS.values()]
                cells = [_money(card, way[0], taken) for way, taken in zip(WAYS.values(), hours, strict=True)]
                rows.append((CORPORA[recipe], card.name, what, *cells))
            batch = search_seconds(card, search, search["num_beams"], search["plan"], counted.slow_call)
            hours_of_one = batch.times(num_pairs / search["plan"]["sentences"] / 3600)
            cells = [_money(card, gpus, hours_of_one.times(1 / gpus)) for gpus, _ in WAYS.values()]
            rows.insert(-2, (CORPORA[recipe], card.name, f"distillation, beam {search['num_beams']}", *cells))
    benchmark = read_result(CARD_FOLDERS / TIMED_MODEL / "results", "benchmark")
    name = "marian 6-6, ctranslate2 int8, beam 3"
    speeds = benchmark["modes"]["random"]["systems"][name]["model"]["sentences_per_second"]
    speed = max(row["median"] for row in speeds.values())
    thread_hours = NUM_PAIRS["wmt14_en_de"] / speed / 3600 * benchmark["machine"]["threads"]
    return table(("corpus", "card", "stage", *WAYS), rows) + (
        f"\n\nHours, and dollars in brackets. Distillation on CPUs, from {speed:.0f} sentences/s measured on "
        f"{benchmark['machine']['threads']} threads ({name}, the paper's sizes): {_figure(thread_hours)} thread-hours "
        f"for {CORPORA['wmt14_en_de']}, ${_figure(thread_hours * THREAD_PRICE)}."
    )


def memory_table() -> str:
    """GB of a process, with and without FSDP."""
    ways = {"1 GPU": (1, False), "8 or more": (8, False), "8, FSDP": (8, True), "64, FSDP": (64, True)}
    rows = []
    for _, what, model in _Counted().models():
        of_batch = of_a_batch(model, model["plan"])["bytes"] / 1e9
        needs = [memory(model, model["plan"], *way) for way in ways.values()]
        rows.append((what, f"{of_batch:.1f}", *(f"{need:.1f}" for need in needs)))
    return table(("GB of a process", "of the batch", *ways), rows)


def reading_table() -> str:
    """Pairs a second that GPUs take, beside those that a process reads."""
    counted, rows, shares = _Counted(), [], []
    for recipe, what, model in counted.models():
        cells = []
        for card in CARDS:
            needed = counted.step(card, model).per(model["plan"]["sentences"])
            shares.append(needed.fast / counted.fetched(recipe))
            cells.append(_show(needed))
        rows.append((what, *cells, _figure(counted.fetched(recipe))))
    notes = [
        f"At the fast end a process that reads and computes in turn loses up to {max(shares):.0%} of its time, which "
        f"`loading_workers: {-(-max(shares) // 1):.0f}` hides."
    ]
    for recipe, measured in counted.result["input"].items():
        speed = counted.tokenised(recipe)
        notes.append(
            f"{CORPORA[recipe]}: {measured['text']}; {measured['mean_source_length']:.0f} and "
            f"{measured['mean_target_length']:.0f} tokens a pair. {_figure(speed)} pairs are read, cleaned and "
            f"tokenised in a second of a core: {_figure(NUM_PAIRS[recipe] / speed / 3600)} core-hours for all, once."
        )
    header = ("pairs/s that a GPU takes", *(card.name for card in CARDS), "a process reads")
    return table(header, rows) + "\n\n" + "\n".join(f"- {note}" for note in notes)


def gpu_table() -> str:
    """A billion sentences on GPUs."""
    counted, rows = _Counted(), []
    for alignment in alignments():
        for num_steps in STEPS:
            cells = []
            for card in CARDS:
                speed = counted.translating(card, alignment, num_steps)
                cells += [_show(speed), _money(card, 1, Range(1, 1).times(BILLION / 3600).over(speed))]
            rows.append((f"{alignment}, {name_steps(num_steps)}", *cells))
    columns = [column for card in CARDS for column in (f"{card.name}, sentences/s", "hours of 1 GPU")]
    a_core, fastest = 2 * counted.tokenised("wmt14_en_de"), CARDS[-1]  # a pair is two sentences
    taken = counted.translating(fastest, "length", 0).fast
    return table(("paper's sizes", *columns), rows) + (
        f"\n\nBatches of {TRANSLATION_TOKENS:,} source tokens, all steps taken. A core reads and tokenises at most "
        f"{_figure(a_core)} sentences/s (measured, above), an {fastest.name} takes up to {_figure(taken)}: "
        f"{-(-taken // a_core):.0f} cores would be busy with that alone, and others with making text of the ids "
        f"({_figure(BILLION / a_core / 3600)} core-hours to tokenise all)."
    )


def cpu_table() -> str:
    """The same on CPUs, from the benchmarks."""
    rows = []
    for model, what in BENCHMARKS.items():
        benchmark = read_result(CARD_FOLDERS / model / "results", "benchmark")
        for result in benchmark["modes"].values():
            for name, system in result["systems"].items():
                if " int8" not in name or not name.endswith(("0 steps", "1 step", "beam 1")):
                    continue
                speeds = {size: row["median"] for size, row in system["model"]["sentences_per_second"].items()}
                size = max(speeds, key=speeds.__getitem__)
                hours = BILLION / speeds[size] / 3600 * benchmark["machine"]["threads"]
                costs = (hours, hours * THREAD_PRICE, hours / THREADS_PER_MACHINE / 24)
                rows.append((what, name, _figure(speeds[size]), size, *map(_figure, costs)))
    header = ("models and sentences", "system", "sentences/s, 2 threads", "batch", "thread-hours", "$", "machine-days")
    return table(header, rows) + (
        f"\n\nMeasured at the batch size that was fastest, by the benchmarks of the cards; machines of "
        f"{THREADS_PER_MACHINE} threads, a process for every two, as fast as one alone (assumed)."
    )


SCALE_TABLES: dict[str, Callable[[], str]] = {
    "scale_cards": cards_table,
    "scale_steps": steps_table,
    "scale_speeds": speeds_table,
    "scale_training": training_table,
    "scale_memory": memory_table,
    "scale_reading": reading_table,
    "scale_gpu": gpu_table,
    "scale_cpu": cpu_table,
}
