"""Files and inputs that mean harm, or are damaged: refused by name, in little time and memory."""

import json
import shutil
import time
from pathlib import Path

import fuzz
import pytest
import torch
from conftest import make_batch, make_ctc_model, make_model, tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lvnar_hf import LvnarForConditionalGeneration, LvnarTokenizer
from lvnar_hf.confidence_lvnar import FILE as CALIBRATION_FILE
from lvnar_hf.confidence_lvnar import Calibration, Curve
from lvnar_hf.decoding_options_lvnar import MAX_STORED_STEPS
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.loading import load_config, load_model, load_tokenizer
from lvnar_hf.refinement_lvnar import refine, translate_in_parts
from lvnar_hf.segmentation_lvnar import FugashiSegmenter, JapaneseSegmenter
from lvnar_hf.sizes_lvnar import parts_by_length

IN_THE_SUITE = [kind for kind in fuzz.FILES if kind != "graph"]


@pytest.fixture(scope="module")
def whole(tiny_repository, tmp_path_factory) -> Path:
    """The tiny repository with a shortlist and a calibration."""
    folder = tmp_path_factory.mktemp("hostile") / "whole"
    shutil.copytree(tiny_repository, folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    candidates = torch.randint(3, rows, (rows, 4), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    Shortlist(candidates, torch.arange(3, 20, dtype=torch.int32), torch.tensor(-1.0)).save(folder)
    curve = Curve((0.25, 0.5, 0.75), (0.25, 0.5, 1.0))
    (folder / CALIBRATION_FILE).write_text(json.dumps(Calibration(curve, curve, 0.5).to_dict()))
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture(scope="module")
def fuzzed(whole, tmp_path_factory) -> tuple[Path, dict[str, list[list[int]]]]:
    copy = tmp_path_factory.mktemp("hostile") / "fuzzed"
    shutil.copytree(whole, copy)
    return copy, {kind: fuzz.use(whole, kind) for kind in IN_THE_SUITE}


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(IN_THE_SUITE), seed=st.integers(0, 10**9))
def test_damaged_files_are_refused_or_do_no_harm(whole, fuzzed, kind, seed):
    """Any exception but ValueError and OSError fails."""
    copy, expected = fuzzed
    fuzz.run_case(whole, copy, kind, seed, expected[kind])


@pytest.mark.fuzz
def test_ten_thousand_damaged_files(whole, tmp_path):
    """No crash, no hang, no memory, no other exception; with the graph. Half an hour: pytest -m fuzz."""
    from lvnar_hf.engines.onnx_export import export_onnx

    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    export_onnx(LvnarForConditionalGeneration.from_pretrained(folder), folder)
    assert fuzz.run(folder, 10_000, list(fuzz.FILES))["faults"] == []


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(folder: Path, **changes) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), **changes}, file, {"format": "pt"})


def test_more_weights_than_layers_are_refused(folder):
    change_json(folder / "config.json", num_decoder_layers=1)
    with pytest.raises(ValueError, match=r"has \d+ weights that the configuration has no layers for: decoder\.stack"):
        LvnarForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("size", [2**23, 2**27])
def test_shapes_are_compared_before_memory_is_taken(folder, size):
    change_json(folder / "config.json", vocab_size=size)
    Path("/proc/self/clear_refs").write_text("5")
    before = fuzz._status("VmRSS")
    with pytest.raises(ValueError, match="another shape in the checkpoint"):
        LvnarForConditionalGeneration.from_pretrained(folder)
    assert fuzz._status("VmHWM") - before < 100 * 2**20


def test_weights_that_are_no_floats_are_refused(folder):
    change_weights(folder, **{"decoder.latent_proj.bias": torch.zeros(32, dtype=torch.int64)})
    with pytest.raises(
        ValueError, match=r"model\.safetensors: the weight decoder\.latent_proj\.bias is of the type I64"
    ):
        LvnarForConditionalGeneration.from_pretrained(folder)


def test_a_truncated_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        LvnarForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("make", [lambda: make_model(tiny_config()), make_ctc_model])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decoder.latent_proj.weight", 3e38),
        ("decoder.length_transform.log_sigma", -50.0),
        ("source_embedding.weight", 3e38),
    ],
)
def test_finite_but_absurd_weights_raise(make, name, value):
    model = make()
    batch = make_batch(model.config, [(5, 4), (3, 4)])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    model.generate(**inputs)
    with torch.no_grad():
        model.get_parameter(name).fill_(value)
    for num_steps in (0, 1):
        with pytest.raises(ValueError, match="values that are not finite"):
            model.generate(**inputs, num_refinement_steps=num_steps)


def test_an_absurd_length_predictor_raises(tiny_model):
    with torch.no_grad():
        tiny_model.length_predictor.proj.weight.fill_(3e38)
    with pytest.raises(ValueError, match="values that are not finite"):
        tiny_model.generate(torch.tensor([[5, 6, 1]]))


