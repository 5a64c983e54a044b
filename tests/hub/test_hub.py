"""Assembling, verifying and publishing a repository, against a Hub on this machine; what is refused; faults."""

import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import ROOT, make_model, tiny_config
from huggingface_hub import HfApi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback_hub import TOKEN, Fault, point_client_at, running_hub
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, pipeline

from lvnar_hf import LvnarConfig, LvnarTokenizer, __version__, hub, train_tokenizer
from lvnar_hf.commands.app import app
from lvnar_hf.commands.publish import publish
from lvnar_hf.confidence_lvnar import FILE as CALIBRATION_FILE
from lvnar_hf.confidence_lvnar import Calibration, Curve
from lvnar_hf.engines.graph import FILES
from lvnar_hf.engines.shortlist import FILE as SHORTLIST_FILE
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.files.fingerprints import folder_weights_fingerprint
from lvnar_hf.hub import verification
from lvnar_hf.hub.checks import (
    PACKAGE_FOLDER,
    TRAVELLING_MODULES,
    check_file_names,
    check_repository,
    list_files,
)

REPO_ID = "user/tiny-lvnar"
TAG = f"v{__version__}"
CARD = "---\nlibrary_name: transformers\npipeline_tag: translation\n---\n# A tiny model\n"


@pytest.fixture(scope="module")
def model_folder(tiny_repository, tmp_path_factory) -> Path:
    """A model with card and results, before assembling."""
    folder = tmp_path_factory.mktemp("model") / "tiny-lvnar"
    shutil.copytree(tiny_repository, folder, ignore=lambda _, names: [n for n in names if n.endswith(".py")])
    (folder / "README.md").write_text(CARD, "utf-8")
    (folder / "results").mkdir()
    (folder / "results" / "test.json").write_text("{}\n")
    return folder


@pytest.fixture(scope="module")
def assembled(model_folder, tmp_path_factory) -> Path:
    return hub.assemble(model_folder, tmp_path_factory.mktemp("assembled") / "tiny-lvnar")


@pytest.fixture
def repository(assembled, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(assembled, tmp_path / "repository"))


