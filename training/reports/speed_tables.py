"""Markdown from the benchmark's JSON; nothing is measured here, and no number is typed by hand but the paper's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.reports.results import name_steps, read_result, table

ROWS = dict[str, dict[str, Any]]

TITLES = {"random": "Random weights", "trained": "Trained models"}
# As the paper prints them: ASPEC Ja-En BLEU and speed-up, WMT14 En-De the same, ms a sentence (std) Ja-En and En-De.
PAPER_ROWS = (
    ("base Transformer, beam 3", "27.1", "1x", "26.1", "1x", "415 (159)", "602 (274)"),
    ("base Transformer, beam 1", "24.6", "1.1x", "25.6", "1.3x", "375 (150)", "461 (219)"),
    ("latent-variable NAR", "13.3", "18.0x", "11.8", "22.2x", "23 (2)", "27 (1)"),
    ("+ distillation", "25.2", "", "22.2", "", "", ""),
    ("+ 1 refinement step", "27.5", "7.8x", "24.1", "12.5x", "53 (2)", "48 (8)"),
    ("+ 3 refinement steps", "27.5", "5.1x", "24.2", "6.8x", "81 (24)", "88 (23)"),
    ("+ 5 refinement steps", "", "", "", "", "93 (36)", "90 (32)"),
)


def format_number(value: float | None) -> str:
    """Three digits that mean something."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _libraries(result: dict[str, Any], system: dict[str, Any]) -> float | None:
    """MiB in the system's peak that are not its own: on a GPU none."""
    return system["memory_mib"]["libraries"] if result["settings"]["device"] == "cpu" else 0.0


def render_speed(result: dict[str, Any]) -> str:
    """One row a system: quality if it is known, latency, speed-up, sentences per second by batch size, memory.

    Args:
        result: one mode of the JSON.
    """
    systems: ROWS = result["systems"]
    sizes = list(result["sentences"])
    has_quality = any("quality" in system for system in systems.values())
    header = ["system", *(["BLEU", "chrF", "mean steps"] if has_quality else [])]
    header += ["ms a sentence: mean (std)", "p50", "p95", "speed-up"] if "1" in sizes else []
    header += [f"sentences/s, batch {size}" for size in sizes] + [f"peak MiB, batch {size}" for size in sizes]
    rows = []
    for name, system in systems.items():
        row = [name]
        if has_quality:
            steps = system.get("mean_steps_taken")
            row += [f"{system['quality'][metric]['score']:.1f}" for metric in ("bleu", "chrf")]
            row.append("" if steps is None else f"{steps:.2f}")
        timed = system["model"]
        if "1" in sizes:
            latency = timed["latency_ms"]
            row += [f"{format_number(latency['mean'])} ({format_number(latency['std'])})"]
            row += [format_number(latency["p50"]), format_number(latency["p95"])]
            row.append(f"{timed['speed_up']:.1f}x" if "speed_up" in timed else "–")
        row += [format_number(timed["sentences_per_second"][size]["median"]) for size in sizes]
        libraries = _libraries(result, system)
        for size in sizes:
            peak = system["memory_mib"]["peak"][size]
            row.append(format_number(None if peak is None or libraries is None else peak - libraries))
        rows.append(row)
    return table(header, rows)


def render_crossovers(result: dict[str, Any]) -> str:
    """The batch size at which each autoregressive system overtakes each row of this model."""
    crossovers: dict[str, dict[str, int | None]] = result["crossovers"]
    others = list(next(iter(crossovers.values()), {}))
    if not others:
        return "Nothing to compare: only one kind of system was timed."
    largest = list(result["sentences"])[-1]
    rows = []
    for other in others:
        sizes = [row[other] for row in crossovers.values()]
        rows.append([other, *(f"not up to {largest}" if size is None else str(size) for size in sizes)])
    return table(["first at least as fast at batch size", *(f"than {own}" for own in crossovers)], rows)


