"""A file translated line by line: what the pipeline says, a line for each, whoever is killed on the way."""

import gzip
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import run_with_transformers
from launches import kill_and_see_all_end, run_apart, wait_until
from transformers import AutoModelForSeq2SeqLM, pipeline

from lvnar_hf.engines.graph import FILES
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.files.atomic import hash_file
from lvnar_hf.files.text import one_line
from lvnar_hf.jobs.executors import run_tasks
from lvnar_hf.jobs.file_translation import FileTranslation, translate_file
from lvnar_hf.jobs.line_translator import MAX_CHARACTERS, LineTranslator, TranslatedLines, load_translator
from tests.distillation.test_distil import run_killed

HOSTILE = [
    "",
    "one\u2028two",
    " \t ",
    "a\x00b",
    "word " * 100,
    "\x85next\x0cline",
    "x" * (MAX_CHARACTERS + 1),
    "carriage\rreturn",
    "\ufeffmark",
    "日本語 \U0001f600",
    "\u2028",
]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def source(tmp_path_factory, sample_texts) -> Path:
    """90 lines: sentences, blank lines among them, and hostile ones; "\\r\\n" ends some."""
    lines = [*sample_texts[0][:40], *HOSTILE, *sample_texts[0][40:79]]
    file = tmp_path_factory.mktemp("source") / "text.en"
    file.write_bytes("".join(line + ("\r\n" if i % 3 else "\n") for i, line in enumerate(lines)).encode())
    return file


def options(model: Path, source: Path | str, output: Path, **changes) -> dict:
    sizes = {"shard_size": 8, "max_batch_tokens": 100}
    return {"model": str(model), "input_file": source, "output_file": output, "device": "cpu", **sizes, **changes}


def lines(file: Path) -> list[str]:
    return file.read_bytes().decode().removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def unbroken(tiny_repository, source, tmp_path_factory) -> Path:
    """The output of a run that was never stopped, one process."""
    output = tmp_path_factory.mktemp("unbroken") / "text.de"
    translate_file(**options(tiny_repository, source, output, num_workers=1))
    return output


def test_each_line_is_what_the_pipeline_says(tiny_repository, source, unbroken):
    translator = pipeline("translation", model=str(tiny_repository), device="cpu")
    texts = [line.removesuffix("\r") for line in lines(source)]
    expected = [translator(text, truncation=True)[0]["translation_text"] for text in texts]
    assert lines(unbroken) == list(map(one_line, expected))
    assert len(texts) == 90 and len(set(expected)) > 60
    result = json.loads(unbroken.with_name("text.de.translation.json").read_text())
    sentences = []
    translator._text_format(None).translate(texts, lambda found: sentences.extend(found) or [[text] for text in found])
    lengths = [len(ids) for ids in translator.tokenizer(sentences, verbose=False)["input_ids"]]
    assert len(sentences) > 90 and result["cut"] == sum(length > 40 for length in lengths) >= 2
    assert result["blank"] == sum(not text.strip() for text in texts) == 3
    assert result["sentences"] == 90 and result["mean_steps_taken"] == result["num_refinement_steps"] == 1
    assert result["engine"] == "torch" and result["seconds"] > 0 and result["sentences_per_second"] > 0
    assert sorted(path.name for path in unbroken.parent.iterdir()) == ["text.de", "text.de.translation.json"]


def test_gzip_standard_input_and_no_last_line_end(tiny_repository, source, unbroken, tmp_path, monkeypatch):
    content = source.read_bytes().removesuffix(b"\n").removesuffix(b"\r")
    with gzip.open(tmp_path / "text.en.gz", "wb") as file:
        file.write(content)
    translate_file(**options(tiny_repository, tmp_path / "text.en.gz", tmp_path / "gzip", num_workers=1))
    assert (tmp_path / "gzip").read_bytes() == unbroken.read_bytes()
    with source.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        translate_file(**options(tiny_repository, "-", tmp_path / "stdin", num_workers=1))
    assert (tmp_path / "stdin").read_bytes() == unbroken.read_bytes()
    (tmp_path / "empty").touch()
    result = translate_file(**options(tiny_repository, tmp_path / "empty", tmp_path / "nothing"))
    assert (tmp_path / "nothing").read_bytes() == b"" and result["sentences"] == 0


