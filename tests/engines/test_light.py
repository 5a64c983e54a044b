"""ONNX engines without torch and transformers: the same translations, and nothing that only those can do."""

import json
import random
import shutil
import subprocess
import sys
import warnings
from inspect import signature

import pytest
import torch
from conftest import FIXTURES, make_model
from safetensors.torch import save_file

from lvnar_hf import LvnarConfig, LvnarTokenizer
from lvnar_hf.engines import ONNX_ENGINES
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.files.fingerprints import folder_weights_fingerprint, weights_fingerprint
from lvnar_hf.jobs import light_translator
from lvnar_hf.jobs.light_translator import LightTokenizer, load_light_translator
from lvnar_hf.jobs.line_translator import load_translator

BLOCKS = ((1, 0x20), (0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x2FF), (0x370, 0x5FF), (0x2000, 0x206F), (0x3040, 0x30FF))
MORE_BLOCKS = ((0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0xE000, 0xF8FF), (0x10000, 0x10FFFF))


def load_light(folder, engine="auto", **changes):
    options = {"num_refinement_steps": None, "max_batch_tokens": 512, "device": "cpu", "preserve_format": True}
    options |= {"search": None, "num_threads": 1} | changes
    return load_light_translator(str(folder), engine, **options)


def random_texts(number: int) -> list[str]:
    """Of all kinds of characters, of words too, short and longer than the model takes."""
    generator = random.Random(0)
    words = (FIXTURES / "tatoeba_en-de" / "test.en").read_text("utf-8").split()
    texts = []
    for _ in range(number):
        pieces = []
        for _ in range(generator.choice([1, 3, 10, 10, 60])):
            first, last = generator.choice(BLOCKS + MORE_BLOCKS)
            characters = [chr(generator.randint(first, last)) for _ in range(generator.randint(1, 4))]
            pieces.append(generator.choice(words) if generator.random() < 0.6 else "".join(characters))
        texts.append(generator.choice(["", " "]).join(pieces))
    return texts


@pytest.fixture(scope="module")
def tiny_exported(tiny_repository, tiny_graphs, tmp_path_factory):
    """With predicted lengths and removal of repetitions; with a shortlist."""
    folder = shutil.copytree(tiny_repository, tmp_path_factory.mktemp("light") / "model")
    shutil.copytree(tiny_graphs, folder / "onnx")
    changed("generation_config.json", num_refinement_steps=3)(folder)
    size = LvnarConfig.from_pretrained(folder).vocab_size
    Shortlist(torch.zeros(size, 1).int(), torch.arange(3, 43).int(), torch.tensor(-3.0)).save(folder)
    return folder


def translations(translator, lines):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return translator.translate(lines)


def test_the_model_that_ships_translates_the_same(shipped_with_graphs):
    """In batches, and each alone; the counts of what was cut and of steps too."""
    files = ("tatoeba_en-de/test.en", "everyday/en.txt", "spans/en.txt")
    lines = [line for name in files for line in (FIXTURES / name).read_text("utf-8").splitlines()[:300]]
    assert len(lines) == 530
    lines += random_texts(500)
    light = load_light(shipped_with_graphs)
    expected = load_translator(str(shipped_with_graphs), "auto", preserve_format=True)
    assert light.engine == expected.engine == "onnx-int8" and type(light) is not type(expected)
    assert light.fingerprint == expected.fingerprint and light.num_refinement_steps == expected.num_refinement_steps
    found = translations(light, lines)
    assert found == translations(expected, lines)
    assert len(set(found.texts)) > 900
    for line in lines[::100]:
        assert translations(light, [line]) == translations(expected, [line])


@pytest.mark.parametrize("engine", ONNX_ENGINES)
@pytest.mark.parametrize("num_steps", [None, 0, 10**20])
def test_a_model_with_lengths_translates_the_same(tiny_exported, engine, num_steps):
    lines = [*(FIXTURES / "tatoeba_en-de" / "test.en").read_text("utf-8").splitlines()[:20], "", *random_texts(40)]
    for preserve_format in (True, False):
        options = {"num_refinement_steps": num_steps, "preserve_format": preserve_format, "max_batch_tokens": 300}
        light = load_light(tiny_exported, engine, **options)
        expected = load_translator(str(tiny_exported), engine, **options)
        found = translations(light, lines)
        assert found == translations(expected, lines)
    assert found.num_cut > 0
    with pytest.raises(UnicodeEncodeError):
        light.translate(["a\ud800b"])


@pytest.mark.parametrize("segmenter", ["none", "fugashi", "moses"])
def test_the_tokenizer_is_the_same(tiny_repository, tmp_path, segmenter):
    folder = shutil.copytree(tiny_repository, tmp_path / "model")
    file = folder / "tokenizer_config.json"
    own = json.loads(file.read_text())
    file.write_text(json.dumps({**own, "source_segmenter": segmenter, "target_segmenter": segmenter}))
    tokenizer, light = LvnarTokenizer.from_pretrained(folder), LightTokenizer(folder)
    texts = [*random_texts(100), "", "\u0001", "私は学生です。 NHK World", "It's 3.5 – “so”."]
    ids = tokenizer(texts)["input_ids"]
    assert light(texts)["input_ids"] == ids and light(texts[0])["input_ids"] == ids[0]
    for limit in (2, 7):
        assert light(texts, truncation=True, max_length=limit) == {
            "input_ids": tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        }
    padded = [[*row, 0, 0] for row in ids]
    decoded = tokenizer.batch_decode(padded, skip_special_tokens=True)
    assert light.batch_decode(padded, skip_special_tokens=True) == decoded
    assert [light.tokenize(text) for text in texts] == [tokenizer.tokenize(text) for text in texts]


