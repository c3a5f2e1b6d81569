"""Prompts: Jinja files that turn a query and passages into chat messages; passages cut to a budget.

    {% set answer = "order" %}
    {% call system() %}You rank passages.{% endcall %}
    {% call user() %}
    Query: {{ query }}
    {% for passage in passages %}
    [{{ loop.index }}] {{ passage }}
    {% endfor %}
    {% endcall %}

A turn of the conversation stands between `call system()`, `call user()` or `call assistant()` and
`endcall`; a file without any is one user turn. The line break before `endcall` is not part of the
turn. A last turn of the assistant is the beginning of the answer, which the model goes on with.
A prompt may use `query`, `passages` (a list), `num` (how many) and `letters` (A to Z); one that
asks for a query has no `query` but `examples`, each with a `passage` and a `query`. `answer` says
how the answer is to be read:

| `answer` | suits the questions | read by |
|---|---|---|
| `order` (default) | order | `answers.read_order` |
| `letters` | order | `answers.order_from_logprobs`: one token is asked for |
| `best` | best | `answers.read_choice` |
| `score` | score | `answers.score_from_logprobs`: one token is asked for |
| `query` | none: it writes a query for a passage | `answers.read_query` |

`{% set max_tokens = 8000 %}` is the longest answer. Without it, an answer may have 200 tokens, or
ten for each passage if that is more.
"""

import hashlib
import re
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from rankdistillm.errors import InputError, check_count, quoted
from rankdistillm.teachers.answers import LETTERS
from rankdistillm.teachers.rankings import Kind

if TYPE_CHECKING:
    import jinja2

Message = dict[str, str]  # role and content
Reading = Literal["order", "letters", "best", "score", "query"]
ROLES = ("system", "user", "assistant")
# Of an answer. "[100] > " takes up to seven where each digit is a token.
LEAST_TOKENS, TOKENS_PER_PASSAGE = 200, 10
VARIABLES = "query, passages, num, letters and examples"
# A text of longer "words" than these is no prose: a URL, base64, or a script without spaces.
CHARACTERS_PER_WORD = 20
# Thai, Lao, Tibetan, Burmese, Khmer, kana, Han.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)
_BRACKETED = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class Example:
    """A passage and a query that it answers."""

    passage: str
    query: str