def test_workers_give_the_same(tiny_repository, source, unbroken, tmp_path):
    result = translate_file(**options(tiny_repository, source, tmp_path / "out", num_workers=2))
    assert (tmp_path / "out").read_bytes() == unbroken.read_bytes() and result["num_processes"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.translation.json"]


def test_steps_are_counted(tiny_repository, source, tmp_path):
    result = translate_file(**options(tiny_repository, source, tmp_path / "out", num_workers=1, num_refinement_steps=4))
    assert result["num_refinement_steps"] == 4 and 1 < result["mean_steps_taken"] < 4


def test_lines_go_to_the_model_as_they_are_if_asked(tiny_repository, source, tmp_path):
    result = translate_file(**options(tiny_repository, source, tmp_path / "out", num_workers=1, preserve_format=False))
    translator = pipeline("translation", model=str(tiny_repository), device="cpu", preserve_format=False)
    expected = [translator(line.removesuffix("\r"), truncation=True)[0]["translation_text"] for line in lines(source)]
    assert lines(tmp_path / "out") == list(map(one_line, expected)) and result["mean_steps_taken"] == 1


def test_engines(tiny_repository, tiny_graphs, source, unbroken, tmp_path):
    repository = shutil.copytree(tiny_repository, tmp_path / "repository")
    with pytest.raises(FileNotFoundError, match=r"no onnx/model\.onnx\. Make it"):
        translate_file(**options(repository, source, tmp_path / "out", engine="onnx"))
    assert load_translator(str(repository), "auto").engine == "torch"
    shutil.copytree(tiny_graphs, repository / "onnx")
    translate_file(**options(repository, source, tmp_path / "out", engine="onnx", num_workers=1))
    assert (tmp_path / "out").read_bytes() == unbroken.read_bytes()
    translator = load_translator(str(repository), "auto")
    assert translator.engine == "onnx-int8"
    assert len(translator.translate(["Tom laughed.", ""]).texts) == 2
    with pytest.raises(FileNotFoundError, match=r"no shortlist\.safetensors\. Make it"):
        load_translator(str(repository), "onnx-int8-shortlist")
    size = translator.model.config.vocab_size
    Shortlist(torch.zeros(size, 1).int(), torch.tensor([5, 6]).int(), torch.tensor(float("-inf"))).save(repository)
    shortlisted = load_translator(str(repository), "onnx-int8-shortlist")
    ids = shortlisted.model.generate(torch.tensor([[7, 8, 9, 1]]))
    assert set(ids.flatten().tolist()) <= {5, 6} and shortlisted.fingerprint != translator.fingerprint
    (repository / FILES["int8"]).write_bytes((repository / FILES["float32"]).read_bytes())
    assert load_translator(str(repository), "onnx-int8").fingerprint != translator.fingerprint
    with pytest.raises(ValueError, match="runs on the CPU, not on cuda"):
        load_translator(str(repository), "onnx", device="cuda")


def test_a_search_is_the_pipelines(tiny_repository, source, tmp_path):
    search = {"num_latent_candidates": 3, "candidate_score": "elbo", "rescorer": None}
    result = translate_file(**options(tiny_repository, source, tmp_path / "out", num_workers=1, search=search))
    assert result["settings"]["search"] == {"num_latent_candidates": 3, "candidate_score": "elbo"}
    translator = pipeline("translation", model=str(tiny_repository), device="cpu")
    texts = [line.removesuffix("\r") for line in lines(source)]
    arguments = {"num_latent_candidates": 3, "candidate_score": "elbo", "truncation": True}
    expected = [result[0]["translation_text"] for result in (translator(text, **arguments) for text in texts)]
    assert lines(tmp_path / "out") == list(map(one_line, expected))
    with pytest.raises(ValueError, match="onnx searches by beam_size alone: num_latent_candidates, candidate_score"):
        load_translator(str(tiny_repository), "onnx", search=search)
    with pytest.raises(ValueError, match="rescorer is a Lvnar"):
        load_translator(str(tiny_repository), search=search | {"rescorer": str(tiny_repository)}).translate(["a"])


def test_what_is_wrong_is_refused(tiny_repository, source, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="engine is 'fast'; it must be one of auto, torch, compiled, onnx, onnx-int8"):
        translate_file(**options(tiny_repository, source, output, engine="fast"))
    for name in ("max_batch_tokens", "shard_size", "num_workers"):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
            translate_file(**options(tiny_repository, source, output, **{name: 0}))
    with pytest.raises(FileNotFoundError, match="no text file"):
        translate_file(**options(tiny_repository, tmp_path / "nothing", output))
    with pytest.raises(ValueError, match="is the input"):
        translate_file(**options(tiny_repository, source, source))
    with pytest.raises(ValueError, match=r"leave \.gz out"):
        translate_file(**options(tiny_repository, source, tmp_path / "out.gz"))
    (tmp_path / "latin").write_bytes(b"good\nb\xe9d\n")
    with pytest.raises(ValueError, match=r"latin, line 2: not valid UTF-8"):
        translate_file(**options(tiny_repository, tmp_path / "latin", output))
    assert not list(tmp_path.glob("out*")), "nothing is begun that could not be done"
    output.write_text("mine\n")
    with pytest.raises(FileExistsError, match="output file, or give --overwrite"):
        translate_file(**options(tiny_repository, source, output))
    assert output.read_text() == "mine\n"


def test_other_settings_are_refused_with_the_difference(tiny_repository, source, tmp_path):
    output, other = tmp_path / "out", shutil.copytree(tiny_repository, tmp_path / "other")
    given = options(tiny_repository, source, output, num_workers=1)
    assert run_killed(given, 5, "after") == -signal.SIGKILL
    shards = list((tmp_path / "out.unfinished").glob("shard-*.jsonl"))
    assert len(shards) == 2
    model = AutoModelForSeq2SeqLM.from_pretrained(other)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2.0)
    model.save_pretrained(other)
    (tmp_path / "more.en").write_bytes(source.read_bytes() + b"one more\n")
    for changes, difference in (
        ({"model": str(other)}, "model_fingerprint: '[0-9a-f]{64}' then, '[0-9a-f]{64}' now"),
        ({"num_refinement_steps": 3}, "num_refinement_steps: 1 then, 3 now"),
        ({"shard_size": 9}, "shard_size: 8 then, 9 now"),
        ({"input_file": tmp_path / "more.en"}, "input_lines: 90 then, 91 now; input_sha256: '"),
    ):
        with pytest.raises(ValueError, match=rf"with other settings: {difference}.*output file, or --overwrite"):
            translate_file(**{**given, **changes})
    assert all(shard.exists() for shard in shards)
    result = translate_file(**{**given, "num_refinement_steps": 3, "overwrite": True})
    assert result["num_refinement_steps"] == 3 and len(lines(output)) == 90


