"""The word segmenters: Moses loses a little, the Japanese ones nothing; and what they say when something is missing."""

import copy
import functools
import importlib
import json
import pickle
import sys
import types

import pytest
from conftest import ROOT, make_model, other_versions, run_with_transformers, tiny_config
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, pipeline

from lvnar_hf import LvnarTokenizer, train_tokenizer
from lvnar_hf.segmentation_lvnar import SEGMENTERS, JapaneseSegmenter, Segmenter, make_segmenter

JAPANESE_TEXTS = [
    "猫がマットの上に座った。",
    "犬は猫が好きではありませんが、猫は犬が好きです！",
    "NHK World は放送する。",
    "NHK Worldは１９９８年に始まった。",
    "彼は「I love you.」と言った。",
    "もう一匹の猫はどこですか？　あそこです。",
    "Tom Cruise's 3.5 kmのCOVID-19ニュース",
    "東京 大阪 名古屋",
]
ENGLISH_TEXTS = [
    "The cat sat on the mat.",
    "The dog doesn't like cats, but cats like the dog!",
    "NHK World is on the air.",
    "NHK World (the station) began in 1998.",
    'He said, "I love you."',
    "Where is the other cat? Over there.",
    "Tom Cruise's news: 3.5 km; it's $5.",
    "Tokyo, Osaka and Nagoya",
]


@functools.cache
def make_segmented_tokenizer() -> LvnarTokenizer:
    """Two vocabularies: Japanese by fugashi to English by Moses."""
    return train_tokenizer(
        JAPANESE_TEXTS * 3,
        ENGLISH_TEXTS * 3,
        vocab_size=400,
        target_vocab_size=380,
        joint=False,
        min_character_count=1,
        max_length=40,
        source_segmenter="fugashi",
        target_segmenter="moses",
        source_language="ja",
        target_language="en",
    )


@pytest.fixture
def tokenizer() -> LvnarTokenizer:
    return copy.deepcopy(make_segmented_tokenizer())


@pytest.fixture
def kytea(monkeypatch, tmp_path) -> Segmenter:
    """KyTea with a module in its place that makes a word of every character."""

    class Mykytea:
        opened: list[str] = []

        def __init__(self, options: str):
            self.opened.append(options)

        def getWS(self, text: str) -> list[str]:
            return list(text)

    monkeypatch.setitem(sys.modules, "Mykytea", types.SimpleNamespace(Mykytea=Mykytea))
    (tmp_path / "jp.mod").touch()
    return make_segmenter("kytea", kytea_model=str(tmp_path / "jp.mod"))


# segmenting and joining


def test_segmented_text():
    fugashi, moses = make_segmenter("fugashi"), make_segmenter("moses")
    assert [fugashi.segment(text) for text in JAPANESE_TEXTS[2:5]] == [
        "NHK World ␣ は 放送 する 。",
        "NHK World は １９９８ 年 に 始まっ た 。",
        "彼 は 「 I love you. 」 と 言っ た 。",
    ]
    assert fugashi.segment(JAPANESE_TEXTS[7]) == "東京 ␣ 大阪 ␣ 名古屋"
    assert moses.segment(ENGLISH_TEXTS[1]) == "The dog doesn 't like cats , but cats like the dog !"
    assert moses.segment("<a & b> [c]") == "< a & b > [ c ]"
    assert make_segmenter("none").segment(" as  it is ") == " as  it is "


def test_joining_what_a_model_writes():
    join = make_segmenter("fugashi").join
    assert join("NHK World は 放送 する") == "NHK Worldは放送する"
    assert join("␣ 猫 ␣ ␣ は  3.5 km ␣ ") == "猫 は3.5 km"
    assert join("␣猫␣は ␣␣ ␣␣␣ ␣") == "猫 は␣ ␣"
    assert join("") == ""


@pytest.mark.parametrize("text", [*JAPANESE_TEXTS, *ENGLISH_TEXTS])
def test_round_trip_of_fugashi(text):
    fugashi = make_segmenter("fugashi")
    segmented = fugashi.segment(text)
    assert fugashi.join(segmented) == text.replace("\u3000", " ")
    assert "  " not in segmented and segmented == segmented.strip()


@pytest.mark.parametrize("text", ENGLISH_TEXTS)
def test_round_trip_of_moses(text):
    moses = make_segmenter("moses", language="en")
    assert moses.join(moses.segment(text)) == text