def changed(name, **changes):
    def change(folder):
        file = folder / name
        own = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({field: value for field, value in own.items() if value != "nothing"}))

    return change


def other_weights(folder):
    make_model(LvnarConfig.from_pretrained(folder), seed=1).save_pretrained(folder)


UNUSUAL = {
    "field": changed("config.json", num_layers=3),
    "missing": changed("config.json", latent_dim="nothing"),
    "size": changed("config.json", hidden_size=7),
    "bool": changed("config.json", is_encoder_decoder=1),
    "kind": changed("config.json", model_type="marian"),
    "number type": changed("config.json", dtype="int8"),
    "foreign code": changed("config.json", auto_map={"AutoConfig": "other.Config"}),
    "vocabulary": changed("config.json", vocab_size=50),
    "steps": changed("generation_config.json", num_refinement_steps=1001),
    "removal": changed("generation_config.json", remove_repetitions="tokens"),
    "no limit": changed("generation_config.json", max_length="nothing"),
    "beams": changed("generation_config.json", num_beams=4),
    "scores": changed("generation_config.json", output_scores=True),
    "not an option": changed("generation_config.json", to_dict=1),
    "special tokens": changed("tokenizer_config.json", pad_token="</s>"),
    "additional": changed("tokenizer_config.json", additional_special_tokens=["<x>"]),
    "split": changed("tokenizer_config.json", split_special_tokens=False),
    "segmenter": changed("tokenizer_config.json", source_segmenter="jieba"),
    "class": changed("tokenizer_config.json", tokenizer_class="MarianTokenizer"),
    "padding": changed("tokenizer.json", padding={"strategy": {"Fixed": 9}}),
    "pattern": changed("tokenizer.json", pre_tokenizer={"type": "ByteLevel"}),
    "nested": lambda folder: (folder / "config.json").write_text("[" * 10**6),
    "more tokens": lambda folder: (folder / "added_tokens.json").write_text("{}"),
    "stale": other_weights,
    "half of the weights": lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 30),
    "half a graph": lambda folder: (folder / "onnx" / "model_int8.onnx").write_bytes(b"\0" * 30),
    "no graph": lambda folder: (folder / "onnx" / "model_int8.onnx").unlink(),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
}


@pytest.fixture(scope="module")
def changing(tiny_exported, tmp_path_factory):
    folder = shutil.copytree(tiny_exported, tmp_path_factory.mktemp("unusual") / "model")
    assert load_light(folder) is not None and load_light(folder, "onnx-int8-shortlist") is not None
    return folder


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_is_unusual_is_left_to_transformers(changing, tiny_exported, kind):
    try:
        UNUSUAL[kind](changing)
        assert load_light(changing) is None
    finally:
        shutil.copytree(tiny_exported, changing, dirs_exist_ok=True)
        (changing / "added_tokens.json").unlink(missing_ok=True)
    assert load_light(changing) is not None


def test_what_is_asked_for_may_need_transformers(tiny_exported, tmp_path):
    for engine, changes in (
        *(("torch", {}), ("compiled", {}), ("auto", {"device": "cuda"}), ("auto", {"max_batch_tokens": 0})),
        *(("auto", {"search": {"beam_size": 3}}), ("auto", {"num_refinement_steps": -1})),
    ):
        assert load_light(tiny_exported, engine, **changes) is None
    assert load_light("user/name") is load_light(tmp_path) is None
    assert load_light(tiny_exported, search={"beam_size": None}) is not None


def test_the_lists_of_fields_are_those_of_the_classes():
    assert set(signature(LvnarConfig).parameters) - {"kwargs"} == light_translator._CONFIG_FIELDS


def test_fingerprints_without_torch(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {"scalar": (), "vector": (70,), "matrix": (33, 7), "row": (1, 64), "empty": (0, 3)}
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        assert folder_weights_fingerprint(tmp_path) == weights_fingerprint(tensors)
    whole = (tmp_path / "model.safetensors").read_bytes()
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    for damaged in (
        *(b"", whole[:5], whole[:60], whole[:-1], b"\xff" * 64),
        whole.replace(b'"F64"', b'"I64"'),
        whole.replace(b"[33,7]", b"[33,8]"),
        whole.replace(header, b"[" * len(header)),
    ):
        assert damaged != whole
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is no whole safetensors file"):
            folder_weights_fingerprint(tmp_path)


COLD = """
import resource, sys
sys.modules["torch"] = sys.modules["transformers"] = None  # as if they were not installed
from lvnar_hf.commands.app import app
folder, files = sys.argv[1], sys.argv[2:]
app(["translate", "--model", folder, "Where is the station?"], standalone_mode=False)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_utime + usage.ru_stime)
app(["translate", "--model", folder, *files], standalone_mode=False)
assert sys.modules["torch"] is sys.modules["transformers"] is None
"""


def test_the_command_needs_neither_torch_nor_transformers(shipped_with_graphs, tmp_path):
    """A loose bound on the processor's clock; tests/support/measure_loading.py on a quiet machine gives the figures."""
    (tmp_path / "in").write_text("Where is the station?\n\nTom laughed.\n" * 30)
    for number in ("1", "2"):  # processes
        files = [str(tmp_path / "in"), str(tmp_path / f"out{number}")]
        options = ["--shard-size", "20", "--num-workers", number]
        command = [sys.executable, "-c", COLD, str(shipped_with_graphs), *files, *options]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
        translation, seconds, result = printed.splitlines()
        assert translation == "Wo ist der Bahnhof?" and float(seconds) < 1.5
        result = json.loads(result)
        assert result["engine"] == "onnx-int8" and result["machine"]["device"] == "cpu"
        assert (tmp_path / f"out{number}").read_text().startswith("Wo ist der Bahnhof?\n\nTom lachte.\n")