# killed

# One process after another: source.txt, plan.json, run.json, twelve shards, the output, its description.
MOMENTS = [
    (2, "after"),  # a plan, but no run.json: all begins anew
    (3, "before"),
    (4, "after"),  # one shard
    (3, "before"),  # three
    (8, "after"),  # eleven
    (2, "before"),  # twelve, and no output
    (1, "after"),  # an output, and no description
    (2, "before"),
    (2, "after"),  # the run's own files are still there
]


def test_killed_before_and_after_every_rename(tiny_repository, source, unbroken, tmp_path):
    given = options(tiny_repository, source, tmp_path / "out", num_workers=1)
    for moment in MOMENTS:
        assert run_killed(given, *moment) == -signal.SIGKILL
    assert (tmp_path / "out").read_bytes() == unbroken.read_bytes() and (tmp_path / "out.unfinished").exists()
    for _ in range(2):
        result = translate_file(**given)
        assert (tmp_path / "out").read_bytes() == unbroken.read_bytes() and result["sentences"] == 90
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.translation.json"]
    assert result["processes_of_all_runs"] == 4, "several processes had a share in it"


def test_two_processes_killed_and_continued(tiny_repository, tiny_graphs, source, unbroken, tmp_path):
    """First a process that translates, then the one that has started it, which leaves none behind."""
    model = shutil.copytree(tiny_repository, tmp_path / "model")
    shutil.copytree(tiny_graphs, model / "onnx")
    sizes = ["--engine", "onnx", "--device", "cpu", "--shard-size", "8", "--max-batch-tokens", "100"]
    command = ["-m", "lvnar_hf", "translate", "--model", model, *sizes, source, tmp_path / "out", "--num-workers", "2"]
    for victim in ("worker", "first"):
        process = run_apart(*command)
        before = set(tmp_path.glob("out.unfinished/shard-*.jsonl"))
        wait_until(lambda: set(tmp_path.glob("out.unfinished/shard-*.jsonl")) - before, process)  # noqa: B023
        (shard, *_) = set(tmp_path.glob("out.unfinished/shard-*.jsonl")) - before
        worker = int(json.loads(lines(shard)[0])["process"].rpartition(":")[2])
        printed = kill_and_see_all_end(worker if victim == "worker" else process.pid, process)
        assert process.returncode == (1 if victim == "worker" else -signal.SIGKILL), printed
        assert ("Start again; it goes on" in printed) == (victim == "worker")
    assert not (tmp_path / "out").exists()
    given = options(model, source, tmp_path / "out", engine="onnx", num_workers=1)
    assert run_killed(given, 1, "after") == -signal.SIGKILL
    result = translate_file(**given)
    assert (tmp_path / "out").read_bytes() == unbroken.read_bytes()
    assert result["num_processes"] == 1 and result["processes_of_all_runs"] >= 3


