"""The page on which refinement is watched: a text, its translation after each step, what each step changed.

    from lvnar_hf.serving.page import build_page, launch

    launch(build_page("model_cards/lvnar-tatoeba-en-de"))

What is unusual: each step is what `lvnar translate` gives with so many refinement steps, and its time is what a user
would wait. Nothing is asked of any other host.
"""

import html
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio

from lvnar_hf.jobs.line_translator import LineTranslator, load_translator
from lvnar_hf.serving.refinement import TextStep, refine_text, uncertain_spans

MAX_STEPS = 4
MAX_CHARACTERS = 5000
# Engines that a page offers, where the model's folder has them, and what it calls them.
PAGE_ENGINES = {"torch": "PyTorch", "onnx-int8": "ONNX Runtime, int8"}
EXAMPLES = {
    "en": [
        "I bought a new lamp yesterday.",
        "She has lived in Berlin for three years, but she still does not know her neighbours.",
        "Tom opened the window. It was raining, so he closed it again.\nCall me at 10:30, {{name}}!",
    ]
}

_MARKS = {
    "kept": "{after}",
    "replaced": '<mark title="before: {before}">{after}</mark>',
    "inserted": '<mark title="new">{after}</mark>',
    "removed": "<del>{before}</del>",
}
_UNSURE = '<span class="unsure" title="the model is unsure">{}</span>'
_CSS = """
.lvnar-translation { font-size: 1.25rem; white-space: pre-wrap; overflow-wrap: anywhere; min-height: 3em; }
.lvnar-steps { border-collapse: collapse; width: 100%; }
.lvnar-steps th, .lvnar-steps td { text-align: left; vertical-align: top; padding: 0.3em 0.6em; }
.lvnar-steps td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.lvnar-steps td.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.lvnar-steps tr.shown { outline: 2px solid var(--color-accent); }
.lvnar mark { background: #f5e08a; color: #1b1f24; border-radius: 3px; padding: 0 0.15em; }
.lvnar del { color: #8a3800; }
.lvnar .unsure { background: #8883; border-bottom: 2px dotted currentColor; }
.lvnar-error { color: #8a1c00; font-weight: bold; }
"""


def render_translation(step: TextStep, uncertain: Sequence[tuple[int, int]] = ()) -> str:
    """The translation after a step, what it changed marked, and the `uncertain_spans` shaded."""
    marked = _mark(step, uncertain)
    return f'<div class="lvnar lvnar-translation" data-step="{step.step}" dir="auto">{marked}</div>'


def render_steps(steps: Sequence[TextStep], shown: TextStep) -> str:
    """A table of the steps."""
    rows = []
    for step in steps:
        bound = "—" if step.bound is None else f"{step.bound:.1f}".replace("-", "−")
        text = _mark(step) if step.is_changed or step.step == 0 else "<em>no word changes</em>"
        rows.append(
            f"<tr{' class=shown' if step is shown else ''}><th scope=row>{step.step}</th>"
            f'<td class="number">{1000 * step.seconds:.0f} ms</td><td class="number">{bound}</td>'
            f'<td class="text" dir="auto">{text}</td></tr>'
        )
    return (
        '<table class="lvnar lvnar-steps"><thead><tr><th scope="col">step</th><th scope="col">time</th>'
        '<th scope="col">bound, nats</th><th scope="col">translation</th></tr></thead><tbody>'
        f"{''.join(rows)}</tbody></table>"
    )


def _mark(step: TextStep, uncertain: Sequence[tuple[int, int]] = ()) -> str:
    marked, start = [], 0
    for run in step.runs:
        after = _shade(step.text, start, start + len(run["after"]), uncertain)
        marked.append(_MARKS[run["kind"]].format(before=html.escape(run["before"]), after=after))
        if run["kind"] != "removed":
            start += len(run["after"] + step.joiner)
    return step.joiner.join(marked)


def _shade(text: str, start: int, end: int, uncertain: Sequence[tuple[int, int]]) -> str:
    """A part of a text, what is uncertain in it shaded."""
    shaded = []
    for first, last in uncertain:
        first, last = max(first, start), min(last, end)
        if first < last:
            shaded += [html.escape(text[start:first]), _UNSURE.format(html.escape(text[first:last]))]
            start = last
    return "".join([*shaded, html.escape(text[start:end])])


class _Watched(NamedTuple):
    """What a reader looks at."""

    text: str
    engine: str
    steps: list[TextStep]


