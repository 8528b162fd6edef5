"""The package speaks the field's language: no private words in names, docstrings, comments, messages or docs.

`python tests/test_vocabulary.py PATH ...` lists what is wrong below some paths.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("src", "tests", "benchmarks", "backbones", "examples")
PROSE_CODE = ("src", "benchmarks", "backbones", "examples")
DOCS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs")

NAMES = frozenset(
    [
        "one",
        "each",
        "found",
        "where",
        "asked",
        "told",
        "said",
        "at",
        "place",
        "shown",
        "known",
        "wanted",
        "given",
        "kept",
        "what",
        "whole",
        "thing",
        "beside",
        "most",
        "least",
        "means",
        "theirs",
        "ours",
        "drawn",
        "named",
        "heard",
        "begun",
        "done",
        "news",
        "brought",
        "taken",
        "took",
        "made",
        "together",
        "alike",
        "heat",
        "asking",
    ]
)
"""Pronouns, participles and prepositions that name nothing; a variable or parameter names its thing."""

NAME_PARTS = re.compile(
    r"picture|optimis|normalis|colour|centre|neighbour|recognis|serialis|initialis|quantis|behaviour|tokenis|summaris"
    r"|standardis|labelled|organis",
    re.IGNORECASE,
)
"""Parts of identifiers: `image` and American spelling are the package's."""

OPENINGS = frozenset(
    ["what", "of", "who", "whose", "whom", "where", "how", "have", "has", "tell", "say", "whether"]
)
"""Words that open no docstring: a function's opens with a verb, a class's or module's with a noun phrase."""

PHRASES = {
    r"pictures?": "image",
    r"so many(?! \w+ that)": "N, at most N",
    r"so-manieth": "every n-th",
    r"(?:leav(?:e|es|ing)|left) away": "omit, remove",
    r"(?:leav(?:e|es|ing)|left) out": "skip, omit",
    r"go(?:es|ing)? on|went on": "resume, continue",
    r"tells?|told": "log, report, print",
    r"says?|said": "print, state",
    r"what it came to": "result",
    r"let(?:s)? go of": "release",
    r"mend(?:s|ed|ing)?": "fix",
    r"learned tokens?": "supervised token",
    r"what learns": "trainable",
    r"arrangements?": "batch layout",
    r"look(?:s|ed)? at(?= (?:an?|the|each|every|all|its|their|some|images?))": "encode, inspect",
    r"stand(?:s|ing)? (?:in|behind|on|before|beside|at|under|below|there)": "is in, follows",
    r"stood (?:in|behind|on|before|beside|at|there)": "was in",
    r"stretch(?:es)?": "span, segment",
    r"(?:of )?like (?:length|size|lengths|sizes)": "similar length",
    r"beside": "relative to, next to, in addition to",
    r"refus(?:e|es|ed|ing)": "reject",
    r"torn": "truncated",
    r"is worth|are worth": "score, effect",
    r"hears?|heard": "receives",
    r"nobody'?s|somebody'?s": "name the party",
    r"all alike|are alike": "equal",
    r"by chance": "at random",
    r"altogether": "in total",
}
"""Private words and the field's word for each."""

DATA = {
    "src/caldera/instructions/": "question wordings, facts in English and prompts are training data or model input",
    "src/caldera/scenes/": "captions and object names of drawn scenes are training data",
    "src/caldera/annotations/noun_phrases.py": "words of captions that separate noun phrases",
    "src/caldera/datasets/statistics.py": "nouns of answers that name no object",
    "src/caldera/datasets/imbalances.py": "words of questions",
    "src/caldera/evaluation/benchmarks/": "prompts and file formats are the benchmarks' own",
    "src/caldera/evaluation/judging/": "judge prompts are LLaVA's and Vicuna's own",
    "src/caldera/evaluation/vqa_accuracy.py": "contractions are the official evaluator's own",
    "src/caldera/export/parity/sample_images.py": "questions are model input",
    "src/caldera/templates/registry.py": "system texts are those of the released models",
    "backbones/": "texts of the corpus are training data",
}
"""Files whose string literals are data; their docstrings, comments and raised messages are checked all the same."""

ALLOWED: dict[tuple[str, str], str] = {
    ("src/caldera/conversation/turns.py", "picture"): "labels of several images are training data",
    ("src/caldera/conversation/image_marks.py", "picture"): "marks are other projects' own",
    ("src/caldera/evaluation/runs/ensemble.py", "picture"): "the judge's prompt is fixed",
    ("src/caldera/evaluation/runs/ensemble.py", "stands in"): "the judge's prompt is fixed",
    ("src/caldera/server/page/page.py", "picture"): "example questions, as worded in training data",
    (
        "src/caldera/server/page/page.py",
        "pictures",
    ): "example questions, as worded in training data",
    ("src/caldera/server/page/translations.py", "picture"): "the label of images in training data",
}
"""(file, found text in lower case): why it stays."""

_PHRASE = {
    re.compile(rf"(?<![\w-]){pattern}(?![\w-])", re.IGNORECASE): word
    for pattern, word in PHRASES.items()
}


def files(roots: tuple[str, ...], suffix: str) -> list[Path]:
    """Return the files with a suffix below some roots, sorted."""
    paths = [ROOT / root for root in roots]
    found_files = [path for path in paths if path.is_file()]
    return sorted(found_files + [file for path in paths for file in path.rglob(f"*{suffix}")])