class ByCharacter(JapaneseSegmenter):
    def _find_words(self, text):
        return list(text.replace(" ", ""))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.text(), st.sampled_from(["␣", " ", "猫", "は", "ｶﾞ", "word", "1.5", "、", "\u3000"]))).map(
        "".join
    )
)
@example("␣ ␣␣猫␣ ␣は")
@example("\x00猫は\x1ca \x85b")
def test_nothing_is_lost_wherever_the_words_are_parted(text):
    normalised = make_segmented_tokenizer().normalize(text)
    for segmenter in (ByCharacter(), make_segmenter("fugashi")):
        assert segmenter.join(segmenter.segment(normalised)) == normalised


def test_an_engine_that_loses_text_is_not_followed():
    class Lossy(JapaneseSegmenter):
        def _find_words(self, text):
            return ["猫"]

    assert Lossy().segment("猫 は") == "猫 ␣ は"


def test_kytea(kytea):
    assert kytea.segment("NHK World　は 猫") == "NHK World ␣ は ␣ 猫"
    for text in JAPANESE_TEXTS:
        assert kytea.join(kytea.segment(text)) == text.replace("\u3000", " ")


@pytest.mark.parametrize("name", ["none", "moses", "fugashi"])
def test_segmenters_are_copied_and_pickled_after_use(name):
    segmenter = make_segmenter(name)
    expected = [segmenter.segment(text) for text in JAPANESE_TEXTS]
    for other in (copy.deepcopy(segmenter), pickle.loads(pickle.dumps(segmenter))):
        assert [other.segment(text) for text in JAPANESE_TEXTS] == expected


# what is missing


@pytest.mark.parametrize(
    ("name", "missing", "install"),
    [
        ("moses", "sacremoses", r"'lvnar-hf\[ja\]'.* pip install sacremoses$"),
        ("fugashi", "fugashi", r"'lvnar-hf\[ja\]'.* pip install fugashi unidic-lite$"),
        ("fugashi", "unidic_lite", r"'lvnar-hf\[ja\]'.* pip install fugashi unidic-lite$"),
        ("kytea", "Mykytea", r"'lvnar-hf\[kytea\]'.* pip install kytea$"),
    ],
)
def test_a_missing_package_is_named_with_its_install_line(monkeypatch, tmp_path, name, missing, install):
    import_module = importlib.import_module

    def fail(module, *arguments):
        if module == missing:
            raise ModuleNotFoundError(f"No module named {module!r}")
        return import_module(module, *arguments)

    (tmp_path / "jp.mod").touch()
    segmenter = make_segmenter(name, kytea_model=str(tmp_path / "jp.mod"))
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=f"segmenter '{name}' needs .*{install}"):
        segmenter.segment("猫")


def test_kytea_says_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="needs a model file, and none was given: pass kytea_model=PATH"):
        make_segmenter("kytea").segment("猫")
    with pytest.raises(FileNotFoundError, match=r"there is no nowhere/jp\.mod or .*jp\.mod: pass kytea_model=PATH"):
        make_segmenter("kytea", kytea_model="nowhere/jp.mod", folder=str(tmp_path)).segment("猫")
    (tmp_path / "a b").touch()
    with pytest.raises(ValueError, match="no path with a space"):
        make_segmenter("kytea", kytea_model=str(tmp_path / "a b")).segment("猫")


def test_an_unknown_segmenter_is_refused():
    for make in (make_segmenter, lambda name: train_tokenizer([], [], source_segmenter=name)):
        with pytest.raises(ValueError, match="one of none, moses, fugashi, kytea, not 'mecab'"):
            make("mecab")


# in the tokenizer


def test_raw_text_goes_in_and_comes_out(tokenizer):
    encoded = tokenizer(JAPANESE_TEXTS, text_target=ENGLISH_TEXTS)
    segmented = [make_segmenter("fugashi").segment(text) for text in JAPANESE_TEXTS]
    assert [tokenizer.segment(text) for text in JAPANESE_TEXTS] == segmented
    assert encoded["input_ids"] == [e.ids for e in tokenizer.backend_tokenizer.encode_batch(segmented)]
    assert tokenizer.batch_decode(encoded["labels"], skip_special_tokens=True) == ENGLISH_TEXTS
    sources = tokenizer.batch_decode(encoded["input_ids"], skip_special_tokens=True, use_source_tokenizer=True)
    assert sources == [tokenizer.normalize(text) for text in JAPANESE_TEXTS]
    # Special tokens stay where they are, and do not disturb the joining.
    padded = tokenizer(text_target=ENGLISH_TEXTS[0], padding="max_length", max_length=40)["input_ids"]
    assert tokenizer.decode(padded) == ENGLISH_TEXTS[0] + "</s>" + padded.count(0) * "<pad>"
    assert tokenizer.decode(padded, skip_special_tokens=True) == ENGLISH_TEXTS[0]
    assert tokenizer.decode([], skip_special_tokens=True) == ""
    assert tokenizer.decode(encoded["labels"][0][0]) == "The"


