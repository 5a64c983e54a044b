"""Sentences of many requests, translated together; and texts of HTML."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lvnar_hf.serving.batching import SentenceBatches
from lvnar_hf.serving.html_text import translate_html


class Recorder:
    """Translates ids to their text; waits where it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[list[int]]] = []
        self.rounds: list[tuple[int, int]] = []
        self.is_free = threading.Event()
        self.is_free.set()
        self.has_begun = threading.Event()

    def __call__(self, source_ids: list[list[int]]) -> list[str]:
        self.has_begun.set()
        assert self.is_free.wait(20)
        self.calls.append(source_ids)
        if any(99 in ids for ids in source_ids):
            raise RuntimeError("no finite numbers")
        return [" ".join(map(str, ids)) for ids in source_ids]

    def batches(self, max_tokens: int = 8, window: float = 0.0) -> SentenceBatches:
        return SentenceBatches(self, max_tokens, window, lambda *sizes: self.rounds.append(sizes))


def soon() -> float:
    return time.monotonic() + 20


def wait_for(condition) -> None:
    end = soon()
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def begun(batches: SentenceBatches, recorder: Recorder, pool: ThreadPoolExecutor, *requests: list[list[int]]) -> list:
    """Requests that wait in this order behind a sentence, [0], that is being translated."""
    recorder.is_free.clear()
    recorder.has_begun.clear()  # an earlier sentence may have set it
    futures = [pool.submit(batches.translate, [[0]], soon())]
    assert recorder.has_begun.wait(20)
    for number, request in enumerate(requests, start=1):
        futures.append(pool.submit(batches.translate, request, soon()))
        wait_for(lambda number=number: len(batches._jobs) == number)
    return futures


def test_a_short_request_does_not_wait_for_the_end_of_a_long_one():
    recorder = Recorder()
    batches = recorder.batches(max_tokens=4)
    with ThreadPoolExecutor() as pool:
        long, short = [[1, number] for number in range(2, 8)], [[5]]
        _, of_long, of_short = begun(batches, recorder, pool, long, short)
        recorder.is_free.set()
        assert of_long.result() == [f"1 {number}" for number in range(2, 8)] and of_short.result() == ["5"]
    assert recorder.calls[:3] == [[[0]], [[1, 2], [1, 3]], [[5]]]
    assert all(sum(map(len, call)) <= 4 for call in recorder.calls) and len(recorder.calls) == 5
    assert recorder.rounds[:2] == [(1, 1), (3, 2)]
    assert batches._num_waiting_tokens == 0
    batches.close()
    with pytest.raises(RuntimeError, match="shut down"):
        batches.translate([[1]], soon())
    assert batches.translate([], soon()) == []


def test_one_that_fails_takes_no_other_with_it():
    recorder = Recorder()
    batches = recorder.batches()
    with ThreadPoolExecutor() as pool:
        _, good, bad = begun(batches, recorder, pool, [[1], [2]], [[99]])
        recorder.is_free.set()
        assert good.result() == ["1", "2"]
        with pytest.raises(RuntimeError, match="no finite"):
            bad.result()
    assert batches.translate([[3]], soon()) == ["3"]
    batches.close()


def test_what_is_too_late_is_not_translated_and_what_is_begun_is_finished_at_the_end():
    recorder = Recorder()
    batches = recorder.batches(max_tokens=2)
    with ThreadPoolExecutor() as pool:
        first, kept = begun(batches, recorder, pool, [[3], [4], [5]])
        with pytest.raises(TimeoutError):
            batches.translate([[7], [8]], time.monotonic() + 0.01)
        closing = pool.submit(batches.close)
        recorder.is_free.set()
        assert first.result() == ["0"] and kept.result() == ["3", "4", "5"] and closing.result() is None
    assert not any([7] in call for call in recorder.calls)


def test_the_window_is_for_those_who_have_company():
    recorder = Recorder()
    batches = recorder.batches(max_tokens=100, window=0.4)
    start = time.monotonic()
    assert batches.translate([[1]], soon()) == ["1"]
    assert time.monotonic() - start < 0.3  # alone
    with ThreadPoolExecutor() as pool:
        futures = begun(batches, recorder, pool, [[1]], [[2]])
        recorder.is_free.set()
        futures.append(pool.submit(batches.translate, [[3]], soon()))
        assert [future.result() for future in futures] == [["0"], ["1"], ["2"], ["3"]]
    assert recorder.rounds == [(1, 1), (1, 1), (3, 3)]
    batches.close()


def shout(texts: list[str]) -> list[str]:
    return [text.upper() for text in texts]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("plain", "PLAIN"),
        ("", ""),
        (
            '<p class="a">Tom &amp; I\n have <b id=x>read</b> it.<br/>Good &auml; &lt;i&gt;',
            '<p class="a">TOM &amp; I HAVE <b id=x>READ</b> IT.<br/>GOOD Ä &lt;I&gt;',
        ),
        ("<!DOCTYPE html><!-- no --><style>p{a:b}</style><script>a<b</script>x", None),
        ("a <code>b < c</code> d", "A <code>b < c</code> D"),
        ("<pre>a\n  b</pre><p translate=no>a <i>b</i></p>c", "<pre>a\n  b</pre><p translate=no>a <i>b</i></p>C"),
        ("<span class='x notranslate'>Ann</span> is", "<span class='x notranslate'>Ann</span> IS"),
        ("<svg><svg>a</svg>b</svg>c<textarea>d</textarea>", "<svg><svg>a</svg>b</svg>C<textarea>d</textarea>"),
        ("5 < 6 and a&b <b", "5 &lt; 6 AND A&amp;B <b"),
        ("\x0e\x11\x0fa<b>c</b>", "A<b>C</b>"),
    ],
)
def test_texts_of_html_are_translated_and_markup_stays(source, expected):
    if expected is None:
        expected = source[:-1] + "X"
    assert translate_html(source, shout) == expected


def test_a_sentence_is_seen_whole_and_html_that_never_ends_takes_no_time():
    seen: list[str] = []
    translate_html("<ul><li>one <a href='#'>two</a> three</li></ul>", lambda texts: seen.extend(texts) or texts)
    assert len(seen) == 1 and "".join(c for c in seen[0] if c.isalpha() or c == " ") == "one two three"
    for part in ("<!--", "<a ", "<", "</", "<![CDATA[", "<a b='", "<?", "<script>", "&#x", "<b>"):
        for end in ("", ">", "'>"):
            source = part * (20_000 // len(part)) + end
            start = time.perf_counter()
            translate_html(source, shout)
            assert time.perf_counter() - start < 5, part