class Watcher:
    """What the page asks for: the steps of a text by one of the engines.

    Args:
        model: folder or Hub id of a model of this package.

    Raises:
        ValueError: the model is of another kind.
    """

    def __init__(self, model: str) -> None:
        self.name = Path(model).name if Path(model).is_dir() else model
        self.translators: dict[str, LineTranslator] = {}
        for engine in PAGE_ENGINES:
            try:
                translator = load_translator(model, engine, preserve_format=True)
            except (ImportError, FileNotFoundError, ValueError) as error:
                if engine == "torch":
                    raise
                warnings.warn(f"The page does without {engine}: {error}", stacklevel=2)
                continue
            config = translator.model.config
            if config.model_type != "lvnar":
                raise ValueError(
                    f"{model} is of type {config.model_type!r}; only models of type 'lvnar' refine by steps."
                )
            refine_text(translator, "1.", 1)  # the first one takes longer
            self.translators[engine] = translator
        self.languages = tuple(getattr(config, f"{side}_language") for side in ("source", "target"))

    def watch(self, text: str, engine: str) -> tuple[list[TextStep], str]:
        """The steps, and what is wrong: one of them is empty."""
        text = text or ""
        if not text.strip():
            return [], "There is nothing to translate: type a text."
        if len(text) > MAX_CHARACTERS:
            return [], f"The text has {len(text):,} characters; this page takes {MAX_CHARACTERS:,}."
        try:
            return refine_text(self.translators[engine], text, MAX_STEPS), ""
        except ValueError:  # half a character, weights that give no finite numbers
            return [], "This text cannot be translated."


def build_page(model: str) -> gradio.Blocks:
    """The page of one model, which is loaded.

    Args:
        model: folder or Hub id.
    """
    watcher = Watcher(model)
    source, target = watcher.languages
    engines = [(PAGE_ENGINES[engine], engine) for engine in watcher.translators]

    def translate(text: str, engine: str, shown: int) -> tuple[_Watched, str, str]:
        steps, error = watcher.watch(text, engine)
        watched = _Watched(text, engine, steps)
        if error:
            return watched, f'<div class="lvnar-error" role="alert">{html.escape(error)}</div>', ""
        return watched, *show(watched, shown)

    def show(watched: _Watched | None, shown: int) -> tuple[str, str]:
        if watched is None or not watched.steps:
            return "", ""
        step = watched.steps[min(int(shown), len(watched.steps) - 1)]
        uncertain = uncertain_spans(watcher.translators[watched.engine], watched.text, step.step)
        return render_translation(step, uncertain), render_steps(watched.steps, step)

    with gradio.Blocks(title="LVNAR-HF: refinement, step by step", analytics_enabled=False) as page:
        gradio.Markdown(
            f"# Refinement, step by step\n\n`{watcher.name}` translates from {source or '?'} to {target or '?'}: all "
            "words at once, then all again in each step. Words that a step has changed are marked; underlined in dots "
            "is what the model is unsure of."
        )
        watched = gradio.State(None)
        with gradio.Row():
            with gradio.Column():
                text = gradio.Textbox(label="Text", lines=4, max_lines=12, elem_id="lvnar-text", autofocus=True)
                with gradio.Row():
                    engine = gradio.Radio(engines, value=engines[0][1], label="Engine", elem_id="lvnar-engine")
                    button = gradio.Button("Translate", variant="primary", elem_id="lvnar-translate")
                gradio.Examples(EXAMPLES.get(source or "", ["1."]), inputs=text, cache_examples=False)
            with gradio.Column():
                shown = gradio.Slider(
                    0, MAX_STEPS, value=MAX_STEPS, step=1, label="Translation after step", elem_id="lvnar-step"
                )
                translation = gradio.HTML(elem_id="lvnar-translation")
        table = gradio.HTML(elem_id="lvnar-table")
        outputs: list[Any] = [watched, translation, table]
        gradio.on(
            [button.click, text.submit, engine.change],
            translate,
            [text, engine, shown],
            outputs,
            show_progress="hidden",
            api_name="translate",
        )
        shown.change(show, [watched, shown], [translation, table], show_progress="hidden", api_name=False)
    return page


def launch(page: gradio.Blocks, host: str = "127.0.0.1", port: int | None = None, **options: Any) -> Any:
    """Serve a page, with fonts of the reader's machine.

    Args:
        host, port: to listen at; by default the first free port from 7860 on.
        options: of gradio's `launch`.
    """
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        theme=gradio.themes.Default(**fonts),
        css=_CSS,
        footer_links=[],
        **options,
    )
