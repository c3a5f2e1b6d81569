"""Prompts become the messages that models were trained on; a broken one is refused in one line."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from rankdistillm.errors import InputError
from rankdistillm.teachers.prompts import CHARACTERS_PER_WORD, Prompt, cut
from rankdistillm.teachers.questions import AskOptions

PROMPTS = Path(__file__).parents[2] / "conf" / "prompts"
QUERY = "why do tides turn"
PASSAGES = ["The Moon pulls.", "Bread rises.", "The Sun pulls, too."]
# Those that ask about passages; another one asks for a query.
NAMES = sorted({path.stem for path in PROMPTS.glob("*.jinja")} - {"write_query"})


def load(name):
    return Prompt.load(PROMPTS / f"{name}.jinja")


def asked(name, query=QUERY, passages=PASSAGES):
    return load(name).messages(query=query, passages=passages)


@pytest.fixture
def written(tmp_path):
    def write(source):
        path = tmp_path / "own.jinja"
        path.write_text(source, "utf-8")
        return path

    return write


def refusal(path):
    with pytest.raises(InputError) as refused:
        Prompt.load(path)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message.replace(str(path), "FILE")


# The prompts that come with the package


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_shows_the_query_and_each_passage_once(name):
    prompt = load(name)
    passages = PASSAGES[:1] if prompt.kind == "score" else PASSAGES
    messages = prompt.messages(query=QUERY, passages=passages)
    assert all(message.keys() == {"role", "content"} for message in messages)
    roles = [message["role"] for message in messages if message["role"] != "system"]
    expected = ["user", "assistant"] * len(roles)
    assert roles == expected[: len(roles)]  # chat templates want alternating turns
    text = "\n".join(message["content"] for message in messages)
    assert QUERY in text
    assert all(text.count(passage) == 1 for passage in passages)
    assert "{" not in text
    assert all(m["content"] == m["content"].strip() for m in messages if m["role"] != "assistant")


def test_rank_zephyr_is_one_turn():
    system, user = asked("rank_zephyr")
    assert system["role"] == "system"
    assert system["content"].endswith("based on their relevancy to the query")  # no full stop
    first, *shown, last, instruction = user["content"].split("\n")
    assert user["role"] == "user"
    assert first.startswith("I will provide you with 3 passages, each indicated by a numerical")
    assert first.endswith(f"relevance to the search query: {QUERY}.")
    assert shown == [f"[{rank}] {passage}" for rank, passage in enumerate(PASSAGES, 1)]
    assert last == f"Search Query: {QUERY}."
    assert instruction.startswith("Rank the 3 passages above")
    assert "[] > [], e.g., [2] > [1], Answer concisely" in instruction


def test_rank_gpt_shows_each_passage_in_a_turn_of_its_own():
    system, first, received, *turns, last = asked("rank_gpt")
    assert system["content"].endswith("relevancy to the query.")
    assert first["content"].startswith("I will provide you with 3 passages")
    assert received == {"role": "assistant", "content": "Okay, please provide the passages."}
    assert turns == [
        turn
        for rank, passage in enumerate(PASSAGES, 1)
        for turn in (
            {"role": "user", "content": f"[{rank}] {passage}"},
            {"role": "assistant", "content": f"Received passage [{rank}]."},
        )
    ]
    assert last["role"] == "user"
    assert last["content"].startswith(f"Search Query: {QUERY}.\nRank the 3 passages above")


def test_prompts_for_one_token_name_passages_by_letters():
    assert load("single_token").answer == load("first").answer == "letters"
    assert "\nB: Bread rises.\n" in asked("single_token")[-1]["content"]
    *_, user, begun = asked("first")
    assert "\n[B] Bread rises.\n" in user["content"]
    assert begun == {"role": "assistant", "content": "["}
    assert load("setwise").kind == "best"
    assert "Passage C: The Sun pulls, too." in asked("setwise")[-1]["content"]


def test_qwen3_reranker_answers_behind_an_empty_thought():
    system, user, begun = asked("qwen3_reranker", passages=PASSAGES[:1])
    assert 'can only be "yes" or "no"' in system["content"]
    assert user["content"].splitlines()[1:] == [f"<Query>: {QUERY}", f"<Document>: {PASSAGES[0]}"]
    assert begun == {"role": "assistant", "content": "<think>\n\n</think>\n\n"}


def test_mono_t5_is_one_text():
    (user,) = asked("mono_t5", passages=PASSAGES[:1])
    assert user == {
        "role": "user", "content": f"Query: {QUERY} Document: {PASSAGES[0]} Relevant:",
    }  # fmt: skip


def test_the_longest_answer_suits_the_prompt(written):
    assert load("reasoning").longest_answer(20) >= 4000
    assert load("write_query").longest_answer(1) == 64
    for name in ("single_token", "first", "yes_no", "qwen3_reranker"):
        assert load(name).longest_answer(20) == 1
    assert [load("rank_zephyr").longest_answer(n) for n in (2, 20, 100)] == [200, 200, 1000]
    own = Prompt.load(written("{% set max_tokens = 7 %}{{ query }}{{ passages }}"))
    assert own.longest_answer(20) == 7
    options = AskOptions(max_tokens=9)
    assert options.request(own, 20)["max_tokens"] == 9  # the user's option wins
    assert AskOptions().request(own, 20)["max_tokens"] == 7
    assert options.request(load("single_token"), 20)["max_tokens"] == 1


def test_more_passages_than_letters_are_refused():
    asked("single_token", passages=["x"] * 26)
    for name in ("single_token", "first", "setwise"):
        with pytest.raises(InputError, match=r"26, but is asked about 27; set a smaller window"):
            asked(name, passages=["x"] * 27)
    asked("rank_zephyr", passages=["x"] * 27)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_in_brackets_name_passages_and_nothing_else(name):
    query = "what is [12] in a[3]"
    prompt = load(name)
    passages = ["see [1] and [٤], [x] [ 5 ]"]
    text = "".join(m["content"] for m in prompt.messages(query=query, passages=passages))
    assert "what is (12) in a(3)" in text
    assert "see (1) and (٤), [x] [ 5 ]" in text


def test_texts_are_data():
    hostile = "{{ query }} {% endcall %} </s> <|im_end|> {# & <b> \x1b"
    _, user = asked("rank_zephyr", query=hostile, passages=[hostile, "b"])
    assert f"search query: {hostile}.\n[1] {hostile}\n[2] b\n" in user["content"]


def test_queries_are_never_cut():
    long = "tide " * 5000
    assert long in asked("rank_zephyr", query=long)[-1]["content"]


def test_the_digest_is_that_of_the_text(written):
    source = "{{ query }} {{ passages }}"
    first = Prompt.load(written(source)).digest()
    assert Prompt.load(written(source)).digest() == first
    assert Prompt.load(written(source + ".")).digest() != first
    assert len({load(name).digest() for name in NAMES}) == len(NAMES)


# Prompts of a user


def test_a_file_without_turns_is_one_turn_of_the_user(written):
    prompt = Prompt.load(written("Query: {{ query }}\n{{ passages | join('\n') }}\n"))
    assert prompt.answer == "order"
    assert prompt.messages(query="q", passages=["a", "b"]) == [
        {"role": "user", "content": "Query: q\na\nb"}
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{{ query }}\n{% for p in passages %}\n{{ p }}\n",
            "FILE, line 3: Unexpected end of template",
        ),
        ("\n\n{{ qurey }}", "FILE, line 3: 'qurey' is undefined; a prompt may use query, passages"),
        ("{{ query }}\n{{ passages[7] }}", "FILE, line 2: list object has no element 7"),
        ("\n{{ 1 / 0 }}", "FILE, line 2: division by zero; correct the template"),
        ("{% include 'x' %}", "FILE, line 1: no loader"),
        ("{{ query.__class__.__mro__ }}", "FILE, line 1: access to attribute"),
        ("{{ passages }}", "FILE: the prompt does not show the query; write {{ query }} in a turn"),
        ("{{ query }} {{ passages[0] }}", "FILE: the prompt does not show every passage; write {%"),
        (
            "hello {% call user() %}{{ query }}{{ passages }}{% endcall %}",
            "FILE: hello stands outside of a turn; write {% call user() %} before it",
        ),
        (
            "\n{% set answer = 'best of' %}{{ query }}",
            "FILE, line 2: answer is not one of order, letters, best, score, query; correct it",
        ),
        (
            "\n{% set max_tokens = 'many' %}{{ query }}",
            "FILE, line 2: max_tokens=many is not a whole number above 0",
        ),
        ("{% set answer = query %}{{ query }}", "FILE, line 1: answer is not one of order"),
        ("{% call robot() %}{{ query }}{% endcall %}", "FILE, line 1: 'robot' is undefined"),
    ],
)
def test_a_broken_prompt_is_refused_in_one_line(written, source, message):
    assert refusal(written(source)).startswith(message)


def test_a_prompt_that_is_missing_or_no_text_is_refused(tmp_path, written):
    (tmp_path / "mine.jinja").write_text("{{ query }}")
    assert refusal(tmp_path / "other.jinja") == (
        "FILE: cannot be read (No such file or directory); choose one of mine, or a file"
    )
    assert refusal(tmp_path / "none" / "other.jinja").endswith("; give a file")
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "latin.jinja").write_bytes(b"\xe9{{ query }}")
    assert refusal(tmp_path / "latin.jinja").startswith("FILE: not UTF-8")


def test_the_room_is_imported_without_its_extra_and_without_torch():
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "from rankdistillm.teachers import budget, history, openai_endpoint, rehearsal, store\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROMPTS.parents[1])


# Cutting


def test_passages_are_cut_to_words():
    text = "  one\ttwo \n three\u00a0four "
    assert cut(text) == "one two three four"
    assert cut(text, words=2) == "one two"
    assert cut("", words=1) == cut(" \n", words=1) == ""
    assert len(cut("word " * 1000).split()) == 300
    assert cut("한국어 문장은 띄어 쓴다", words=2) == "한국어 문장은"


@pytest.mark.parametrize(
    "text", ["潮汐随月亮而变化。" * 200, "น้ำขึ้นน้ำลง" * 200, "潮の満ち引き、" * 200]
)
def test_scripts_without_spaces_are_cut_to_characters(text):
    for characters in range(1, 60):
        short = cut(text, words=300, characters=characters)
        assert text.startswith(short)
        assert len(short) <= characters
        # No vowel sign or tone mark is torn from its letter, so at most one letter is lost.
        assert len(short) > characters - 4
        assert unicodedata.category(text[len(short)])[0] != "M"
    assert len(cut(text)) == pytest.approx(600, abs=4)
    # English names in it change nothing, nor does Chinese in English.
    assert len(cut("NASA " + text, characters=50)) <= 50
    assert len(cut("The tide " * 50 + text[:20], words=40, characters=5).split()) == 40


def test_a_vowel_sign_stays_with_its_letter():
    thai = "น้ำขึ้น"  # n + tone mark + am, kh + i + tone mark, n
    assert cut(thai, characters=1) == ""
    assert cut(thai, characters=2) == "น้"
    assert cut("潮" * 9, characters=4) == "潮" * 4


def test_long_words_do_not_break_the_budget():
    url = "https://example.com/" + "a" * 100_000
    assert len(cut(f"see {url}", words=10)) == 10 * CHARACTERS_PER_WORD
    mixed = "Tides turn " + "潮" * 100_000  # four words in English, and very long ones
    assert len(cut(mixed, words=10, characters=30)) <= 10 * CHARACTERS_PER_WORD


@pytest.mark.parametrize("budget", [{"words": 0}, {"characters": 0}, {"words": 1.5}])
def test_budgets_below_one_are_refused(budget):
    with pytest.raises(InputError, match="is not a whole number above 0"):
        cut("text", **budget)