def render_spread(result: dict[str, Any]) -> str:
    """Lowest and highest repeat of each figure, model only and, where it was timed, end to end."""
    sizes, parts = list(result["sentences"]), []
    kinds = {"model": "Model only", "end_to_end": "End to end"}
    for kind, title in kinds.items():
        if not all(kind in system for system in result["systems"].values()):
            continue
        header = ["system", *(["ms a sentence: mean [repeats]"] if "1" in sizes else [])]
        header += [f"sentences/s [repeats], batch {size}" for size in sizes]
        rows = []
        for name, system in result["systems"].items():
            row, timed = [name], system[kind]
            if "1" in sizes:
                latency = timed["latency_ms"]
                row.append(_range(latency["mean"], latency["lowest_mean"], latency["highest_mean"]))
            for size in sizes:
                speed = timed["sentences_per_second"][size]
                row.append(_range(speed["median"], speed["lowest"], speed["highest"]))
            rows.append(row)
        parts.append(f"{title}; in brackets the lowest and the highest repeat.\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def _range(value: float, lowest: float, highest: float) -> str:
    return f"{format_number(value)} [{format_number(lowest)}, {format_number(highest)}]"


def _repeats(ranges: Mapping[str, list[int]]) -> str:
    """For example "3 repeats", of all kinds of turn alike, or the fewest and the most of the systems."""
    if len(set(map(tuple, ranges.values()))) > 1:
        return "; ".join(f"{kind}: {_repeats({kind: ends})}" for kind, ends in ranges.items())
    fewest, most = next(iter(ranges.values()))
    return f"{fewest} repeats" if fewest == most else f"{fewest} to {most} repeats, the most of quick systems"


def render_conditions(benchmark: dict[str, Any], mode: str) -> str:
    """What was timed, on what, with what, and how: a paragraph."""
    result, machine = benchmark["modes"][mode], benchmark["machine"]
    settings = result["settings"]
    threads = f"{settings['threads']} thread{'s' * (settings['threads'] != 1)} of {machine['processor']}"
    where = f"{machine.get('gpu') or threads}, {machine.get('gpu_memory_gib') or machine['memory_gib']} GiB"
    versions = ", ".join(f"{name} {version}" for name, version in benchmark["versions"].items())
    sentences = "; ".join(
        f"batch {size}: {row['num_sentences']} sentences in {row['num_batches']} batches, on average "
        f"{row['mean_source_tokens']:.1f} source and {row['mean_target_tokens']:.1f} reference tokens, "
        f"{_repeats(row['num_rounds'])}"
        for size, row in result["sentences"].items()
    )
    lines = [
        result["what"],
        f"{where}; {settings['dtype']} where the name says no other number type; {versions}.",
        "Every system has a process of its own and takes its turn; figures are medians of the repeats.",
        f"Batches are neighbours in the test set sorted by source length. {sentences[0].upper()}{sentences[1:]}.",
    ]
    if "1" in result["sentences"]:
        over = result["baseline"]
        lines.append(
            "The mean (std) of milliseconds per sentence is over sentences, one at a time."
            + ("" if over is None else f" Speed-up: over {over}, from these means.")
        )
    listed = [system for system in result["systems"].values() if "whole_vocabulary_share" in system]
    if listed:
        shares = [system["whole_vocabulary_share"] for system in listed]
        tried = [row for system in listed for row in system["tokens_tried"].values()]
        means = [row["mean"] for row in tried]
        lines.append(
            f"With a shortlist, {min(row['lowest'] for row in tried):,} to {max(row['highest'] for row in tried):,} "
            f"tokens were tried for a sentence (on average {min(means):,.0f} to {max(means):,.0f}, by batch size), and "
            f"{min(shares):.1%} to {max(shares):.1%} of the positions had the whole vocabulary. CTranslate2's map of "
            "the vocabulary (vmap) has the same lists: it tries those of all sentences of a batch, never all tokens."
        )
    compiled = [system["compilation_s"] for system in result["systems"].values() if "compilation_s" in system]
    if compiled:
        lines.append(
            f"Compiling took {max(compiled):,.0f} s, while other systems were loaded; it is in no other figure. The "
            "compiled systems share a process, whose memory holds the compiler and the weights of two compilations."
        )
    if settings["device"] == "cpu":
        libraries = max(_libraries(result, system) or 0.0 for system in result["systems"].values())
        lines.append(
            "Peak memory: the most that is resident while a system translates at this batch size, less what Python and "
            f"the libraries take before the model is loaded ({format_number(libraries)} MiB, the same for all)."
        )
    else:
        lines.append("Peak memory: of torch's tensors on the GPU; CTranslate2's is not known (–).")
    if "test_set" in result:
        scores = next(iter(result["systems"].values()))["quality"]
        signatures = f"BLEU: `{scores['bleu']['signature']}`; chrF: `{scores['chrf']['signature']}`"
        lines.append(
            f"Quality is of all {result['test_set']['num_sentences']:,} sentences of {result['test_set']['name']}. "
            f"{signatures}."
        )
    return " ".join(lines)


def render_paper() -> str:
    """The rows of the paper's Tables 1, 2 and 4, marked as quoted."""
    header = ["quoted from the paper", "BLEU, ASPEC Ja-En", "speed-up", "BLEU, WMT14 En-De", "speed-up"]
    header += ["ms a sentence (std), Ja-En", "En-De"]
    return (
        "Quoted from Shu et al. (2020), Tables 1, 2 and 4; not measured here. Their time is on a P100, one sentence at "
        "a time, and their base Transformer has no key-value cache, which flatters the speed-up.\n\n"
        + table(header, [list(row) for row in PAPER_ROWS])
    )


def render_summary(benchmark: dict[str, Any], mode: str) -> str:
    """What a README needs of one mode: the table, what it is of, and the crossovers."""
    result = benchmark["modes"][mode]
    return "\n\n".join([render_speed(result), render_conditions(benchmark, mode), render_crossovers(result)])


def render_brief(benchmark: dict[str, Any], mode: str) -> str:
    """Of one mode: latency, speed-up and throughput alone."""
    result, machine, versions = benchmark["modes"][mode], benchmark["machine"], benchmark["versions"]
    larger = [size for size in result["sentences"] if size != "1"]
    rows = []
    for name, system in result["systems"].items():
        timed = system["model"]
        speeds = [format_number(timed["sentences_per_second"][size]["median"]) for size in larger]
        rows.append([name, format_number(timed["latency_ms"]["mean"]), f"{timed['speed_up']:.1f}x", *speeds])
    named = ("torch", "transformers", "onnxruntime", "ctranslate2")
    libraries = ", ".join(f"{name} {versions[name]}" for name in named if name in versions)
    return (
        table(["system", "ms a sentence", "speed-up", *(f"sentences/s, batch {size}" for size in larger)], rows)
        + f"\n\n{TITLES[mode]}, forced to the lengths of newstest2014, from token ids to token ids, in one run on "
        f"{result['settings']['threads']} threads of {machine['processor']}; {result['settings']['dtype']} where the "
        f"name says no other number type; speed-up over {result['baseline']}; {libraries}."
    )


def render_document(benchmark: dict[str, Any]) -> str:
    """The whole of benchmark.md."""
    parts = ["# Benchmark"]
    for mode, result in benchmark["modes"].items():
        parts += [f"## {TITLES[mode]}", render_conditions(benchmark, mode), render_speed(result)]
        parts += ["### Which overtakes, and when", render_crossovers(result)]
        parts += ["### Spread", render_spread(result)]
        parts.append(
            f"The benchmark's own loop takes {result['overhead_share']:.4%} of the time that was measured; sentences/s "
            f"against batch size: `throughput.{mode}.png`."
        )
        if mode == "random":
            parts.append("There is no plot of speed against quality: random weights have none.")
        else:
            parts.append(f"Speed against quality: `quality.{mode}.png`.")
    return "\n\n".join([*parts, "## The paper", render_paper()]) + "\n"


def server_table(results: Path) -> str:
    """What `lvnar serve` does under load, and to one client, by `time_server.py`."""
    result = read_result(results, "server")
    load, one, machine = result["load"], result["one_client"], result["machine"]
    translate = max(result["translate_sentences_per_second"])
    memory = load["memory_mib"]
    rows = [
        (
            *(f"{load['sentences_per_second']:.0f}", f"{load['sentences_per_second'] / translate:.0%}"),
            *(f"{load['latency_ms'][share]:.0f}" for share in ("p50", "p95")),
            *(str(load["errors"]), f"{memory['after_a_quarter']:.0f} → {memory['at_the_end']:.0f}"),
            f"{one['overhead_ms']:.1f}",
        )
    ]
    header = (
        *("sentences/s", "of `lvnar translate`", "ms, median", "ms, p95", "errors"),
        *("memory after a quarter → at the end, MiB", "ms over the model's own, one client"),
    )
    steps = name_steps(result["num_refinement_steps"])
    note = (
        f"{load['num_clients']} clients at once for {load['seconds']:.0f} s on loopback, {result['engine']}, {steps}, "
        f"{result['num_workers']} processes; the clients take their share of the {machine['cores']} cores of "
        f"{machine['processor']}. `lvnar translate`: {translate:.0f} sentences/s. "
        f"One client: {one['sentences']} sentences, one after the other."
    )
    return f"{table(header, rows)}\n\n{note}"


def pages_table(results: Path) -> str:
    """How long the page of `lvnar app` and the static page take, by `tests/support/measure_pages.py`."""
    result = read_result(results, "pages")
    steps, static = result["steps"], result["static"]
    rows = [
        (f"`lvnar app`, all steps of a sentence, {engine}", f"{steps['load_seconds']:.1f}", *_medians(milliseconds))
        for engine, milliseconds in steps["answer_ms"].items()
    ]
    rows += [
        (f"in the browser, {name_steps(int(step))}, int8", f"{static['load_seconds']:.1f}", *_medians(milliseconds))
        for step, milliseconds in static["sentence_ms"].items()
    ]
    machine = result["machine"]
    note = (
        f"{result['num_sentences']} sentences of Tatoeba-test in Chromium, from loopback, {machine['cores']} cores of "
        f"{machine['processor']}. With one step the browser gives {static['num_same']} as ONNX Runtime does here."
    )
    return f"{table(('page', 's to load', 'ms, median', 'ms, p95'), rows)}\n\n{note}"


def loading_table(results: Path) -> str:
    """What loading costs, by `tests/support/measure_loading.py`."""
    result = read_result(results, "loading")
    rows = [
        (what, f"{result[name]['wall']:.2f}", f"{result[name]['processor']:.2f}")
        for what, name in (
            ("`import transformers`", "import_transformers_seconds"),
            ("what `import lvnar_hf` adds", "import_package_adds_seconds"),
            ("PyTorch: from the folder to the first translation", "first_translation_seconds"),
            ("`lvnar translate` of a sentence, int8: the whole command", "command_seconds"),
            ("of it, from the folder to the translation", "from_folder_seconds"),
        )
    ]
    ratio = result["remote_time_over_package"]["wall"]
    note = (
        f"{result['threads']} threads of {result['machine']['processor']}, files in the system's cache. The code that "
        f"travels with a model takes {ratio:.2f} times as long as the package's."
    )
    return f"{table(('', 's', 's of the processor'), rows)}\n\n{note}"


def translate_table(results: Path) -> str:
    """`lvnar translate` on a large file beside its engine; one sentence, by `tests/support/measure_translate.py`."""
    result = read_result(results, "translate")
    machine = f"{result['num_processes']} processes on {result['machine']['processor']}"
    return (
        f"`lvnar translate` takes {result['lines']:,} lines at {result['command']:,.0f} a second, "
        f"{result['share']:.2f} of what its engine alone does on the same batches ({result['engine']}, "
        f"{name_steps(result['num_refinement_steps'])}, {machine})."
    )


def time_budget_table(results: Path) -> str:
    """What `generate` with `max_ms` takes and gives, by `tests/support/measure_budget.py`."""
    result = read_result(results, "time_budget")
    rows = [
        (
            f"{budget['max_ms']:g}",
            *(f"{budget['taken_ms'][name]:.1f}" for name in ("p50", "p95")),
            f"{budget['taken_ms']['p95'] / budget['max_ms'] - 1:+.0%}",
            f"{budget['bleu']['score']:.1f}",
            ", ".join(f"{count:,} times {done}" for done, count in budget["done"].items()),
        )
        for budget in result["budgets"]
    ]
    machine = result["machine"]
    note = (
        f"{result['num_sentences']:,} sentences of Tatoeba-test, one a call, PyTorch, {machine['threads']} threads of "
        f"{machine['processor']}; asked for were {result['asked']['num_refinement_steps']} step and a beam of "
        f"{result['asked']['beam_size']}. Their costs took {result['seconds_to_measure_costs']:.0f} s before. "
        f"BLEU: `{result['budgets'][0]['bleu']['signature']}`."
    )
    return f"{table(('max_ms', 'ms, median', 'p95', 'p95 over it', 'BLEU', 'done'), rows)}\n\n{note}"


def _medians(milliseconds: dict[str, float]) -> tuple[str, str]:
    return f"{milliseconds['p50']:.0f}", f"{milliseconds['p95']:.0f}"