def test_every_way_of_encoding_segments(tokenizer):
    expected = tokenizer(JAPANESE_TEXTS)["input_ids"]
    assert tokenizer.encode_texts(JAPANESE_TEXTS) == expected
    targets = tokenizer(text_target=ENGLISH_TEXTS)["input_ids"]
    assert tokenizer.encode_texts(ENGLISH_TEXTS, target=True) == targets
    assert tokenizer(text_target=ENGLISH_TEXTS[0])["input_ids"] == targets[0]
    assert tokenizer(text_target=ENGLISH_TEXTS[:1], text_pair_target=ENGLISH_TEXTS[1:2])["input_ids"] == [
        targets[0][:-1] + targets[1]
    ]
    for text, ids in zip(JAPANESE_TEXTS, expected, strict=True):
        assert tokenizer(text)["input_ids"] == tokenizer.encode(text) == ids
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == ids[:-1]
    assert tokenizer(tuple(JAPANESE_TEXTS))["input_ids"] == expected
    assert tokenizer(*JAPANESE_TEXTS[:2])["input_ids"] == expected[0][:-1] + expected[1]
    pairs = tokenizer(JAPANESE_TEXTS[:2], JAPANESE_TEXTS[2:4])["input_ids"]
    assert pairs == [expected[0][:-1] + expected[2], expected[1][:-1] + expected[3]]
    cut = tokenizer(JAPANESE_TEXTS, truncation=True, max_length=6, padding="max_length")
    assert all(len(ids) == 6 for ids in cut["input_ids"])
    with pytest.raises(ValueError, match="surrogates"):
        tokenizer("猫\ud800")


def test_words_that_are_given_are_taken_as_they_are(tokenizer):
    words = ["放送する", "猫は"]
    given = tokenizer(words, is_split_into_words=True)["input_ids"]
    assert given == tokenizer.backend_tokenizer.encode("放送する 猫は").ids != tokenizer("放送する猫は")["input_ids"]
    assert tokenizer.decode(given, skip_special_tokens=True, use_source_tokenizer=True) == "放送する猫は"
    assert tokenizer([words], is_split_into_words=True)["input_ids"] == [given]


def test_punctuation_takes_the_space_before_it(tokenizer):
    assert "▁。" in tokenizer.get_vocab() and "▁." in tokenizer.target_backend_tokenizer.get_vocab()
    assert tokenizer.tokenize("は。１９")[:2] == ["▁は", "▁。"]


def test_text_is_normalised_before_it_is_segmented():
    tokenizer = train_tokenizer(
        JAPANESE_TEXTS, [], vocab_size=360, normalization="nfkc", min_character_count=1, source_segmenter="fugashi"
    )
    assert tokenizer.segment("ﾃﾚﾋﾞ\u2581ニュース") == "テレビ ␣ ニュース"
    assert tokenizer("ﾃﾚﾋﾞ")["input_ids"] == tokenizer("テレヒ\u3099")["input_ids"] == tokenizer("テレビ")["input_ids"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(), st.sampled_from(["␣", "\u2581", "</s>", *JAPANESE_TEXTS]))).map("".join))
def test_decoding_gives_the_normalised_text(text):
    tokenizer = make_segmented_tokenizer()
    ids = tokenizer.encode(text)
    assert ids[-1] == 1 and not {0, 1, 2} & set(ids[:-1])
    decoded = tokenizer.decode(ids, skip_special_tokens=True, use_source_tokenizer=True)
    assert decoded == tokenizer.normalize(text)


def test_the_choice_is_stored_with_the_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    chosen = {"source_segmenter": "fugashi", "target_segmenter": "moses"}
    chosen |= {"source_language": "ja", "target_language": "en"}
    assert {name: config[name] for name in chosen} == chosen and "kytea_model" not in config
    assert (tmp_path / "segmentation_lvnar.py").read_bytes() == (ROOT / "lvnar_hf/segmentation_lvnar.py").read_bytes()
    for other in (
        AutoTokenizer.from_pretrained(tmp_path),
        pickle.loads(pickle.dumps(tokenizer)),
        copy.deepcopy(tokenizer),
    ):
        assert (other.source_segmenter, other.target_segmenter) == ("fugashi", "moses")
        assert other.encode_texts(JAPANESE_TEXTS) == tokenizer.encode_texts(JAPANESE_TEXTS)