@pytest.fixture
def remote(monkeypatch):
    """A fresh Hub, and no waiting between the client's attempts."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    with running_hub() as loopback:
        point_client_at(loopback, monkeypatch)
        yield loopback


@pytest.fixture
def without_processes(monkeypatch) -> list:
    """The clean process is left out, where a test is about the transfer; the checked repositories are listed."""
    verified: list = []

    def compare(model, revision, texts, expected, cache):
        verified.append((str(model), revision))
        return [""] * len(texts)

    monkeypatch.setattr(verification, "_compare", compare)
    return verified


def write_fields(file: Path, **changes) -> None:
    """Change fields of a JSON file; None removes a field."""
    fields = {**json.loads(file.read_text("utf-8")), **changes}
    file.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}), "utf-8")


# Assembling


def test_the_assembled_repository_is_whole_and_its_modules_are_the_packages(assembled, model_folder):
    weights = ["model.safetensors"]
    written = ["README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert list_files(assembled) == sorted([*written, *weights, *TRAVELLING_MODULES, "results/test.json"])
    for name in TRAVELLING_MODULES:
        assert (assembled / name).read_bytes() == (PACKAGE_FOLDER / name).read_bytes()
    for name in (*weights, "README.md", "tokenizer.json"):
        assert (assembled / name).read_bytes() == (model_folder / name).read_bytes()
    config = json.loads((assembled / "config.json").read_text())
    assert config["auto_map"]["AutoConfig"] == "configuration_lvnar.LvnarConfig"
    assert config["custom_pipelines"]["translation"]["impl"] == "pipeline_lvnar.LvnarTranslationPipeline"


def test_the_travelling_modules_are_those_that_the_entry_modules_import():
    """Found by what they import of each other; and they import nothing else of this package, nor a third party."""
    found, new = set(), {"configuration_lvnar", "modeling_lvnar", "tokenization_lvnar", "pipeline_lvnar"}
    while new:
        found |= new
        sources = [(PACKAGE_FOLDER / f"{name}.py").read_text("utf-8") for name in new]
        new = {name for source in sources for name in re.findall(r"^\s*from \.(\w+) import", source, re.M)} - found
    assert {f"{name}.py" for name in found} == set(TRAVELLING_MODULES)
    allowed = {*sys.stdlib_module_names, "torch", "transformers", "tokenizers"}
    for name in TRAVELLING_MODULES:
        source = (PACKAGE_FOLDER / name).read_text("utf-8")
        assert set(re.findall(r"^(?:from|import) (\w+)", source, re.M)) <= allowed
        assert "lvnar_hf" not in re.findall(r"^\s*(?:from|import) (\w+)", source, re.M)


def test_assembling_needs_a_card_and_overwrites_nothing_unasked(model_folder, assembled, tmp_path):
    output = tmp_path / "deeper" / "output"
    hub.assemble(model_folder, output)
    with pytest.raises(FileExistsError, match="not empty"):
        hub.assemble(model_folder, output)
    (output / "left.txt").write_text("from before")
    hub.assemble(model_folder, output, overwrite=True)
    assert list_files(output) == list_files(assembled)
    with pytest.raises(FileExistsError, match="itself"):
        hub.assemble(output, output, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match="something else"):
        hub.assemble(model_folder, tmp_path / "other", overwrite=True)
    (output / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"README\.md"):
        hub.assemble(output, tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deeper", "other"]  # nothing half made is left


def test_a_pickled_model_is_refused(model_folder, repository, tmp_path):
    pickled = Path(shutil.copytree(model_folder, tmp_path / "pickled"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="writes safetensors"):
        hub.assemble(pickled, tmp_path / "output")
    shutil.copy(pickled / "pytorch_model.bin", repository / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        hub.verify(repository)


def test_two_vocabularies_shards_and_a_stored_path_are_published(sample_texts, tmp_path):
    tokenizer = train_tokenizer(*sample_texts, vocab_size=480, joint=False, min_character_count=3, max_length=40)
    sizes = {"vocab_size": len(tokenizer), "target_vocab_size": tokenizer.target_vocab_size}
    make_model(tiny_config(**sizes)).save_pretrained(tmp_path / "two", max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path / "two")
    (tmp_path / "two" / "README.md").write_text(CARD)
    write_fields(tmp_path / "two" / "tokenizer_config.json", kytea_model="/home/someone/models/jp.mod", auto_map=None)
    (tmp_path / "two" / "jp.mod").write_bytes(b"model")
    output = hub.assemble(tmp_path / "two", tmp_path / "output")
    assert len(list(output.glob("*.safetensors"))) > 1
    assert {"target_tokenizer.json", "jp.mod", "model.safetensors.index.json"} <= set(list_files(output))
    assert json.loads((output / "tokenizer_config.json").read_text())["kytea_model"] == "jp.mod"

    index_file = output / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    weight, shard = next(iter(index["weight_map"].items()))
    for wrong in ("../model.safetensors", "/etc/passwd", "a\\b.safetensors"):
        index_file.write_text(json.dumps({"weight_map": {**index["weight_map"], weight: wrong}}))
        with pytest.raises(ValueError, match="in the same folder"):
            check_repository(output)
    index_file.write_text(json.dumps(index))
    check_repository(output)
    (output / "target_tokenizer.json").rename(tmp_path / "target_tokenizer.json")
    with pytest.raises(FileNotFoundError, match=r"no target_tokenizer\.json"):
        check_repository(output)
    (output / shard).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(shard)):
        check_repository(output)


def test_graphs_are_published_and_refused_if_they_are_cut_or_of_other_weights(
    model_folder, tiny_graphs, without_processes, capsys, tmp_path
):
    folder = Path(shutil.copytree(model_folder, tmp_path / "with-graphs"))
    shutil.copytree(tiny_graphs, folder / "onnx")
    Shortlist(torch.ones(500, 2).int(), torch.tensor([5, 6]).int(), torch.tensor(-0.5)).save(folder)
    calibration = Calibration(Curve((0.5,), (0.5,)), Curve((0.5,), (0.5,)), 0.5, folder_weights_fingerprint(folder))
    (folder / CALIBRATION_FILE).write_text(json.dumps(calibration.to_dict()))
    output = tmp_path / "output"
    publish(str(folder), REPO_ID, str(output))
    shown = capsys.readouterr().out
    for name in (*FILES.values(), CALIBRATION_FILE, SHORTLIST_FILE):
        assert (output / name).read_bytes() == (folder / name).read_bytes() and f" {name}\n" in shown
    content = (output / FILES["int8"]).read_bytes()
    (output / FILES["int8"]).write_bytes(content[:-99])
    with pytest.raises(ValueError, match=r"cannot load .*model_int8\.onnx"):
        hub.verify(output)
    (output / FILES["int8"]).write_bytes(content)
    make_model(LvnarConfig.from_pretrained(output), seed=1).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", output)
    with pytest.raises(ValueError, match=r"calibration\.json was made from other weights"):
        hub.verify(output)
    (output / CALIBRATION_FILE).unlink()
    with pytest.raises(ValueError, match=r"onnx/model\.onnx was made from other weights"):
        hub.verify(output)


# What is refused


def spoil_weight(folder: Path, name: str, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors.pop(name))
    save_file(
        tensors if changed is None else {**tensors, name: changed}, folder / "model.safetensors", {"format": "pt"}
    )


def add_file(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")


def first_not_a_number(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = float("nan")
    return tensor


NAME = "decoder.latent_proj.weight"
REFUSED = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer\.json"),
    "no module": (lambda f: (f / "losses_lvnar.py").unlink(), r"has no losses_lvnar\.py"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors"),
    "other code": (lambda f: (f / "losses_lvnar.py").write_text("import os\n"), r"losses_lvnar\.py differs"),
    "more code": (lambda f: (f / "setup.py").write_text("import os\n"), r"setup\.py has no place"),
    "another shortlist": (
        lambda f: Shortlist(torch.ones(9, 2).int(), torch.ones(3).int(), torch.tensor(0.0)).save(f),
        r"shortlist\.safetensors is for 9 source tokens; the model has 500",
    ),
    "another graph": (lambda f: add_file(f, "onnx/weights.data"), r"onnx/weights\.data has no place"),
    "a graph elsewhere": (lambda f: add_file(f, "model.onnx"), r"repository/model\.onnx has no place"),
    "pickle": (lambda f: (f / "results" / "scores.pkl").write_bytes(b""), r"results/scores\.pkl"),
    "a missing weight": (lambda f: spoil_weight(f, NAME, lambda t: None), f"lacks 1 weights: {NAME}"),
    "an unknown weight": (
        lambda f: save_file({**load_file(f / "model.safetensors"), "extra": torch.ones(1)}, f / "model.safetensors"),
        "has 1 weights that the configuration has no layers for: extra",
    ),
    "another shape": (lambda f: spoil_weight(f, NAME, lambda t: t[:, :2].clone()), rf"{NAME} is \(32, 2\).*\(32, 4\)"),
    "not finite": (lambda f: spoil_weight(f, NAME, first_not_a_number), f"{NAME} has values that are not finite"),
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-99]),
        r"model\.safetensors is no whole",
    ),
    "an unknown field": (lambda f: write_fields(f / "config.json", hiden_size=8), r"config\.json: .*hiden_size"),
    "an adapter": (lambda f: add_file(f, "adapter_config.json"), r"adapter_config\.json has no place"),
    "another generate": (lambda f: add_file(f, "custom_generate/generate.py"), r"generate\.py has no place"),
    "a template": (lambda f: add_file(f, "chat_template.jinja"), r"chat_template\.jinja has no place"),
    "a hidden file": (lambda f: add_file(f, "results/.env"), r"results/\.env has no place"),
    "a kernel": (
        lambda f: write_fields(f / "config.json", attn_implementation="user/kernel"),
        r"config\.json: .*no attn_implementation",
    ),
    "a kernel in a hidden field": (
        lambda f: write_fields(f / "config.json", _attn_implementation_internal="user/kernel"),
        r"config\.json: .*no _attn_implementation_internal",
    ),
    "a quantizer": (
        lambda f: write_fields(f / "config.json", quantization_config={"quant_method": "fp8"}),
        r"config\.json: .*no quantization_config",
    ),
    "a field of transformers": (
        lambda f: write_fields(f / "config.json", task_specific_params={"translation": {"prefix": "x"}}),
        r"config\.json: .*no task_specific_params",
    ),
    "an unknown decoding option": (
        lambda f: write_fields(f / "generation_config.json", custom_generate="user/repo"),
        r"generation_config\.json: .*no custom_generate",
    ),
    "an unknown field of the tokenizer": (
        lambda f: write_fields(f / "tokenizer_config.json", gguf_file="x"),
        r"tokenizer_config\.json: .*no gguf_file",
    ),
    "a KyTea model that is something else": (
        lambda f: (
            add_file(f, "adapter_config.json"),
            write_fields(f / "tokenizer_config.json", kytea_model="adapter_config.json"),
        ),
        r"adapter_config\.json has no place",
    ),
    "no configuration": (lambda f: (f / "config.json").write_text("[]"), r"config\.json must hold a JSON object"),
    "another model": (lambda f: write_fields(f / "config.json", model_type="bert"), "model_type is 'bert'"),
    "code elsewhere": (
        lambda f: write_fields(
            f / "config.json", auto_map={"AutoConfig": "evil/repo--configuration_lvnar.LvnarConfig"}
        ),
        r"config\.json: auto_map",
    ),
    "another vocabulary size": (
        lambda f: write_fields(f / "config.json", vocab_size=501),
        r"source_embedding\.weight is \(500, 32\).*\(501, 32\)",
    ),
    "too many layers": (lambda f: write_fields(f / "config.json", num_decoder_layers=999), "layers; the weights are"),
    "too large": (
        lambda f: write_fields(f / "config.json", hidden_size=2**60, num_attention_heads=1),
        r"config\.json: The sizes ask for .* weights",
    ),
    "a decoding option of a wrong type": (
        lambda f: write_fields(f / "generation_config.json", max_length={}),
        r"generation_config\.json: ",
    ),
    "decoding options": (
        lambda f: write_fields(f / "generation_config.json", num_refinement_steps=-1),
        r"generation_config\.json: num_refinement_steps is -1",
    ),
    "a path": (
        lambda f: write_fields(f / "tokenizer_config.json", kytea_model="../../secret"),
        r"tokenizer_config\.json: kytea_model is '\.\./\.\./secret'",
    ),
    "another path": (
        lambda f: write_fields(f / "tokenizer_config.json", target_tokenizer_file="/etc/passwd"),
        r"tokenizer_config\.json: .*no target_tokenizer_file",
    ),
    "another tokenizer": (
        lambda f: write_fields(f / "tokenizer_config.json", tokenizer_class="BertTokenizer"),
        "tokenizer_class is 'BertTokenizer'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unsound_repository_is_refused_and_the_cause_named(repository, case):
    damage, message = REFUSED[case]
    damage(repository)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        hub.verify(repository)


def test_a_vocabulary_that_does_not_match_its_embedding_is_refused(repository, sample_texts):
    train_tokenizer(*sample_texts, vocab_size=510, min_character_count=3, max_length=40).save_pretrained(repository)
    with pytest.raises(ValueError, match=r"510 entries .*500 rows \(vocab_size"):
        check_repository(repository)
    with pytest.raises(ValueError, match=r"510 source ids.*500 rows"):
        pipeline("translation", model=str(repository))


@pytest.mark.parametrize("name", ["README.md", "results", "results/more", "tokenizer.json", "model.safetensors"])
def test_links_that_leave_the_folder_are_refused(model_folder, repository, name, tmp_path):
    """By `assemble` before anything is copied, and by `check_repository`; what stays inside is a file like another."""
    source = Path(shutil.copytree(model_folder, tmp_path / "source"))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "secret.json").write_text("{}")
    for folder in (source, repository):
        place = folder / name
        if place.exists():
            place.rename(tmp_path / f"{folder.name}-{place.name}")
        outside = tmp_path / f"{folder.name}-{place.name}"
        place.symlink_to(outside if outside.exists() else tmp_path / "secrets")
    with pytest.raises(ValueError, match="link that leaves the folder"):
        hub.assemble(source, tmp_path / "output")
    assert not (tmp_path / "output").exists()
    with pytest.raises(ValueError, match=r"link that leaves the folder|is no file"):
        check_repository(repository)


def test_a_link_that_stays_is_copied_as_a_file(model_folder, tmp_path):
    source = Path(shutil.copytree(model_folder, tmp_path / "source"))
    (source / "README.md").rename(source / "card.md")
    (source / "README.md").symlink_to("card.md")
    (tmp_path / "linked").symlink_to(source)
    output = hub.assemble(tmp_path / "linked", tmp_path / "output")
    assert not (output / "README.md").is_symlink() and (output / "README.md").read_text() == CARD


@pytest.mark.parametrize("name", ["../x.json", "/etc/passwd", "a/../../x", "a\\..\\x", "C:x", "a\nb"])
def test_file_names_that_lead_out_are_refused(name):
    with pytest.raises(ValueError, match="leads out"):
        check_file_names(["config.json", name])


def test_names_that_lead_out_are_refused_before_anything_is_downloaded(remote):
    HfApi(endpoint=remote.url).create_repo(REPO_ID)
    remote.repositories[REPO_ID].commit({"../../escaped.json": b"{}"})
    with pytest.raises(ValueError, match=r"\.\./\.\./escaped\.json"):
        hub.verify(REPO_ID, api=HfApi(endpoint=remote.url))
    assert not any("/resolve/" in path for _, path in remote.requests)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**20) | st.floats() | st.text(max_size=5) | st.just("../x"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=3,
)
# Fields that transformers itself reads before it asks a class of this package.
READ_BY_TRANSFORMERS = {"auto_map", "tokenizer_class", "model_type"}


@st.composite
def spoilt_json(draw, text: str, skipped: frozenset[str] | set[str] = frozenset()) -> str:
    """A JSON object with one value, at any depth, removed or replaced, or a field added."""
    root = value = json.loads(text)
    keys = [key for key in value if key not in skipped]
    while True:
        key = draw(st.sampled_from(keys))
        inner = value[key]
        if not isinstance(inner, (dict, list)) or not inner or draw(st.integers(0, 2)) == 0:
            break
        value, keys = inner, list(inner)[:20] if isinstance(inner, dict) else list(range(min(len(inner), 4)))
    change = draw(st.sampled_from(["remove", "replace", "replace", "add"]))
    if change == "remove":
        del value[key]
    elif change == "replace" or isinstance(value, list):
        value[key] = draw(JSON_VALUES)
    else:
        value[draw(st.text(max_size=8))] = draw(JSON_VALUES)
    return json.dumps(root)


def spoilt_bytes(data: st.DataObject, original: bytes) -> bytes:
    """Up to four bytes removed anywhere, and up to four others put there."""
    start = data.draw(st.integers(0, len(original)))
    return original[:start] + data.draw(st.binary(max_size=4)) + original[start + data.draw(st.integers(0, 4)) :]


FUZZED = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(
    ("name", "loaders"),
    [
        ("config.json", [LvnarConfig.from_pretrained, AutoConfig.from_pretrained]),
        ("tokenizer.json", [LvnarTokenizer.from_pretrained, AutoTokenizer.from_pretrained]),
        ("tokenizer_config.json", [LvnarTokenizer.from_pretrained, AutoTokenizer.from_pretrained]),
    ],
)
def test_spoilt_files_give_clear_errors_or_load(repository, name, loaders):
    (repository / "model.safetensors").unlink()
    original = (repository / name).read_bytes()

    @FUZZED
    @given(data=st.data())
    def spoil(data):
        is_json = data.draw(st.booleans())
        if is_json:
            content = data.draw(spoilt_json(original.decode("utf-8"), READ_BY_TRANSFORMERS)).encode()
        else:
            content = spoilt_bytes(data, original)
        (repository / name).write_bytes(content)
        for load in loaders if is_json else loaders[:1]:
            try:
                loaded = load(repository)
                if name != "config.json":
                    loaded.decode(loaded("Tom laughed.")["input_ids"])
            except (ValueError, OSError) as error:
                assert str(error)

    spoil()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_spoilt_files_are_refused_or_sound(repository, name):
    original = (repository / name).read_bytes()

    @FUZZED
    @given(data=st.data())
    def spoil(data):
        if data.draw(st.booleans()):
            content = data.draw(spoilt_json(original.decode("utf-8"))).encode()
        else:
            content = spoilt_bytes(data, original)
        (repository / name).write_bytes(content)
        try:
            check_repository(repository)
        except (ValueError, OSError) as error:
            assert str(error)

    spoil()


# Publishing


def test_publish_shows_then_sends_then_verifies(model_folder, remote, tmp_path, capfd, caplog):
    """The whole way, with the clean processes."""
    caplog.set_level(logging.DEBUG)
    arguments = ["--model", str(model_folder), "--repo-id", REPO_ID, "--text", "Tom laughed.", "--private"]
    app(["publish", *arguments, "--push"], standalone_mode=False)
    output = capfd.readouterr()
    stored = remote.repositories[REPO_ID]
    assembled = hub.assemble(model_folder, tmp_path / "assembled")
    content = {name: (assembled / name).read_bytes() for name in list_files(assembled)}
    assert {n: c for n, c in stored.files(TAG).items() if n != ".gitattributes"} == content
    assert stored.private and stored.tags == {TAG: stored.branches["main"]}
    assert [p for m, p in remote.requests if m == "POST" and "/commit/" in p] == [f"/api/models/{REPO_ID}/commit/main"]
    assert any(m == "PUT" and p.startswith("/lfs/") for m, p in remote.requests)
    assert f"commit {stored.tags[TAG]}" in output.out and "Tom laughed. -> " in output.out
    assert all(name in output.out for name in content)
    assert TOKEN not in output.out + output.err + caplog.text


def test_a_dry_run_asks_nothing_of_the_network(model_folder, remote, without_processes, capsys, tmp_path):
    arguments = [str(model_folder), REPO_ID, str(tmp_path / "kept")]
    publish(*arguments)
    assert remote.requests == [] and "nothing sent" in capsys.readouterr().out
    assert without_processes == [(str(tmp_path / "kept"), None)]
    with pytest.raises(FileExistsError):
        publish(*arguments)
    with pytest.raises(SystemExit):
        app(["publish", "--model", str(model_folder), "--repo-id", REPO_ID, "--token", TOKEN])
    assert "No such option: --token" in capsys.readouterr().err and remote.requests == []


def test_the_sentences_to_verify_with_are_of_the_source_language(model_folder, monkeypatch, tmp_path):
    assert hub.golden_texts(model_folder) == hub.golden_texts(tmp_path) == hub.GOLDEN_TEXTS, "none is stored"
    for language, text in (("en", "Where is the station?"), ("de", "Wo ist der Bahnhof?"), ("ja", "私は学生です。")):
        write_fields(shutil.copytree(model_folder, tmp_path / language) / "config.json", source_language=language)
        assert hub.golden_texts(tmp_path / language) == (text,)


def test_the_command_in_the_documents_is_a_dry_run(without_processes, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (command,) = re.findall(r"^lvnar (publish .*)$", (ROOT / "docs" / "USAGE.md").read_text("utf-8"), re.M)
    app(shlex.split(command), standalone_mode=False)
    output = capsys.readouterr().out
    assert "dry run: verified, nothing sent" in output and len(without_processes) == 1
    assert "Where is the station? -> " in output and output.count(" -> ") == 1


def test_publishing_again_changes_nothing_and_a_version_is_published_once(repository, remote, without_processes):
    api = HfApi(endpoint=remote.url)
    first = hub.push(repository, REPO_ID, api=api)
    stored = remote.repositories[REPO_ID]
    before = (dict(stored.commits), dict(stored.branches), dict(stored.tags))
    assert hub.push(repository, REPO_ID, api=api) == first
    assert (stored.commits, stored.branches, stored.tags) == before
    shutil.rmtree(repository / "results")
    with pytest.raises(hub.PublishError, match=rf"tag {re.escape(TAG)} already.*results/test\.json.*another version"):
        hub.push(repository, REPO_ID, api=api)
    assert (stored.commits, stored.branches, stored.tags) == before
    second = hub.push(repository, REPO_ID, version="0.1.1", api=api)
    assert stored.tags == {TAG: first.commit, "v0.1.1": second.commit} and stored.branches == {"main": second.commit}
    assert "results/test.json" in stored.files(TAG) and "results/test.json" not in stored.files()


def flip_a_bit(files: dict[str, bytes]) -> None:
    content = bytearray(files["model.safetensors"])
    content[-5] ^= 1
    files["model.safetensors"] = bytes(content)


CHANGES = {
    "model.safetensors": flip_a_bit,
    "README.md": lambda files: files.update({"README.md": b"---\nlicense: mit\n---\n"}),
    "results/test.json": lambda files: files.pop("results/test.json"),
    "results/more.json": lambda files: files.update({"results/more.json": b"{}"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_downloaded_must_be_what_was_sent(repository, remote, without_processes, name):
    """A Hub that keeps something else, and says so consistently: by its own hashes the download is whole."""

    def change(loopback) -> None:
        stored = loopback.repositories[REPO_ID]
        CHANGES[name](stored.commits[stored.branches["main"]])

    remote.faults = [Fault("POST", "/tag/", action=change)]
    with pytest.raises(hub.PublishError, match=f"(?s)not verified.*other files than were sent: {re.escape(name)}"):
        hub.push(repository, REPO_ID, api=HfApi(endpoint=remote.url))


def test_an_unsound_folder_is_refused_before_anything_is_sent(repository, remote, without_processes):
    (repository / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError):
        hub.push(repository, REPO_ID, api=HfApi(endpoint=remote.url))
    with pytest.raises(ValueError, match="Repo id"):
        hub.push(repository, "../escape/x", api=HfApi(endpoint=remote.url))
    assert remote.requests == []


def move_main(loopback) -> None:
    stored = loopback.repositories[REPO_ID]
    stored.commit({**stored.files(), "theirs.txt": b"someone else's"})


def move_tag(loopback) -> None:
    stored = loopback.repositories[REPO_ID]
    stored.tags[TAG] = stored.commit({**stored.files(), "theirs.txt": b""}, "theirs")


WEIGHTS_PATH = r"/resolve/.*model\.safetensors"
FAULTS = {
    "403 on creation": (  # older clients then ask whether the repository exists
        [Fault("POST", "/repos/create", 403), Fault("GET", "/api/models/", 403)],
        "nothing was uploaded",
        False,
    ),
    "no right to write": ([Fault("POST", "/preupload/", 403)], "not committed: .* is at", False),
    "500 in an upload, always": ([Fault("PUT", "/lfs/", 500, times=None)], "not committed: .* is at", False),
    "500 after the upload": ([Fault("POST", "/verify", 500, times=None)], "not committed: .* is at", False),
    "500 on the commit": ([Fault("POST", "/commit/", 500, times=None)], "not committed: .* is at", False),
    "main moved": ([Fault("POST", "/commit/", action=move_main)], "not committed: .*has moved from", False),
    "403 on the tag": ([Fault("POST", "/tag/", 403)], "has all files, in .* could not be tagged", True),
    "another's tag": (
        [Fault("GET", "/revision/v", after=1, action=move_tag)],
        "names .*someone else has set it",
        True,
    ),
    "a short download": (
        [Fault("GET", WEIGHTS_PATH, truncate="content", times=None)],
        "uploaded and tagged .*not verified",
        True,
    ),
    "403 on the download": ([Fault("GET", WEIGHTS_PATH, 403, times=None)], "uploaded and tagged .*not verified", True),
    "a broken download, always": (
        [Fault("GET", WEIGHTS_PATH, truncate="connection", times=None)],
        "uploaded and tagged .*not verified",
        True,
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_leaves_the_remote_as_it_was_or_says_how_to_go_on(assembled, remote, without_processes, case):
    faults, message, is_committed = FAULTS[case]
    api = HfApi(endpoint=remote.url)
    api.create_repo(REPO_ID)
    stored = remote.repositories[REPO_ID]
    stored.commit({**stored.files(), "old.txt": b"from before"})
    before = stored.branches["main"]
    remote.faults = list(faults)
    with pytest.raises(hub.PublishError, match=f"(?s){message}") as error:
        hub.push(assembled, REPO_ID, api=api)
    assert TOKEN not in str(error.value)
    if is_committed:
        assert "old.txt" not in stored.files()
    elif case == "main moved":
        assert stored.files() == {**stored.commits[before], "theirs.txt": b"someone else's"}
    else:
        assert stored.branches == {"main": before} and stored.tags == {}
    remote.faults = []
    if case == "another's tag":
        with pytest.raises(hub.PublishError, match="another version"):
            hub.push(assembled, REPO_ID, api=api)
        return
    assert "Run the same command again" in str(error.value)
    published = hub.push(assembled, REPO_ID, api=api)
    assert stored.tags[TAG] == stored.branches["main"] == published.commit
    assert without_processes[-1] == (REPO_ID, published.commit)
    assert "old.txt" not in stored.files() and "README.md" in stored.files()


@pytest.mark.parametrize(
    "fault",
    [Fault("PUT", "/lfs/", 500), Fault("GET", WEIGHTS_PATH, truncate="connection"), Fault("HEAD", "/resolve/", 500)],
)
def test_a_fault_that_passes_is_got_over(assembled, remote, without_processes, fault):
    fault.times = 1
    remote.faults = [fault]
    api = HfApi(endpoint=remote.url)
    if fault.truncate and int(huggingface_hub.__version__.split(".")[0]) < 2:  # it does not go on with the download
        with pytest.raises(hub.PublishError, match="Run the same command again"):
            hub.push(assembled, REPO_ID, api=api)
    published = hub.push(assembled, REPO_ID, api=api)
    assert remote.repositories[REPO_ID].tags[TAG] == published.commit and fault.times == 0


def test_other_tokens_than_the_packages_are_refused(assembled, monkeypatch):
    answer = {"ids": [], "translations": []}

    def run(*args, **kwargs):
        task = json.loads(kwargs["input"])
        assert task["model"] == str(assembled) and 'sys.modules["lvnar_hf"] = None' in args[0][-1]
        assert "HF_TOKEN" not in kwargs["env"] and kwargs["env"]["HF_HUB_OFFLINE"] == "1"
        return subprocess.CompletedProcess(args, 0 if answer else 1, json.dumps(answer), "no module named x")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ValueError, match="gives other tokens as remote code"):
        hub.verify(assembled, texts=["Tom laughed."])
    answer.clear()
    with pytest.raises(RuntimeError, match=r"(?s)does not load without the package.*no module named x"):
        hub.verify(assembled, texts=["Tom laughed."])
    with pytest.raises(ValueError, match="has no revisions"):
        hub.verify(assembled, revision="main")
