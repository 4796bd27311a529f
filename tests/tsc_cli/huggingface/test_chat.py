"""Chats: what is taken of messages, what is refused by name, and how a conversation in a file goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from formats import load
from formats.errors import UsageError
from tests.support import models
from tsc_cli import capture, chat_tokens
from tsc_cli.huggingface.text.chat import checked
from tsc_cli.huggingface.text.chat_template import variables_of

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think></think>{% endif %}"
    "{% endif %}{{ tail }}"
)
FORGETS = CHATML.replace(  # takes the reasoning out of all answers but the last
    "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
)
LAST_ONLY = "{% for m in messages %}{% if loop.last %}<|im_start|>{{ m.content }}{% endif %}{% endfor %}"
SYSTEM_LAST = (  # the system message stands in the last turn
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BY_NUMBER = CHATML.replace("{{ m.content }}", "{% if loop.index > 4 %}!{% endif %}{{ m.content }}")
TWO_ONLY = "{% if messages | length > 2 %}{{ raise_exception('Two!') }}{% endif %}"
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{{ part.text }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
EITHER = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}\n{% endfor %}"
)
USER = {"role": "user", "content": "hi"}


def tokenizer_of(template: str = CHATML) -> Any:
    tokenizer = models.byte_tokenizer()
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken("<|im_start|>", normalized=False),
                AddedToken("<|im_end|>", normalized=False),
            ]
        }
    )
    tokenizer.chat_template = template
    return tokenizer


def said(tokenizer: Any, messages: list[dict[str, Any]], **settings: Any) -> str:
    return str(tokenizer.decode(chat_tokens(tokenizer, messages, **settings)))


def session(tokenizer: Any, text: str, pending: str = "") -> Any:
    """A trace of a text whose run has chosen `pending` and not fed it."""
    trace = capture(MODEL, tokenizer(text)["input_ids"], steps=0)
    if pending:
        trace.info.clear()  # as a run that generated what it ends with
    view = trace.views[-1]
    chosen = tuple(tokenizer(pending)["input_ids"])
    trace.views[-1] = type(view)(**{**view.__dict__, "next_tokens": chosen})
    return trace


MODEL = models.llama()


@pytest.mark.parametrize("template", [CHATML, PARTS, EITHER])
def test_parts_of_text_are_taken(template: str) -> None:
    tokenizer = tokenizer_of(template)
    text = said(tokenizer, [USER])
    assert "hi" in text
    assert said(tokenizer, [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]) == text
    several = said(tokenizer, [{"role": "user", "content": [{"type": "text", "text": "h"}, "i"]}])
    assert several == (text if template != CHATML else text.replace("hi", "h\ni"))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            [
                USER,
                {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]},
            ],
            r"message 1 \(user\): part 1 is of type 'image_url'",
        ),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "'input_audio'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part 0 has no text"),
        ([{"role": "user", "content": [5]}], "part 0 is not"),
        ([{"role": "user", "content": []}], "content without a part"),
        ([{"role": "user", "content": None}], r"message 0 \(user\) has no content"),
        ([{"role": "assistant", "content": None}], "has no content"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "has no content"),
        ([{"role": "user"}], "has no content"),
        ([{"role": "user", "content": 5}], "neither text nor a list of parts"),
        ([{"role": "user", "content": {"text": "x"}}], "neither text nor a list"),
        ([{"role": 5, "content": "x"}], "message 0 is not"),
        ([5], "message 0 is not"),
        ([], "one message or more"),
        ({}, "is not a list"),
        ("text", "is not a list"),
        (None, "is not a list"),
        ([{"role": "user", "content": "a\ud800"}], "half of a surrogate pair"),
        ([{"role": "user", "content": "a", "name": ["\udfff"]}], "half of a surrogate pair"),
    ],
)
def test_other_messages_are_refused_by_name(messages: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        checked(messages)


def test_tool_calls_do_without_content() -> None:
    call = {"function": {"name": "add", "arguments": "{}"}}
    tool = {"role": "tool", "content": "3", "tool_call_id": "1"}
    for message in ({"content": None}, {}):
        text = said(tokenizer_of(), [USER, {"role": "assistant", "tool_calls": [call], **message}, tool])
        assert "<|im_start|>assistant\n<call>add<|im_end|>\n<|im_start|>tool\n3<|im_end|>\n" in text
        assert "None" not in text


def test_template_variables() -> None:
    tokenizer, notes = tokenizer_of(), []
    assert "<think></think>" not in said(tokenizer, [USER])
    assert said(tokenizer, [USER], template={"enable_thinking": False}).endswith("assistant\n<think></think>")
    assert said(tokenizer, [USER], template={"add_generation_prompt": False}).endswith("hi<|im_end|>\n")
    assert said(tokenizer, [USER], system="Be.").startswith("<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nhi")
    said(tokenizer, [USER], template={"nosuch": 1}, say=notes.append)
    assert notes == ["the chat template has no variable nosuch, so that it changes nothing"]
    for key in ("tokenize", "messages", "conversation", "return_tensors", "continue_final_message"):
        with pytest.raises(UsageError, match=f"{key} is not a variable"):
            chat_tokens(tokenizer, [USER], template={key: 1})
    with pytest.raises(UsageError, match="begin with a system message already"):
        chat_tokens(tokenizer, [{"role": "system", "content": "x"}, USER], system="y")


def test_variables_of_a_command_line() -> None:
    given = ["a=1", "b=x y", 'c={"d": [true]}', "e=NaN", "f=", "g=h=i", 'j="1"']
    expected = {"a": 1, "b": "x y", "c": {"d": [True]}, "e": "NaN", "f": "", "g": "h=i", "j": "1"}
    assert variables_of(given, None) == expected
    assert variables_of([], False) == {"enable_thinking": False}
    for wrong in (["a"], ["=1"], ["a b=1"], ["a=1", "a=2"], ["enable_thinking=1"], ["a=\udce9"], ['a="\\ud800"']):
        with pytest.raises(UsageError):
            variables_of(wrong, True)


def test_a_template_that_raises() -> None:
    tokenizer = tokenizer_of("{{ raise_exception('Only\nusers!') }}")
    with pytest.raises(UsageError, match=r"^the chat template refuses these messages: Only users!$"):
        chat_tokens(tokenizer, [USER])
    tokenizer.chat_template = "{{ messages[0].content.nosuch.more }}"
    with pytest.raises(UsageError, match="refuses these messages"):
        chat_tokens(tokenizer, [USER])
    for nothing in (None, tokenizer_of(), models.byte_tokenizer()):
        if nothing is not None:
            nothing.chat_template = None
        with pytest.raises(UsageError, match="has no chat template"):
            chat_tokens(nothing, [USER])


FIRST = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
NEXT = {"role": "user", "content": "and?"}
TURN = "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("held", "pending", "expected"),
    [
        ("Well", "", f"<|im_end|>\n{TURN}"),
        ("Well", ".", f"<|im_end|>\n{TURN}"),
        ("Well", "<|im_end|>", f"\n{TURN}"),
        ("Well<|im_end|>", "\n", TURN),
        ("Well<|im_end|>\n", "", TURN),
        ("", "", f"<|im_end|>\n{TURN}"),
        ("Well<|im_end|>\n<|im_start|>user\nJunk", "", f"<|im_end|>\n{TURN}"),
    ],
)
def test_new_turns(held: str, pending: str, expected: str) -> None:
    tokenizer = tokenizer_of()
    notes: list[str] = []
    fed = said(tokenizer, [NEXT], trace=session(tokenizer, FIRST + held, pending), say=notes.append)
    assert fed == expected
    assert bool(notes) == ("Junk" in held)


def test_a_whole_conversation_is_told_from_new_turns() -> None:
    tokenizer = tokenizer_of()
    talk = [USER, {"role": "assistant", "content": "Well."}, NEXT]
    for held, pending in (("Well", "."), ("We", "l"), ("", "W")):
        trace = session(tokenizer, FIRST + held, pending)
        rest = f"Well.<|im_end|>\n{TURN}".removeprefix(held + pending)
        assert said(tokenizer, talk, trace=trace) == rest
        whole = chat_tokens(tokenizer, talk)
        assert [*trace.token_ids(), *trace.views[-1].next_tokens, *chat_tokens(tokenizer, talk, trace=trace)] == whole
    with pytest.raises(UsageError, match="begin as the session does, and say something else from token"):
        chat_tokens(tokenizer, talk, trace=session(tokenizer, FIRST + "No", "."))
    with pytest.raises(UsageError, match="holds all of these messages already"):
        chat_tokens(tokenizer, [USER], trace=session(tokenizer, FIRST))
    with pytest.raises(UsageError, match="does not begin with this system message"):
        chat_tokens(tokenizer, [NEXT], system="Be.", trace=session(tokenizer, FIRST + "No", "."))
    assert said(tokenizer, [USER], trace=session(tokenizer, FIRST + "No", ".")) == "<|im_end|>\n" + TURN.replace(
        "and?", "hi"
    )


@pytest.mark.parametrize(
    ("template", "held", "reason"),
    [
        (CHATML, "Once upon a time", "not a chat of this template"),
        (FORGETS, f"{FIRST}<think>x</think>Well", "writes earlier turns anew"),
        (LAST_ONLY, f"{FIRST}Well", "writes earlier turns anew"),
        (SYSTEM_LAST, f"{FIRST}Well", "writes earlier turns anew"),
        (TWO_ONLY + CHATML, f"{FIRST}Well", "refuses these messages: Two!"),
        (BY_NUMBER, f"{FIRST}Well", "by what came before"),
    ],
)
def test_new_turns_that_are_not_well_defined(template: str, held: str, reason: str) -> None:
    tokenizer = tokenizer_of(template)
    with pytest.raises(UsageError, match=reason):
        chat_tokens(tokenizer, [NEXT], trace=session(tokenizer, held))
    if template == FORGETS:
        assert said(tokenizer, [NEXT], trace=session(tokenizer, f"{FIRST}Well")) == f"<|im_end|>\n{TURN}"


def test_a_doubled_beginning_is_said(tsc: Any, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_of("<s>{{ bos_token if twice else '' }}{{ messages[0].content }}")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    models.llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "m.json").write_text(json.dumps([USER]))
    base = ("capture", "-m", tmp_path / "model", "-o", tmp_path / "t.tsc", "--steps", 0, "-f")
    for words, count, doubled in (
        (("hi",), 1, False),
        (("<s>hi",), 2, True),
        (("<s>hi", "--no-special-tokens"), 1, False),
        (("hi", "--no-special-tokens"), 0, False),
        (("--messages", tmp_path / "m.json"), 1, False),
        (("--messages", tmp_path / "m.json", "--template", "twice=true"), 2, True),
        (("--messages", tmp_path / "m.json", "--no-special-tokens"), 1, False),
    ):
        done = tsc(*base, *words)
        assert done.code == 0, done.err
        assert load(tmp_path / "t.tsc").token_ids().count(begin) == count
        assert ("begins with two <s>" in done.err) == doubled


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat")
    models.llama().save_pretrained(path)
    tokenizer_of().save_pretrained(path)
    return path


def test_a_chat_goes_on_from_a_file(tsc: Any, folder: Path, tmp_path: Path) -> None:
    tokenizer, path = tokenizer_of(), tmp_path / "t.tsc"
    for name, talk in (("first", [USER]), ("next", [NEXT])):
        (tmp_path / f"{name}.json").write_text(json.dumps(talk))
    words = ("--messages", tmp_path / "first.json", "-m", folder, "--no-enable-thinking")
    assert tsc("capture", *words, "-o", path, "--steps", 5).code == 0
    before = load(path)
    assert tokenizer.decode(before.token_ids(0)).endswith("assistant\n<think></think>")
    asked = tsc("resume", path, "--messages", tmp_path / "next.json", "-m", folder, "-n", 3, "--json", "--ignore-eos")
    assert asked.code == 0, asked.err
    new = chat_tokens(tokenizer, [NEXT], trace=before)
    assert asked.json["prompt_tokens"] == len(new)
    done = tsc("capture", "--append", path, "--messages", tmp_path / "next.json", "-m", folder, "--steps", 3)
    assert done.code == 0, done.err
    held = load(path).token_ids(-4)  # after the new turn, before the steps
    assert held[-len(new) :] == new
    assert tokenizer.decode(held).endswith(f"<|im_end|>\n{TURN}")


def test_options_that_do_not_go_together(tsc: Any, folder: Path, tmp_path: Path) -> None:
    chat, out = tmp_path / "m.json", tmp_path / "t.tsc"
    chat.write_text(json.dumps([USER]))
    for words, reason in (
        (("hi", "--system", "x"), "--system needs --messages"),
        (("hi", "--enable-thinking"), "--enable-thinking needs --messages"),
        (("hi", "--template", "a=1"), "--template needs --messages"),
        (("hi", "--messages", chat), "give one prompt"),
        (("--messages", chat, "--template", "a"), "is not KEY=VALUE"),
        (("--messages", chat, "--template", "tokenize=1"), "tokenize is not a variable of a template"),
        (("--messages", chat, "--template", "self=1"), "self is not a variable of a template"),
        (("--messages", chat, "--system", "a\udce9"), "--system is not UTF-8 text"),
    ):
        done = tsc("capture", *words, "-m", folder, "-o", out)
        assert (done.code, reason in done.err) == (2, True), done.err
    done = tsc("capture", "--append", out, "hi", "--no-special-tokens")
    assert "--no-special-tokens has no meaning with --append" in done.err
    assert not out.exists()
