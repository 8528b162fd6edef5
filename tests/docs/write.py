"""Fill in what the examples in docs/ print, and write the pages that are made from tables: `make docs`.

The tests then compare them.
"""

import contextlib
import doctest
import io
import os
import tempfile
from itertools import groupby
from pathlib import Path

from caldera.batches.templates import END, TEMPLATES, Mark, Slot, Template, Text, Token
from caldera.conversation import Conversation, Picture, Turn

ROOT = Path(__file__).parents[2]

RUN = ("docs/tour.md",)
"""Pages whose Python examples are run."""


def filled(page: str, name: str) -> str:
    """Return a page with the output of each of its examples below it, run in an empty folder."""
    names: dict[str, object] = {}
    written = []
    for piece in doctest.DocTestParser().parse(page, name):
        if isinstance(piece, str):
            written.append(piece)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(piece.source, name, "single"), names)
        first, *more = piece.source.splitlines()
        lines = [f">>> {first}", *(f"... {line}".rstrip() for line in more)]
        written.append("\n".join(lines) + "\n" + printed.getvalue())
    return "".join(written)


TEMPLATES_HEAD = """# Templates

A template is how one family of language models wants a conversation written. `--set template=NAME` of `caldera train`
chooses one, the model folder keeps it, and `caldera data inspect FILE --template NAME` shows it. Take the one that the
language model was made with. This page is written by `make docs` from the table in `batches/templates.py`.

Below, `<image>` is a picture's place, `<s>` the start mark if the tokenizer uses one, `</s>` the tokenizer's own end
mark, and what stands in `[[ ]]` is learned: the answers and their end marks, and nothing else. A turn's only picture
goes before its words; several stay where they are. Nothing that a user types becomes a picture or a special token.
Where a tokenizer lacks a special token of the template, training adds it, as a new row that starts as the mean of the
others.

A `_legacy` variant writes the same text, and cuts it into tokens as LLaVA-1.5's slow tokenizer did: every text between
two special tokens or pictures gets SentencePiece's space before it, so that `</s>` is followed by the pieces of
` USER`. Take it for weights that were trained so. All others give the ids that the tokenizer itself gives for the whole
text, but that no token reaches from a question into its answer, or out of it.

"""
"""What stands above the table."""


def templates_page() -> str:
    """Return docs/templates.md: a table of all templates, and two rounds in each."""
    rows = [
        "| template | for | end mark | stop | special tokens |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows += [_row(template) for template in TEMPLATES.values()]
    shown = [
        f"## {template.name}\n\n```text\n{_two_rounds(template)}\n```\n"
        for template in TEMPLATES.values()
        if not template.alone
    ]
    return TEMPLATES_HEAD + "\n".join(rows) + "\n\n" + "\n".join(shown)


def _row(template: Template) -> str:
    """Return a template's line of the table."""

    def code(*texts: str) -> str:
        """Return texts as code in a table's cell."""
        return " ".join("`" + text.replace("\n", "\\n").replace("|", "\\|") + "`" for text in texts)

    stop = template.stop or template.end_token or END
    special = code(*template.tokens)
    if template.tokens_or_text:
        special = f"{code(*template.tokens_or_text)} where the tokenizer has them, else text"
    return (
        f"| {template.name} | {template.models} | {code(template.end)} | {code(stop)} | {special} |"
    )


def _two_rounds(template: Template) -> str:
    """Write two rounds, or a caption, with what is learned in double brackets."""
    turns = [Turn("user", (Picture(""), "{question}")), Turn("assistant", ("{answer}",))]
    if not template.captions:
        turns += [Turn("user", ("{question}",)), Turn("assistant", ("{answer}",))]
    pieces = []
    for span in template.render(Conversation("", tuple(turns))):
        match span:
            case Slot():
                pieces.append(("<image>", False))
            case Mark(which, learned):
                pieces.append(("<s>" if which == "start" else END, learned))
            case Text(text, learned) | Token(text, learned):
                pieces.append((text, learned))
    runs = [
        (learned, "".join(text for text, _ in run))
        for learned, run in groupby(pieces, key=lambda piece: piece[1])
    ]
    return "".join(f"[[{text}]]" if learned else text for learned, text in runs)


def main() -> None:
    """Rewrite every page."""
    (ROOT / "docs" / "templates.md").write_text(templates_page())
    for name in RUN:
        page = (ROOT / name).read_text()
        with tempfile.TemporaryDirectory() as empty:
            os.chdir(empty)
            result = filled(page, name)
            os.chdir(ROOT)
        (ROOT / name).write_text(result)


if __name__ == "__main__":
    main()
