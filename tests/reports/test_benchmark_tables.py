"""The benchmark's tables and plots hold what its JSON holds."""

import copy

import pytest
from matplotlib.colors import same_color

from training.reports.speed_plots import draw_quality, draw_throughput, render_svg
from training.reports.speed_tables import (
    render_brief,
    render_crossovers,
    render_document,
    render_paper,
    render_speed,
    render_summary,
)


def system_row(family: str, engine: str, speeds: tuple[float, float], bleu: float | None = None) -> dict:
    """What the JSON says of a system of these sentences per second at batch 1 and 8."""
    row: dict = {"family": family, "engine": engine}
    row["model"] = {
        "latency_ms": {"mean": 1000 / speeds[0], "std": 1.5, "p50": 2.0, "p95": 3.25} | {"lowest_mean": 9.0},
        "sentences_per_second": {
            size: {"median": speed, "lowest": speed / 2, "highest": speed * 3}
            for size, speed in zip(("1", "8"), speeds, strict=True)
        },
        "speed_up": speeds[0] / 10,
    }
    row["model"]["latency_ms"]["highest_mean"] = 200.0
    row["memory_mib"] = {"libraries": 300.0, "loading": 500.0, "peak": {"1": 340.0, "8": 450.5}}
    if bleu is not None:
        row["quality"] = {
            "bleu": {"score": bleu, "signature": "tok:13a"},
            "chrf": {"score": 2 * bleu, "signature": "nc:6"},
        }
    if family == "lvnar":
        row["mean_steps_taken"] = 0.5
    return row


@pytest.fixture
def known() -> dict:
    """A benchmark's JSON with numbers made by hand."""
    systems = {
        "lvnar, eager, 1 step": system_row("lvnar", "eager", (100.0, 200.0), 20.0),
        "marian 6-6, transformers, beam 3": system_row("autoregressive", "transformers", (10.0, 50.0), 25.04),
        "marian 6-6, ctranslate2 int8, beam 1": system_row("autoregressive", "ctranslate2 int8", (50.0, 400.0), 24.0),
    }
    sentences = {
        "mean_source_tokens": 9.5,
        "mean_target_tokens": 10.25,
        "num_rounds": {"model": [3, 9]},
        "num_batches": 1,
    }
    trained = {
        "what": "What was timed.",
        "settings": {"device": "cpu", "dtype": "float32", "threads": 2},
        "sentences": {size: {"num_sentences": int(size), **sentences} for size in ("1", "8")},
        "baseline": "marian 6-6, transformers, beam 3",
        "systems": systems,
        "crossovers": {"lvnar, eager, 1 step": dict(zip(list(systems)[1:], (None, 8), strict=True))},
        "overhead_share": 0.00001,
        "test_set": {"name": "test.en", "num_sentences": 1000},
    }
    random = copy.deepcopy(trained)
    del random["test_set"]
    for system in random["systems"].values():
        del system["quality"]
    machine = {"processor": "Abacus", "threads": 2, "cores": 2, "memory_gib": 4.0, "device": "cpu"}
    modes = {"random": random, "trained": trained}
    return {"machine": machine, "versions": {"torch": "9.9"}, "modes": modes, "seconds": 60.0}


