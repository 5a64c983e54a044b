"""Shared fixtures: one tiny tokenizer and model a session, and the other versions of transformers."""

import contextlib
import copy
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chromium import MissingError, running_chromium
from filelock import FileLock
from forks import run_forked

from lvnar_hf import LvnarConfig, LvnarForConditionalGeneration, LvnarTokenizer, train_tokenizer
from lvnar_hf.commands.export import export
from lvnar_hf.engines.onnx_export import export_onnx

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
SAMPLE = FIXTURES / "tatoeba_en-de"

TINY_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_prior_layers": 2,
    "num_posterior_encoder_layers": 1,
    "num_posterior_decoder_layers": 2,
    "num_decoder_layers": 2,
    "latent_dim": 4,
    "max_length_offset": 20,
    "max_position_embeddings": 40,
}


def tiny_config(**changes) -> LvnarConfig:
    return LvnarConfig(**{"vocab_size": 60, **TINY_SIZES, **changes})


def make_model(config: LvnarConfig, seed: int = 0) -> LvnarForConditionalGeneration:
    """A model in evaluation mode, its random weights larger than at the start of training, so that parts differ."""
    torch.manual_seed(seed)
    model = LvnarForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_ctc_model(seed: int = 0, **changes) -> LvnarForConditionalGeneration:
    """As `make_model`, with alignment "ctc" and all that goes with it; blanks as frequent as in a trained model."""
    given = {"alignment": "ctc", "upsampling_ratio": 1.5, "carries_source_states": True, **changes}
    model = make_model(tiny_config(**given), seed)
    with torch.no_grad():
        model.output_weight[model.config.pad_token_id] *= len(model.output_weight) / 5
    return model