def bound_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of every variable, parameter, function, class and field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs) and node.name:
            yield node.lineno, node.name


def documented(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstring of the module, its classes and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def sentences(path: Path, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of what people read in a Python file: docstrings, comments, messages and help texts."""
    is_data = str(path.relative_to(ROOT)).startswith(tuple(DATA))
    raised = [
        range(node.lineno, (node.end_lineno or 0) + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
    ]
    bare = {
        (node.lineno, node.col_offset)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif token.type == tokenize.STRING:
            is_message = any(token.start[0] in lines for lines in raised)
            if (token.start in bare or is_message or not is_data) and " " in token.string:
                yield token.start[0], token.string


def faults_of_names(path: Path) -> Iterator[str]:
    """Yield the names in a Python file that say nothing or are spelled otherwise."""
    here = path.relative_to(ROOT)
    for line, name in sorted(set(bound_names(ast.parse(path.read_text("utf-8"))))):
        if name in NAMES:
            yield f"{here}:{line}: `{name}` names nothing; name the thing"
        elif (match := NAME_PARTS.search(name)) and (
            str(here),
            match.group().lower(),
        ) not in ALLOWED:
            yield f"{here}:{line}: `{name}`: spell it as the field does ({match.group()})"


def faults_of_prose(path: Path) -> Iterator[str]:
    """Yield the private words and the docstring openings of a Python file."""
    here, text = path.relative_to(ROOT), path.read_text("utf-8")
    tree = ast.parse(text)
    for line, docstring in documented(tree):
        if docstring.split()[0].lower().strip("`*,.") in OPENINGS:
            yield f"{here}:{line}: docstring opens with {docstring.split()[0]!r}"
    for line, sentence in sentences(path, tree, text):
        yield from faults_of_text(str(here), line, re.sub(r"`[^`\n]*`|\{[^{}]*\}", "", sentence))


def faults_of_docs(path: Path) -> Iterator[str]:
    """Yield the private words of a Markdown page; code in it is not prose."""
    here, text = str(path.relative_to(ROOT)), path.read_text("utf-8")
    text = re.sub(
        r"^```.*?^```", lambda match: "\n" * match.group().count("\n"), text, flags=re.M | re.S
    )
    for number, line in enumerate(text.splitlines(), 1):
        yield from faults_of_text(here, number, re.sub(r"`[^`]*`|\]\([^)]*\)", "", line))


def faults_of_text(here: str, line: int, text: str) -> Iterator[str]:
    """Yield the private words of one piece of text."""
    for pattern, word in _PHRASE.items():
        for match in pattern.finditer(text):
            if (here, match.group().lower()) not in ALLOWED:
                number = line + text.count("\n", 0, match.start())
                yield f"{here}:{number}: {match.group()!r}: write {word}"


def test_names_are_the_fields_own() -> None:
    """No identifier is a pronoun, a participle, a picture, or British."""
    paths = files(CODE, ".py")
    assert len(paths) > 300
    assert [fault for path in paths for fault in faults_of_names(path)] == []


def test_prose_is_plain() -> None:
    """No docstring, comment, message or help text uses a private word, or opens with a question word."""
    paths = files(PROSE_CODE, ".py")
    assert len(paths) > 200
    assert [fault for path in paths for fault in faults_of_prose(path)] == []


def test_docs_are_plain() -> None:
    """No page of the docs uses a private word."""
    paths = files(DOCS, ".md")
    assert len(paths) > 10
    assert [fault for path in paths for fault in faults_of_docs(path)] == []


def test_exceptions_are_needed() -> None:
    """Every exception names a file that is there and a text that is in it."""
    unused = [key for key in ALLOWED if key[1] not in (ROOT / key[0]).read_text("utf-8").lower()]
    assert unused == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("def f(one): ...", "`one` names nothing"),
        ("for each in []: ...", "`each` names nothing"),
        ("picture_path = 1", "spell it"),
        ("def normalise(): ...", "spell it"),
        ('def f():\n    """What it does."""', "opens with 'What'"),
        ('def f():\n    """Return a picture."""', "write image"),
        ("x = 1  # it goes on", "write resume"),
        ('raise ValueError("the reply is refused")', "write reject"),
    ],
)
def test_each_rule_is_enforced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, fault: str
) -> None:
    """Each kind of fault is found in a file that has it."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "src" / "module.py"
    path.parent.mkdir()
    path.write_text(code)

    [report] = [*faults_of_names(path), *faults_of_prose(path)]

    assert fault in report


if __name__ == "__main__":
    for argument in map(Path, sys.argv[1:]):
        for file in sorted(
            [argument] if argument.is_file() else [*argument.rglob("*.py"), *argument.rglob("*.md")]
        ):
            absolute = file.resolve()
            if file.suffix == ".md":
                found_faults = list(faults_of_docs(absolute))
            else:
                found_faults = list(faults_of_names(absolute))
                found_faults += (
                    [] if "tests" in absolute.relative_to(ROOT).parts else faults_of_prose(absolute)
                )
            print("\n".join(found_faults), end="\n" if found_faults else "")  # noqa: T201 - its output