def test_without_segmenters_nothing_is_stored(tmp_path):
    train_tokenizer(ENGLISH_TEXTS, ENGLISH_TEXTS, vocab_size=330).save_pretrained(tmp_path)
    config = (tmp_path / "tokenizer_config.json").read_text("utf-8")
    assert "segmenter" not in config and "language" not in config and "kytea" not in config


def test_a_tokenizer_with_kytea(kytea, tmp_path):
    tokenizer = train_tokenizer(
        JAPANESE_TEXTS,
        ENGLISH_TEXTS,
        vocab_size=400,
        min_character_count=1,
        source_segmenter="kytea",
        kytea_model=kytea.model,
    )
    expected = tokenizer.encode_texts(JAPANESE_TEXTS)
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())["kytea_model"] == kytea.model
    assert LvnarTokenizer.from_pretrained(folder).encode_texts(JAPANESE_TEXTS) == expected
    # On another machine: it loads, says what it lacks, and takes another path or a file beside it.
    config = (folder / "tokenizer_config.json").read_text().replace(kytea.model, "elsewhere/jp.mod")
    (folder / "tokenizer_config.json").write_text(config)
    elsewhere = LvnarTokenizer.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="pass kytea_model=PATH to from_pretrained"):
        elsewhere("猫")
    given = LvnarTokenizer.from_pretrained(folder, kytea_model=kytea.model)
    assert given.encode_texts(JAPANESE_TEXTS) == expected
    (folder / "jp.mod").touch()
    assert LvnarTokenizer.from_pretrained(folder).encode_texts(JAPANESE_TEXTS) == expected
    assert sys.modules["Mykytea"].Mykytea.opened[-1] == f"-model {folder / 'jp.mod'}"


def test_training_with_segmenters_is_deterministic(tmp_path):
    make_segmented_tokenizer().save_pretrained(tmp_path / "a")
    program = (
        "from tests.model.test_segmentation import make_segmented_tokenizer\n"
        f"make_segmented_tokenizer().save_pretrained({str(tmp_path / 'b')!r})"
    )
    run_with_transformers(None, program)
    names = {file.name for file in (tmp_path / "a").glob("*.json")}
    assert names == {"tokenizer.json", "target_tokenizer.json", "tokenizer_config.json"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


REMOTE_CODE = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "lvnar_hf" not in sys.modules
assert "sacremoses" not in sys.modules and "fugashi" not in sys.modules
texts = json.loads(sys.argv[2])
encoded = tokenizer(texts, text_target=texts)
print(json.dumps([encoded["input_ids"], tokenizer.batch_decode(encoded["labels"], skip_special_tokens=True)]))
"""


@pytest.mark.parametrize("version", [None, *other_versions()])
def test_a_published_tokenizer_segments_without_the_package(tokenizer, tmp_path, version):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    texts = JAPANESE_TEXTS + ENGLISH_TEXTS
    output = run_with_transformers(version, REMOTE_CODE, str(tmp_path / "tokenizer"), json.dumps(texts))
    encoded = tokenizer(texts, text_target=texts)
    decoded = tokenizer.batch_decode(encoded["labels"], skip_special_tokens=True)
    assert json.loads(output.strip().split("\n")[-1]) == [encoded["input_ids"], decoded]


def test_pipeline_translates_raw_japanese(tokenizer):
    model = make_model(tiny_config(vocab_size=len(tokenizer), target_vocab_size=tokenizer.target_vocab_size))
    results = pipeline("translation", model=model, tokenizer=tokenizer)(JAPANESE_TEXTS, return_tensors=True)
    moses = make_segmenter("moses")
    for text, result in zip(JAPANESE_TEXTS, results, strict=True):
        ids = model.generate(**tokenizer([text], return_tensors="pt"), tokenizer=tokenizer)[0]
        assert result["translation_token_ids"].tolist() == ids.tolist()
        words = tokenizer.target_backend_tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        assert result["translation_text"] == moses.join(words)


def test_every_segmenter_is_made_by_its_name():
    assert [make_segmenter(name).name for name in SEGMENTERS] == list(SEGMENTERS)