def make_batch(config: LvnarConfig, lengths: list[tuple[int, int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random sentences of the given (source, target) lengths, padded to a batch."""
    generator = torch.Generator().manual_seed(seed)
    source_length, target_length = (max(side) for side in zip(*lengths, strict=True))
    target_vocab_size = config.decoder_vocab_size
    input_ids = torch.randint(3, config.vocab_size, (len(lengths), source_length), generator=generator)
    labels = torch.randint(3, target_vocab_size, (len(lengths), target_length), generator=generator)
    attention_mask = torch.zeros_like(input_ids)
    for row, (source, target) in enumerate(lengths):
        attention_mask[row, :source] = 1
        labels[row, target:] = -100
    return {
        "input_ids": input_ids.masked_fill(attention_mask == 0, config.pad_token_id),
        "attention_mask": attention_mask,
        "labels": labels,
    }


def tokens_of(sequences: torch.Tensor) -> list[list[int]]:
    """Translations without padding, which is 0."""
    return [[token for token in row if token != 0] for row in sequences.tolist()]


def collapsed(cells: list[int]) -> list[int]:
    """What the cells of a sentence spell, by the definition of CTC; blank is 0, and 1 stands for nothing."""
    return [token for token, _ in itertools.groupby(cells) if token != 0] or [1]


# Files by the time they take, longest first. They are handed to the processes of `make test` in this order, so that
# none has a long one left when the others are done; the rest, of seconds, follow.
SLOW_FILES = (
    "test_compiled.py",
    "test_training.py",
    "test_onnx.py",
    "test_loading_on_the_oldest.py",
    "test_loading.py",
    "test_benchmark.py",
    "test_processes.py",
    "test_translate.py",
    "test_hub.py",
    "test_trust.py",
    "test_distil.py",
    "test_page_elsewhere.py",
    "test_scripts.py",
    "test_sprint.py",
    "test_resume.py",
    "test_data.py",
    "test_segmentation.py",
    "test_pipeline.py",
    "test_text.py",
    "test_text_pipeline.py",
    "test_modeling.py",
    "test_shipped_model.py",
    "test_tokenization.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def _tiny_model() -> LvnarForConditionalGeneration:
    return make_model(tiny_config())


@pytest.fixture
def tiny_model(_tiny_model) -> LvnarForConditionalGeneration:
    """A tiny model of its own for each test, joint vocabulary of 60 ids."""
    return copy.deepcopy(_tiny_model)


@pytest.fixture(scope="session")
def sample_texts() -> tuple[list[str], list[str]]:
    """300 English and German sentences."""
    return tuple((SAMPLE / f"test.{side}").read_text(encoding="utf-8").split("\n")[:300] for side in ("en", "de"))


@pytest.fixture(scope="session")
def sample_tokenizer(sample_texts) -> LvnarTokenizer:
    """A joint vocabulary of 500 ids trained on the sample."""
    return train_tokenizer(*sample_texts, vocab_size=500, min_character_count=3, max_length=40)


def _save_repository(folder: Path, tokenizer: LvnarTokenizer, **changes) -> Path:
    make_model(tiny_config(vocab_size=len(tokenizer), **changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory, sample_tokenizer) -> Path:
    """A folder with a tiny untrained model and its tokenizer, saved as a user would."""
    return _save_repository(tmp_path_factory.mktemp("repository") / "tiny-lvnar", sample_tokenizer)


def _of_all_processes(tmp_path_factory) -> Path:
    """A folder that the session's processes share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def tiny_graphs(tmp_path_factory, tiny_repository) -> Path:
    """The folder `onnx` of that model, which one of the session's processes makes for all: it takes ten seconds."""
    folder = _of_all_processes(tmp_path_factory) / "graphs"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            export_onnx(LvnarForConditionalGeneration.from_pretrained(tiny_repository), folder)
    return folder / "onnx"


@pytest.fixture(scope="session")
def tiny_ctc_repository(tmp_path_factory, sample_tokenizer) -> Path:
    """The same with alignment "ctc", whose source states are carried to the cells."""
    folder = tmp_path_factory.mktemp("repository") / "tiny-lvnar-ctc"
    return _save_repository(folder, sample_tokenizer, alignment="ctc", carries_source_states=True)


@pytest.fixture(scope="session")
def shipped_with_graphs(tmp_path_factory) -> Path:
    """The model that ships with its graphs, made by the command, once for all processes; not to be changed."""
    folder = _of_all_processes(tmp_path_factory) / "shipped"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            shutil.copytree(ROOT / "model_cards" / "lvnar-tatoeba-en-de", folder)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                result = export(str(folder), search=True)
            assert json.loads(printed.getvalue()) == result and result["float32"]["different_sentences"] == 0
            assert result["int8"]["bytes"] < result["float32"]["bytes"]
    return folder


@pytest.fixture(scope="session", params=["length", "ctc"])
def either_repository(request) -> Path:
    """Both, one after the other."""
    return request.getfixturevalue("tiny_repository" if request.param == "length" else "tiny_ctc_repository")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; a test without one is skipped."""
    pytest.importorskip("playwright.sync_api", reason="it is in .environments/app; see the Makefile")
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(running_chromium())
        except MissingError as error:
            pytest.skip(str(error))


def other_versions() -> list[str]:
    """The other versions of transformers that `make test` has installed, as "4.57.6"."""
    if "LVNAR_ENVIRONMENTS" not in os.environ:
        return []
    folders = Path(os.environ["LVNAR_ENVIRONMENTS"]).glob("transformers-*")
    versions = sorted(folder.name.removeprefix("transformers-") for folder in folders)
    if not versions:
        raise RuntimeError("LVNAR_ENVIRONMENTS names a folder without environments; `make test` fills it.")
    return versions


def other_python(version: str | None) -> str:
    """The Python of a version's virtual environment (None: the one that runs the tests)."""
    if version is None:
        return sys.executable
    return str(Path(os.environ["LVNAR_ENVIRONMENTS"]) / f"transformers-{version}" / "bin" / "python")


def run_tests_elsewhere(python: str, *arguments: str, **environment: str) -> None:
    """Run tests in another virtual environment; its Python, arguments of pytest, further environment variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, timeout=1500
    )
    print(result.stdout[-3000:])
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-1000:]


def run_with_transformers(version: str | None, code: str, *arguments: str) -> str:
    """What a script prints on a version of transformers (None: the installed one)."""
    result = run_forked(["-c", code, *arguments], python=other_python(version))
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
