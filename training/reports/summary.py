"""The table of the first page: quality beside speed."""

from pathlib import Path

from training.reports.results import (
    has_result,
    machine_of,
    name_signatures,
    name_steps,
    name_test_set,
    read_result,
    table,
)
from training.reports.speed_tables import format_number


def summary_table(results: Path) -> str:
    """Quality beside speed: the teacher, no step and one, int8, a search, and the best and the fastest baseline.

    Of a model that has not been timed, quality alone.
    """
    if not has_result(results, "benchmark"):
        return _quality_summary(results)
    benchmark, test = read_result(results, "benchmark"), read_result(results, "test")
    mode = "trained" if "trained" in benchmark["modes"] else "random"
    timed = benchmark["modes"][mode]
    systems = timed["systems"]
    latencies = {name: system["model"]["latency_ms"]["mean"] for name, system in systems.items()}
    baseline = timed["baseline"]
    num_beams = int(baseline.rpartition(" ")[2])
    teacher = read_result(results, "teacher_test")
    (searched,) = (row for row in teacher["results"] if row["num_beams"] == num_beams)
    rows = [(f"autoregressive teacher ({baseline})", f"{searched['bleu']['score']:.1f}", baseline)]
    in_int8 = read_result(results, "engine_quality")["engines"]["onnx int8"]["results"]
    for what, engine, scored in (("", "eager", test["results"]), (", ONNX Runtime int8", "onnx int8", in_int8)):
        for row in scored:
            steps = name_steps(row["num_refinement_steps"])
            if row["num_refinement_steps"] <= 1:  # further ones change little
                rows.append((f"this model, {steps}{what}", f"{row['bleu']['score']:.1f}", f"lvnar, {engine}, {steps}"))
    others = [name for name in systems if systems[name]["family"] != "lvnar"]
    fastest = min(others, key=latencies.__getitem__)
    if "quality" in systems[fastest]:
        scores = {name: system["quality"]["bleu"]["score"] for name, system in systems.items()}
        # The best of theirs, the quickest of equals; and the best of ours that takes no longer, or else the quickest.
        best = min(others, key=lambda name: (-round(scores[name], 1), latencies[name]))
        searched_names = [name for name in systems if name.endswith(", rescored")]
        if searched_names:
            as_quick = [name for name in searched_names if latencies[name] <= latencies[best]]
            name = max(as_quick, key=scores.__getitem__) if as_quick else min(searched_names, key=latencies.__getitem__)
            what = f"this model, {name.removeprefix('lvnar, ').replace('onnx', 'ONNX Runtime')} by its teacher"
            rows.append((what, f"{scores[name]:.1f}", name))
        rows.append((f"best baseline ({best})", f"{scores[best]:.1f}", best))
        rows.append((f"fastest baseline ({fastest})", f"{scores[fastest]:.1f}", fastest))
    else:
        rows.append((f"fastest baseline ({fastest})", "not trained", fastest))
    shown = [(what, score, format_number(latencies[name])) for what, score, name in rows]
    sizes, speeds = {
        "trained": ("", "these models on its sentences"),
        "random": (
            ", at the paper's sizes",
            "models of the paper's sizes with random weights, at newstest2014's lengths",
        ),
    }[mode]
    return table(("system", "BLEU", f"ms a sentence{sizes}"), shown) + (
        f"\n\nBLEU: {name_test_set(test)}, a model of {test['num_parameters'] / 1e6:.1f} M parameters, its teacher of "
        f"{teacher['num_parameters'] / 1e6:.1f} M (`{searched['bleu']['signature']}`). Time: {speeds}, one sentence "
        f"at a time, {machine_of(benchmark)}."
    )


def _quality_summary(results: Path) -> str:
    """BLEU and chrF of the teacher, of three numbers of steps and of int8."""
    test, teacher = read_result(results, "test"), read_result(results, "teacher_test")
    searched = max(teacher["results"], key=lambda row: row["num_beams"])
    rows = [(f"autoregressive teacher, beam {searched['num_beams']}", searched)]
    rows += [(f"this model, {name_steps(row['num_refinement_steps'])}", row) for row in test["results"]]
    quality = read_result(results, "engine_quality")["engines"]["onnx int8"]["results"]
    rows += [(f"this model, {name_steps(row['num_refinement_steps'])}, ONNX Runtime int8", row) for row in quality]
    shown = [
        (what, f"{row['bleu']['score']:.1f}", f"{row['chrf']['score']:.1f}" if "chrf" in row else "")
        for what, row in rows
    ]
    return table(("system", "BLEU", "chrF"), shown) + (
        f"\n\n{name_test_set(test)}; {test['num_parameters'] / 1e6:.1f} M parameters, the teacher "
        f"{teacher['num_parameters'] / 1e6:.1f} M. {name_signatures(test['results'][0])}."
    )