# memory

MEMORY_CODE = """
import re, sys
from pathlib import Path
from tests.commands.test_translate import Echo
from lvnar_hf.jobs.executors import run_tasks
from lvnar_hf.jobs.file_translation import FileTranslation
Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now, without that of the imports
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
run = FileTranslation(sys.argv[1], sys.argv[2], {"shard_size": 2000})
run.prepare()
run_tasks(run, Echo())
run.merge({"num_refinement_steps": None})
print(peak() - before)
"""


class Echo:
    """Translates a line into itself."""

    def translate(self, lines, on_progress=lambda lines: None):
        on_progress(len(lines))
        return TranslatedLines(list(lines), 0, 0, 0, 0)


def test_memory_does_not_grow_with_the_file(tmp_path):
    file, output = tmp_path / "long", tmp_path / "out"
    file.write_text("".join(f"line {number} of many, each short\n" for number in range(400_000)))
    printed = run_with_transformers(None, MEMORY_CODE, str(file), str(output))
    assert output.read_bytes() == file.read_bytes()
    kilobytes = int(printed)
    print(f"{file.stat().st_size >> 10} KiB of text, {kilobytes} KiB more memory")
    assert kilobytes < 6 * 1024, "a shard has 62 KiB, the file 12 MiB; datatrove takes three, whatever the file"