def test_tables_hold_what_the_json_holds(known):
    table = render_speed(known["modes"]["trained"]).split("\n")
    assert table[0] == (
        "| system | BLEU | chrF | mean steps | ms a sentence: mean (std) | p50 | p95 | speed-up | sentences/s, batch 1 "
        "| sentences/s, batch 8 | peak MiB, batch 1 | peak MiB, batch 8 |"
    )
    assert table[2:] == [
        "| lvnar, eager, 1 step | 20.0 | 40.0 | 0.50 | 10.0 (1.50) | 2.00 | 3.25 | 10.0x | 100 | 200 | 40.0 | 150 |",
        "| marian 6-6, transformers, beam 3 | 25.0 | 50.1 |  | 100 (1.50) | 2.00 | 3.25 | 1.0x | 10.0 | 50.0 | 40.0 "
        "| 150 |",
        "| marian 6-6, ctranslate2 int8, beam 1 | 24.0 | 48.0 |  | 20.0 (1.50) | 2.00 | 3.25 | 5.0x | 50.0 | 400 "
        "| 40.0 | 150 |",
    ]
    crossovers = render_crossovers(known["modes"]["trained"])
    assert "| marian 6-6, transformers, beam 3 | not up to 8 |" in crossovers
    assert "| marian 6-6, ctranslate2 int8, beam 1 | 8 |" in crossovers
    document = render_document(known)
    for part in (
        *("What was timed. 2 threads of Abacus, 4.0 GiB; float32", "torch 9.9", "Speed-up: over marian 6-6"),
        *("(300 MiB, the same for all)", "BLEU: `tok:13a`; chrF: `nc:6`", "all 1,000 sentences of test.en"),
        *("| 100 [50.0, 300] | 200 [100, 600] |", "10.0 [9.00, 200]", "0.0010% of the time"),
        *(
            "There is no plot of speed against quality",
            "`quality.trained.png`",
            "3 to 9 repeats, the most of quick systems; batch 8",
        ),
    ):
        assert part in document, part
    assert document.count("BLEU: `tok:13a`") == 1 and render_paper() in document
    assert "| + 1 refinement step | 27.5 | 7.8x | 24.1 | 12.5x | 53 (2) | 48 (8) |" in render_paper()
    assert "Quoted from Shu et al. (2020), Tables 1, 2 and 4; not measured here" in render_paper()
    summary = render_summary(known, "random")
    assert "BLEU" not in summary and "lvnar, eager, 1 step | 10.0 (1.50)" in summary
    brief = render_brief(known, "random")
    assert brief.startswith("| system | ms a sentence | speed-up | sentences/s, batch 8 |\n")
    assert "\n| marian 6-6, ctranslate2 int8, beam 1 | 20.0 | 5.0x | 400 |\n\n" in brief
    assert brief.endswith(
        "on 2 threads of Abacus; float32 where the name says no other number type; speed-up over "
        "marian 6-6, transformers, beam 3; torch 9.9."
    )


def test_tables_without_batch_1_a_baseline_or_a_known_memory(known):
    result = known["modes"]["random"]
    del result["sentences"]["1"]
    for system in result["systems"].values():
        del system["model"]["latency_ms"], system["model"]["speed_up"]
        system["memory_mib"]["peak"]["8"] = None
    assert render_speed(result).split("\n")[2] == "| lvnar, eager, 1 step | 200 | – |"
    result["crossovers"] = {"lvnar, eager, 1 step": {}}
    assert render_crossovers(result).startswith("Nothing to compare")
    result["settings"]["device"] = "cuda"
    known["machine"] |= {"gpu": "Slide rule", "gpu_memory_gib": 80.0}
    assert "Slide rule, 80.0 GiB" in render_document(known) and "CTranslate2's is not known" in render_document(known)


def test_plots_hold_what_the_json_holds(known):
    result = known["modes"]["trained"]
    panels = draw_throughput(result).axes
    assert [axes.get_title() for axes in panels] == ["transformers", "ctranslate2 int8"]
    others = list(result["systems"])[1:]
    for axes, other in zip(panels, others, strict=True):
        names = axes.get_legend_handles_labels()[1]
        assert names == ["lvnar, eager, 1 step", other] and axes.get_xlabel() == "batch size (sentences)"
        for container, name in zip(axes.containers, names, strict=True):
            line, _, (bars,) = container.lines
            speeds = result["systems"][name]["model"]["sentences_per_second"]
            assert list(line.get_xdata()) == [1, 8]
            assert list(line.get_ydata()) == [row["median"] for row in speeds.values()]
            ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
            assert ends == [[row["lowest"], row["highest"]] for row in speeds.values()]
        first, second = (container.lines[0] for container in axes.containers)
        assert first.get_marker() != second.get_marker() and first.get_linestyle() != second.get_linestyle()
        assert not same_color(first.get_color(), second.get_color())
    assert panels[0].get_ylabel() == "throughput (sentences/s)"

    figure = draw_quality(result)
    assert render_svg(draw_quality(result)) == render_svg(draw_quality(result))
    assert len(figure.axes) == 2 and "BLEU" in figure.axes[0].get_ylabel()
    for axes, size in zip(figure.axes, ("1", "8"), strict=True):
        assert len(axes.lines) == 3 and axes.get_xlabel() == f"milliseconds a sentence, batch size {size}"
        for line, (name, system) in zip(axes.lines, result["systems"].items(), strict=True):
            assert name.replace(", ", " ", 1).startswith(line.get_label())
            assert line.get_xdata() == [1000 / system["model"]["sentences_per_second"][size]["median"]]
            assert list(line.get_ydata()) == [system["quality"]["bleu"]["score"]]
    assert len({line.get_marker() for line in axes.lines}) == 3