def test_stored_steps_have_a_bound_and_asked_ones_have_none(folder):
    change_json(folder / "generation_config.json", num_refinement_steps=MAX_STORED_STEPS + 1)
    model = LvnarForConditionalGeneration.from_pretrained(folder).eval()
    with pytest.raises(ValueError, match=r"generation_config\.json: num_refinement_steps is 1001"):
        model.generate(torch.tensor([[5, 6, 1]]))
    model.generate(torch.tensor([[5, 6, 1]]), num_refinement_steps=10**9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to_dict": 1}, r"generation_config\.json: to_dict is no option"),
        ({"remove_repetitions": "torch"}, r"generation_config\.json: remove_repetitions is 'torch'"),
        ({"return_dict_in_generate": "torch"}, r"generation_config\.json: return_dict_in_generate is 'torch'"),
    ],
)
def test_generation_configs_are_refused_by_field(folder, changes, message):
    change_json(folder / "generation_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        LvnarForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("name", ["tie_word_embeddings", "is_encoder_decoder", "carries_source_states"])
def test_a_string_is_no_boolean(folder, name):
    change_json(folder / "config.json", **{name: "torch"})
    with pytest.raises(ValueError, match=f"{name} is 'torch'; it must be true or false"):
        LvnarForConditionalGeneration.from_pretrained(folder)


def test_a_string_is_no_boolean_for_the_tokenizer(folder):
    change_json(folder / "tokenizer_config.json", split_special_tokens="torch")
    with pytest.raises(ValueError, match="split_special_tokens is 'torch'; it must be true or false"):
        LvnarTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("config.json", r"config\.json of .* is nested too deep"), ("generation_config.json", r"\.json is not JSON")],
)
def test_json_nested_too_deep(folder, name, message):
    (folder / name).write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match=message):
        LvnarForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_json_nested_too_deep_for_commands(folder, name):
    """What transformers' Auto classes read first, they raise RecursionError for; the commands' loading does not."""
    (folder / name).write_text('{"a":' * 100_000)
    with pytest.raises(RecursionError):
        AutoTokenizer.from_pretrained(folder)
    for load in (load_tokenizer, load_config, load_model)[: 1 if name == "tokenizer_config.json" else 3]:
        with pytest.raises(ValueError, match="nested too deep"):
            load(folder)


REPLACEMENT = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
ONE_FOR_ONE = {**REPLACEMENT, "content": "b"}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    {
        "padding": ({"padding": {"strategy": {"Fixed": 2**32}, "direction": "Right"}}, "padding is"),
        "truncation": ({"truncation": {"max_length": 5, "stride": 5, "strategy": "LongestFirst"}}, "truncation is"),
        "growth": ({"normalizer": REPLACEMENT}, r"normalizer\.content is 'aa'"),
        "many": ({"normalizer": {"type": "Sequence", "normalizers": [ONE_FOR_ONE] * 40}}, "normalizer is"),
        "pattern": ({"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "(a*)*b"}}}, r"pre_tokenizer\.pattern is"),
        "own split": (
            {"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "<(?=/s>)|(a*)*(?=b)"}}},
            r"pre_tokenizer\.pattern",
        ),
        "unknown": ({"normalizer": {"type": "Lowercase"}}, "normalizer is"),
        "template": ({"post_processor": None}, "post_processor is None"),
        "decoder": ({"decoder": REPLACEMENT}, r"decoder\.content is 'aa'"),
        "charsmap": (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            r".*no map of characters",
        ),
        "added": ({"added_tokens": [{"id": 2**40, "content": "x"}]}, "added_tokens is"),
    }.values(),
)
def test_tokenizers_as_bombs(folder, changes, message):
    change_json(folder / "tokenizer.json", **changes)
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"tokenizer\.json: {message}"):
        LvnarTokenizer.from_pretrained(folder)
    assert time.monotonic() - start < 5


def test_dropout_of_a_tokenizer_is_refused(folder):
    file = folder / "tokenizer.json"
    fields = json.loads(file.read_text())
    change_json(file, model={**fields["model"], "dropout": 0.5})
    with pytest.raises(ValueError, match=r"tokenizer\.json: model\.dropout is 0\.5"):
        LvnarTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("candidates", torch.zeros(5, dtype=torch.int32)),
        ("frequent", torch.zeros(3)),
        ("min_confidence", torch.zeros(1)),
    ],
)
def test_a_shortlist_of_another_rank_or_type_is_refused_by_name(whole, tmp_path, name, tensor):
    config = LvnarForConditionalGeneration.from_pretrained(whole).config
    file = tmp_path / "shortlist.safetensors"
    save_file({**load_file(whole / "shortlist.safetensors"), name: tensor}, file)
    with pytest.raises(ValueError, match=rf"shortlist\.safetensors: {name} is (float|int)32 of the shape"):
        Shortlist.load(file, config)


