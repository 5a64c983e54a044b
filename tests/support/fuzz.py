"""Files of a model repository, damaged at random, and what loads them.

As a script it runs many cases in processes that are watched, and says what became of each:

    python tests/support/fuzz.py --folder FOLDER --num_cases 10000
"""

import argparse
import collections
import json
import multiprocessing
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from lvnar_hf import LvnarConfig, LvnarForConditionalGeneration, LvnarTokenizer
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.shortlist import Shortlist

FILES = {
    "config": "config.json",
    "generation config": "generation_config.json",
    "tokenizer": "tokenizer.json",
    "tokenizer config": "tokenizer_config.json",
    "weights": "model.safetensors",
    "shortlist": "shortlist.safetensors",
    "calibration": "calibration.json",
    "graph": "onnx/model.onnx",
}
MAX_SECONDS, MAX_BYTES = 10, 500 * 2**20
TEXT = "Tom offered to pay for the damages. </s> 3.5 "
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 1000, 2**16, 2**23, 2**31, 2**40, 2**63, 2**64, -(2**63), 10**400),
    *(0.5, -1.5, 1e308, float("nan"), float("inf")),
    *("", "torch", "eager", "user/kernel", "x" * 100_000, "\ud800", "../x", "float16", "Regex", "</s>"),
    *([], {}, [0], {"a": 1}, [[[]]], ["a"] * 1000, {"Fixed": 2**32}, {"Regex": "(a*)*b"}, {"String": ""}),
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aa" * 1000},
]
_NAMES = (
    *("to_dict", "__class__", "auto_map", "vocab_size", "dtype", "torch_dtype", "num_refinement_steps", "max_length"),
    *("return_dict_in_generate", "tie_word_embeddings", "padding", "truncation", "quantization_config", "do_sample"),
    *("is_encoder_decoder", "output_attentions", "num_hidden_layers", "transformers_version", "bad_words_ids"),
    *("added_tokens_decoder", "extra_special_tokens", "padding_side", "chat_template", "model_max_length"),
)