@pytest.mark.parametrize("damage", ["lost", "doubled", "swapped"])
def test_a_lost_or_doubled_line_is_noticed(tmp_path, damage):
    (tmp_path / "in").write_text("".join(f"{number}\n" for number in range(9)))
    run = FileTranslation(tmp_path / "in", tmp_path / "out", {"shard_size": 3})
    run.prepare()
    run_tasks(run, Echo())
    first, second = run._shard_file(0), run._shard_file(1)
    content = first.read_bytes()
    if damage == "swapped":
        first.write_bytes(second.read_bytes())
    else:
        first.write_bytes(content.removesuffix(b"2\n") if damage == "lost" else content + b"2\n")
    with pytest.raises(RuntimeError, match="does not hold the translations of its 3 lines"):
        run.merge({"num_refinement_steps": None})
    assert not (tmp_path / "out").exists() and second.exists()
    run.close()


def test_two_processes_at_the_same_shard_do_no_harm(tmp_path, monkeypatch):
    (tmp_path / "in").write_text("0\n1\n2\n")
    run = FileTranslation(tmp_path / "in", tmp_path / "out", {"shard_size": 3})
    run.prepare()
    run_tasks(run, Echo())
    header, *texts = lines(run._shard_file(0))

    def while_another_writes_it():
        yield texts[0]
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            list(run._write([(json.loads(header), texts)], 0, 1))
        yield from texts[1:]

    list(run._write([(json.loads(header), while_another_writes_it())], 0, 1))
    run.merge({"num_refinement_steps": None})
    assert (tmp_path / "out").read_text() == "0\n1\n2\n"


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tiny_repository, source, tmp_path, monkeypatch):
    """Not by the name alone: the description beside the output has a longer one."""
    monkeypatch.setattr(LineTranslator, "translate", None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "described.translation.json").mkdir()
    names = {"folder": "is a folder", "described": "Is a directory", "x" * 230: "cannot be written"}
    for name, message in names.items():
        with pytest.raises(OSError, match=message):
            translate_file(**options(tiny_repository, source, tmp_path / name, num_workers=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["described.translation.json", "folder"]


def test_an_input_that_changes_while_the_run_waits_is_recorded_as_it_is_then(tmp_path):
    (tmp_path / "in").write_text("one\n")
    first = FileTranslation(tmp_path / "in", tmp_path / "out", {"shard_size": 3})
    first.prepare()
    second = FileTranslation(tmp_path / "in", tmp_path / "out", {"shard_size": 3})
    waiting = threading.Thread(target=second.prepare, args=(True,))
    waiting.start()
    time.sleep(0.5)  # it has read the input, and waits
    (tmp_path / "in").write_text("one\ntwo\n")
    first.close()
    waiting.join(60)
    run_tasks(second, Echo())
    result = second.merge({"num_refinement_steps": None})
    assert (tmp_path / "out").read_text() == "one\ntwo\n"
    assert result["settings"]["input_lines"] == 2
    assert result["settings"]["input_sha256"] == hash_file(tmp_path / "in")


def test_an_input_that_changes_while_it_is_copied_is_recorded_as_copied(tmp_path, monkeypatch):
    (tmp_path / "in").write_text("one\n")
    run = FileTranslation(tmp_path / "in", tmp_path / "out", {"shard_size": 3})
    fingerprint = run._fingerprint()
    (tmp_path / "in").write_text("one\ntwo\n")
    monkeypatch.setattr(run, "_fingerprint", lambda: fingerprint)
    run.prepare()
    run_tasks(run, Echo())
    settings = run.merge({"num_refinement_steps": None})["settings"]
    assert (settings["input_lines"], settings["input_sha256"]) == (2, hash_file(tmp_path / "in"))


def test_lines_out_are_compared_with_lines_in(tmp_path):
    (tmp_path / "in").write_text("".join(f"{number}\n" for number in range(9)))
    run = FileTranslation(tmp_path / "in", tmp_path / "out", {"shard_size": 3})
    run.prepare()
    run_tasks(run, Echo())
    plan = json.loads((run.work / "plan.json").read_text())
    run.plan = {"num_lines": 6, "offsets": plan["offsets"][:-1]}
    with pytest.raises(RuntimeError, match="has 6 lines; the input has 9"):
        run.merge({"num_refinement_steps": None})
    run.close()