def test_parts_count_cells():
    lengths = [3, 8, 2, 3]
    assert parts_by_length(tiny_config(), lengths, 9) == ([2, 0, 3, 1], [3, 1])
    config = tiny_config(alignment="ctc", upsampling_ratio=2.0)
    assert parts_by_length(config, lengths, 9)[1] == [1, 1, 1, 1]
    assert parts_by_length(config, lengths, 18)[1] == [3, 1]
    assert parts_by_length(tiny_config(), lengths, 15, most_added=2)[1] == [3, 1]


@pytest.mark.parametrize("make", [lambda: make_model(tiny_config()), make_ctc_model])
def test_a_batch_in_parts_gives_the_same(make):
    model = make()
    batch = make_batch(model.config, [(2 + n * 7 % 30, 4) for n in range(20)])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    options = {"num_refinement_steps": 4, "return_dict_in_generate": True, "output_scores": True}
    whole = model.generate(**inputs, **options)
    model._refine = lambda ids, mask, given: translate_in_parts(refine, model, ids, mask, given, 60)
    parts = model.generate(**inputs, **options)
    assert torch.equal(parts.sequences, whole.sequences)
    assert torch.equal(parts.num_steps_taken, whole.num_steps_taken)
    assert len(parts.sequences_per_step) == len(whole.sequences_per_step)
    for one, other in zip(parts.sequences_per_step, whole.sequences_per_step, strict=True):
        longest = max(one.shape[1], other.shape[1])
        one, other = (torch.nn.functional.pad(s, (0, longest - s.shape[1])) for s in (one, other))
        assert torch.equal(one, other)
    torch.testing.assert_close(parts.lower_bounds, whole.lower_bounds, rtol=1e-4, atol=1e-3)


def test_one_long_sentence_does_not_pad_all_others(tiny_model):
    sizes = []
    ids = torch.zeros(1000, 40, dtype=torch.long)
    ids[:, :2] = torch.tensor([5, 1])
    ids[7] = 6
    translate_in_parts(
        lambda model, ids, *rest: sizes.append(ids.shape) or refine(model, ids, *rest),
        tiny_model,
        ids,
        ids.ne(0).long(),
        tiny_model._decoding_options(None, {}),
        22_000,
    )
    assert sizes == [(999, 2), (1, 40)]


@pytest.mark.parametrize("make", [make_model, lambda config: make_ctc_model(vocab_size=8000)])
def test_the_memory_of_a_batch_is_that_of_a_part(make, monkeypatch):
    """2,000 short sentences and a long one: as one batch, their logits alone are 2.6 GB; in parts, 128 MB at once."""
    model, seen = make(tiny_config(vocab_size=8000)), []
    monkeypatch.setattr(
        "lvnar_hf.modeling_lvnar.translate_in_parts",
        lambda *given: seen.append(given[5]) or translate_in_parts(*given[:5], 4000),
    )
    ids = torch.zeros(2000, 40, dtype=torch.long)
    ids[:, :3] = torch.tensor([5, 6, 1])
    ids[7] = 6
    model.generate(ids[:1, :3])
    Path("/proc/self/clear_refs").write_text("5")
    before = fuzz._status("VmRSS")
    model.generate(ids, attention_mask=ids.ne(0).long(), num_refinement_steps=1)
    grown = fuzz._status("VmHWM") - before
    print(f"{grown / 2**20:.0f} MB")
    assert grown < 500 * 2**20 and set(seen) == {2**28 // 8000}, "and in use at most 2**28 logits, 1 GiB"


class _Words(JapaneseSegmenter):
    """Words of two characters; it keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[str] = []

    def _find_words(self, text: str) -> list[str]:
        self.given.append(text)
        return [word for part in text.split(" ") for word in (part[i : i + 2] for i in range(0, len(part), 2))]


def test_long_lines_are_cut_before_the_segmenter():
    segmenter = _Words()
    ordinary = "トムは損害を賠償する。" * 300
    segmenter.segment(ordinary)
    assert segmenter.given == [ordinary]
    for text in ("トムは損害を賠償する。" * 10_000, "トムは 損害を賠償する " * 1000, "あ" * 20_000):
        segmenter.given.clear()
        assert segmenter.join(segmenter.segment(text)) == text.strip()
        assert max(map(len, segmenter.given)) <= 4096 and len(segmenter.given) > 2
        assert "".join(segmenter.given) == text.strip()


def test_fugashi_takes_a_long_line_in_little_time():
    pytest.importorskip("fugashi")
    pytest.importorskip("unidic_lite")
    segmenter = FugashiSegmenter()
    text = "トムは損害を賠償すると申し出た" * 6000
    start = time.process_time()
    assert segmenter.join(segmenter.segment(text)) == text
    assert time.process_time() - start < 4