def damage(kind: str, content: bytes, chance: random.Random) -> bytes:
    """The content of a file with one to three faults."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if kind == "graph" or chance.random() < 0.25:
            content = _damage_bytes(content, chance)
        elif kind in ("weights", "shortlist"):
            content = _damage_header(content, chance)
        else:
            content = _damage_json(content, chance)
    return content


def _damage_bytes(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    place = chance.randrange(min(len(data), 4096) if chance.random() < 0.5 else len(data)) if data else 0
    fault = chance.randrange(6)
    if fault == 0 and data:
        data[place] ^= 1 << chance.randrange(8)
    elif fault == 1:
        del data[place:]
    elif fault == 2:
        data[place:place] = chance.randbytes(chance.choice((1, 8, 1000)))
    elif fault == 3:
        del data[place : place + chance.choice((1, 8, 1000))]
    elif fault == 4:
        data[place : place + 8] = chance.choice((b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**40)))
    else:
        data[place:place] = chance.choice((b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"\0"))
    return bytes(data)


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [(*path, key) for key, _ in items] + [p for key, item in items for p in _places(item, (*path, key))]


def _damage_value(fields: Any, chance: random.Random) -> Any:
    # First where, by the depth, so that a vocabulary's entries do not crowd out the rest.
    by_depth = collections.defaultdict(list)
    for path in _places(fields):
        by_depth[len(path)].append(path)
    if not by_depth:
        return chance.choice(_VALUES)
    path = chance.choice(by_depth[chance.choice(sorted(by_depth))])
    holder = fields
    for key in path[:-1]:
        holder = holder[key]
    fault = chance.randrange(5)
    if fault == 0:
        del holder[path[-1]]
    elif fault == 1 and isinstance(fields, dict):
        fields[chance.choice(_NAMES)] = chance.choice(_VALUES)
    elif fault == 2 and isinstance(holder, list):
        holder.extend(holder * chance.choice((1, 40)))
    elif fault == 3:
        other = chance.choice(by_depth[chance.choice(sorted(by_depth))])
        value = fields
        for key in other[: other.index(path[-1])] if path[-1] in other else other:
            value = value[key]
        holder[path[-1]] = json.loads(json.dumps(value))
    else:
        holder[path[-1]] = chance.choice(_VALUES)
    return fields


def _damage_json(content: bytes, chance: random.Random) -> bytes:
    try:
        fields = json.loads(content)
        return json.dumps(_damage_value(fields, chance)).encode()
    except (ValueError, RecursionError):
        return _damage_bytes(content, chance)


def _damage_header(content: bytes, chance: random.Random) -> bytes:
    """A fault in the JSON in front of a safetensors file, its length right."""
    try:
        (size,) = struct.unpack_from("<Q", content)
        header = json.dumps(_damage_value(json.loads(content[8 : 8 + size]), chance)).encode()
    except (ValueError, RecursionError, struct.error):
        return _damage_bytes(content, chance)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def use(folder: Path, kind: str) -> list[list[int]]:
    """What comes of a folder, a file of this kind damaged: ids."""
    if kind.startswith("tokenizer"):
        tokenizer = LvnarTokenizer.from_pretrained(folder)
        ids = tokenizer([TEXT, TEXT * 3])["input_ids"]
        tokenizer.batch_decode(ids, skip_special_tokens=True)
        return ids
    input_ids = torch.tensor([[5, 6, 7, 8, 1], [9, 4, 1, 0, 0]])
    if kind == "shortlist":
        config = LvnarConfig.from_pretrained(folder)
        return (
            Shortlist.from_pretrained(folder, config).candidates_of(input_ids, input_ids.ne(0).long(), config).tolist()
        )
    model: Any = None
    if kind == "graph":
        model = LvnarOnnxModel.from_pretrained(folder)
        return _sequences(model.generate(input_ids, num_refinement_steps=1))
    if kind == "config":
        LvnarConfig.from_pretrained(folder)
    model = LvnarForConditionalGeneration.from_pretrained(folder).eval()
    asked = {"return_dict_in_generate": True, "output_confidences": True} if kind == "calibration" else {}
    return _sequences(model.generate(input_ids, **asked))


def _sequences(output: Any) -> list[list[int]]:
    return getattr(output, "sequences", output).tolist()


def run_case(sound: Path, folder: Path, kind: str, seed: int, expected: list[list[int]]) -> str:
    """ "refused", "the same" or "other tokens"; another exception than ValueError and OSError is raised.

    Args:
        sound: the folder with the files as they should be; `folder` is a copy that the damaged file is written into.
    """
    name = FILES[kind]
    (folder / name).write_bytes(damage(kind, (sound / name).read_bytes(), random.Random(f"{kind} {seed}")))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "the same" if use(folder, kind) == expected else "other tokens"
    except (OSError, ValueError):
        return "refused"
    finally:
        shutil.copy(sound / name, folder / name)


def _work(sound: Path, folder: Path, cases: list[tuple[str, int]], pipe: Any) -> None:
    torch.set_num_threads(1)
    # More than that is another fault than one that takes 500 MB; but it must not take the machine's.
    resource.setrlimit(resource.RLIMIT_AS, (24 * 2**30, 24 * 2**30))
    expected = {kind: use(sound, kind) for kind in {kind for kind, _ in cases}}
    for kind, seed in cases:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, start = _status("VmRSS"), time.process_time()
        pipe.send(("begins", kind, seed))
        try:
            outcome = run_case(sound, folder, kind, seed, expected[kind])
        except BaseException as error:
            outcome = f"{type(error).__name__}: {str(error)[:200]}"
        more = _status("VmHWM") - before
        seconds = time.process_time() - start
        pipe.send(("ended", outcome, more, seconds))


def _answers(pipe: Any, process_id: int) -> bool:
    """Whether an answer comes before the process has worked for twice the limit, or time is up for one that sleeps.

    Seconds are the processor's: the machine may have other work.
    """
    start, deadline = _seconds_of(process_id), time.monotonic() + 300
    while not pipe.poll(1):
        if _seconds_of(process_id) - start > 2 * MAX_SECONDS or time.monotonic() > deadline:
            return False
    return True


def _seconds_of(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def run(sound: Path, num_cases: int, kinds: list[str], first_seed: int = 0) -> dict[str, Any]:
    """Run cases in processes, anew after a crash or a hang; counts by kind, and the cases that must not be."""
    cases = [(kinds[i % len(kinds)], first_seed + i // len(kinds)) for i in range(num_cases)]
    counts: dict[str, collections.Counter] = {kind: collections.Counter() for kind in kinds}
    faults: list[str] = []
    largest, longest = 0, 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        done = 0
        while done < len(cases):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(sound, folder)
            mine, theirs = multiprocessing.Pipe()
            some = cases[done : done + 500]
            process = multiprocessing.get_context("spawn").Process(target=_work, args=(sound, folder, some, theirs))
            process.start()
            theirs.close()
            for _ in some:
                try:
                    if not mine.poll(300):
                        raise EOFError
                    _, kind, seed = mine.recv()
                    if not _answers(mine, process.pid):
                        faults.append(f"{kind} {seed}: hangs")
                        process.kill()
                        done += 1
                        break
                    _, outcome, more, seconds = mine.recv()
                except EOFError:
                    process.join()
                    faults.append(f"{cases[done][0]} {cases[done][1]}: the process ends with {process.exitcode}")
                    done += 1
                    break
                done += 1
                largest, longest = max(largest, more), max(longest, seconds)
                if outcome not in ("refused", "the same", "other tokens"):
                    faults.append(f"{kind} {seed}: {outcome}")
                    outcome = "another exception"
                if more > MAX_BYTES:
                    faults.append(f"{kind} {seed}: takes {more:,} bytes more")
                if seconds > MAX_SECONDS:
                    faults.append(f"{kind} {seed}: takes {seconds:.1f} seconds")
                counts[kind][outcome] += 1
            process.join()
            print(done, faults[-3:], file=sys.stderr, flush=True)
    return {"counts": {k: dict(c) for k, c in counts.items()}, "faults": faults, "most": largest, "longest": longest}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--num_cases", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="*", default=list(FILES))
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.folder, arguments.num_cases, arguments.kinds), indent=1))