@dataclass(frozen=True)
class Prompt:
    """A prompt file. ``answer`` says how the model's answer is to be read.

    ``max_tokens`` is the longest answer, None if the file does not say; see `longest_answer`.
    ``examples`` are shown by prompts that ask for a query.
    """

    path: Path
    source: str
    answer: Reading
    max_tokens: int | None
    _template: "jinja2.Template" = field(repr=False, compare=False)
    examples: tuple[Example, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> "Prompt":
        """Read a prompt and try it out.

        Raises `InputError` with file, line and remedy for a file that is missing or no template,
        uses unknown variables, or does not show the model the query and every passage.
        """
        path = Path(path)
        source = _read(path)
        template, answer, max_tokens = _compile(path, source)
        prompt = cls(path, source, answer, max_tokens, template)
        prompt._try_out()
        return prompt

    @property
    def kind(self) -> Kind | Literal["query"]:
        """The kind of question that the prompt asks; ``query`` suits no way of asking."""
        return "order" if self.answer == "letters" else self.answer

    @property
    def reads_logprobs(self) -> bool:
        """Whether the answer is read from the log-probabilities of one token."""
        return self.answer in ("letters", "score")

    def longest_answer(self, num: int) -> int:
        """The tokens that an answer about ``num`` passages may have."""
        if self.reads_logprobs:
            return 1
        return self.max_tokens or max(LEAST_TOKENS, TOKENS_PER_PASSAGE * num)

    def digest(self) -> str:
        """SHA-256 of the file's text, in hexadecimal."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def messages(self, *, query: str, passages: Sequence[str]) -> list[Message]:
        """The conversation that asks about these passages, which `cut` has shortened.

        ``[12]`` in the query and in passages becomes ``(12)``, so that it names no passage. Raises
        `InputError` if the template fails or has too few letters for the passages.
        """
        if self.answer in ("letters", "best") and len(passages) > len(LETTERS):
            raise InputError(
                f"{self.path}: this prompt names passages by letters, of which there are "
                f"{len(LETTERS)}, but is asked about {len(passages)}; set a smaller window"
            )
        turns: list[Message] = []
        outside = self._render(
            query=_without_numbers(query),
            passages=[_without_numbers(passage) for passage in passages],
            num=len(passages),
            letters=LETTERS,
            examples=self.examples,
            **{role: _turn(role, turns) for role in ROLES},
        ).strip()
        if not turns:
            return [{"role": "user", "content": outside}]
        if outside:
            raise InputError(
                f"{self.path}: {quoted(outside)} stands outside of a turn; write "
                "{% call user() %} before it and {% endcall %} behind it"
            )
        return turns

    def _render(self, **variables: object) -> str:
        import jinja2

        try:
            return self._template.render(variables)
        except Exception as error:  # a template can fail in every way that an expression can
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(self.path)]
            where = f"{self.path}, line {lines[-1]}" if lines else str(self.path)
            remedy = (
                f"a prompt may use {VARIABLES}"
                if isinstance(error, jinja2.UndefinedError)
                else "correct the template"
            )
            raise InputError(f"{where}: {error or type(error).__name__}; {remedy}") from error

    def _try_out(self) -> None:
        # Digits, which filters such as `upper` leave alone.
        query, *passages = ("3141592653", "2718281828", "1414213562")
        passages = passages[:1] if self.answer in ("score", "query") else passages
        turns = self.messages(query=query, passages=passages)
        shown = "\n".join(turn["content"] for turn in turns)
        if query not in shown and self.answer != "query":
            raise InputError(
                f"{self.path}: the prompt does not show the query; write {{{{ query }}}} in a turn"
            )
        if any(passage not in shown for passage in passages):
            raise InputError(
                f"{self.path}: the prompt does not show every passage; write "
                "{% for passage in passages %}, {{ passage }} and {% endfor %} in a turn"
            )


def cut(text: str, *, words: int = 300, characters: int = 600) -> str:
    """The beginning of a passage, with single spaces.

    It is cut to ``words`` words; a text in a script without spaces between words, such as Chinese,
    Japanese or Thai, to ``characters`` characters. No text keeps more than `CHARACTERS_PER_WORD` of
    them per word of the budget, whatever it is made of.

    Raises `InputError` for a budget below 1.
    """
    check_count("words", words)
    check_count("characters", characters)
    text = " ".join(text.split(None, words)[:words])
    budget = characters if _is_without_spaces(text) else words * CHARACTERS_PER_WORD
    if len(text) <= budget:
        return text
    # A vowel sign or accent stays with its letter.
    while budget and unicodedata.category(text[budget])[0] == "M":
        budget -= 1
    return text[:budget].rstrip()


def _is_without_spaces(text: str) -> bool:
    """Whether most characters of the beginning belong to a script without spaces."""
    beginning = "".join(text[:2000].split())
    return 2 * len(_WITHOUT_SPACES.findall(beginning)) > len(beginning)


def _without_numbers(text: str) -> str:
    return _BRACKETED.sub(r"(\1)", text)


def _turn(role: str, turns: list[Message]) -> Callable[..., str]:
    def add(caller: Callable[[], str]) -> str:
        turns.append({"role": role, "content": str(caller()).removesuffix("\n")})
        return ""

    return add


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); convert it") from error
    except OSError as error:
        beside = sorted(file.stem for file in path.parent.glob("*.jinja"))
        remedy = f"; choose one of {', '.join(beside)}, or a file" if beside else "; give a file"
        raise InputError(f"{path}: cannot be read ({error.strerror or error}){remedy}") from error


def _compile(path: Path, source: str) -> tuple["jinja2.Template", Reading, int | None]:
    """The template, and the values of ``answer`` and ``max_tokens`` in it."""
    import jinja2  # imported late, as in `Prompt.messages`
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    try:
        tree = environment.parse(source)
        code = environment.compile(source, filename=str(path))
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"{path}, line {error.lineno}: {str(error.message).rstrip('.')}; correct the template"
        ) from error
    answer: object = "order"
    max_tokens: object = None
    for node in tree.body:
        name = getattr(node.target, "name", None) if isinstance(node, nodes.Assign) else None
        value = getattr(getattr(node, "node", None), "value", None)
        if name == "answer":
            answer = value
            if answer not in get_args(Reading):
                raise InputError(
                    f"{path}, line {node.lineno}: answer is not one of "
                    f"{', '.join(get_args(Reading))}; correct it"
                )
        if name == "max_tokens":
            max_tokens = value
            check_count(f"{path}, line {node.lineno}: max_tokens", max_tokens)
    template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
    return template, cast(Reading, answer), cast(int | None, max_tokens)
