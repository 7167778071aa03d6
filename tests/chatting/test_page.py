"""The page in a real browser: streaming, stopping, two models, retry, edit, undo, storage, and that nothing runs."""

import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.browser import CHROMIUM, needs_browser, opened
from tests.chatting.conftest import Words, write_run
from tometune.chatting.conversation import show_control_characters
from tometune.common.errors import UserError
from tometune.config.root import ChatConfig

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed")

LONG = " ".join(f"word{number}" for number in range(2000))


def serve(share=False, port=None):
    """Serve a page over two engines, which each test sets."""
    from tometune.chatting.page import ChatPage

    loaded = Future()
    loaded.set_result([Words(), Words()])
    chat = ChatPage(["base", "tuned"], ["Base: tiny", "Tuned: tiny"], loaded, ChatConfig(port=port), 0)
    page, address = chat.serve(share)
    return SimpleNamespace(engines=loaded.result(), chat=chat, page=page, address=address)


@pytest.fixture(scope="module")
def served():
    made = serve()
    yield made
    made.page.close(verbose=False)


@pytest.fixture
def tab(served):
    """The page in a browser without history. At the end nothing went wrong and no other host was asked."""
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    served.engines[:] = Words("before: "), Words("after: ")
    with opened(served.address) as seen:
        seen.page.wait_for_selector("#box textarea:enabled")
        yield seen.page
        assert seen.errors == []
        assert not [url for url in seen.requests if not url.startswith((served.address, "data:", "blob:"))]


def ask(page, text):
    page.fill("#box textarea", text)
    page.press("#box textarea", "Enter")


def answers(page):
    messages = page.query_selector_all(".tm-chat .bot.message")
    return [each.inner_text().strip().replace("\u2060", "") for each in messages]


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def finished(page):
    page.wait_for_selector("#box .submit-button")


@needs_browser
@pytest.mark.whole
def test_a_run_next_to_its_base(tmp_path, base, store, clean_env):
    run = write_run(tmp_path / "outputs" / "tiny-pydocs_1k-s0-abcdef00", base).name
    overrides = (f"run={run}", "against=base", "chat.max_new_tokens=40", f"paths.cache={store}")
    started = subprocess.Popen(
        [sys.executable, "-m", "tometune.chat", *overrides],
        **{"cwd": tmp_path, "env": clean_env, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )
    try:
        with opened(re.search(r"http://127\.0\.0\.1:\d+/", started.stdout.readline())[0]) as seen:
            seen.page.wait_for_selector("#box textarea:enabled")
            seen.page.get_by_text("Tuned: tiny on mix_100k, seed 0").first.wait_for()
            assert seen.page.get_by_text(run).count() == 0
            ask(seen.page, "What does this function do?")
            until(lambda: len(answers(seen.page)) == 2 and "…" not in answers(seen.page), seconds=200)
            finished(seen.page)
            before, after = answers(seen.page)
            assert before != after
            assert not any(token in before + after for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
        started.send_signal(signal.SIGINT)
        _, stderr = started.communicate(timeout=20)
        assert started.returncode == 0, stderr
        assert stderr.splitlines() == ["loading tiny (base)", f"loading {run}", "ended"]
    finally:
        started.kill()
        started.communicate()


def test_a_prompt_waits_for_the_models_and_their_answers_stream_and_can_be_stopped(served, tab):
    slow = Words("before: ", pause=0.02)
    loaded, served.chat.engines = served.chat.engines, Future()
    ask(tab, LONG)
    tab.get_by_text("the models are being loaded").wait_for()
    served.engines[:] = slow, Words("after: ")
    served.chat.engines.set_result(served.engines)
    until(lambda: "word5" in "".join(answers(tab)))
    served.chat.engines = loaded
    tab.click("#box .stop-button")
    finished(tab)
    made = slow.made
    time.sleep(0.4)
    assert slow.made == made < 1000
    summary = tab.inner_text(".tm-summary")
    assert re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s · first token after [\d.]+ s · stopped", summary)
    slow.pause = 0
    ask(tab, "one two three")
    until(lambda: answers(tab)[1::2] == ["before: one two three", "after: one two three"])


def test_the_empty_page_names_the_sides_and_offers_prompts(served, tab):
    titles = [tab.inner_text(f".tm-chat >> nth={side}").split("\n")[0] for side in (0, 1)]
    assert titles == ["Base: tiny", "Tuned: tiny"]
    assert tab.get_by_text("Both models answer each prompt").count() == 2
    offers = tab.locator(".tm-offer button")
    prompt = offers.nth(1).inner_text()
    assert offers.count() == 3
    offers.nth(1).click()
    until(lambda: answers(tab) == [f"before: {prompt}", f"after: {prompt}"])
    finished(tab)
    assert not offers.first.is_visible()
    tab.get_by_text("New conversation", exact=True).click()
    offers.first.wait_for()
    assert answers(tab) == []
    tab.set_viewport_size({"width": 400, "height": 800})
    tab.reload()
    tab.wait_for_selector("#box textarea:enabled")
    until(lambda: tab.get_by_label("System prompt").bounding_box()["x"] < 0)
    assert tab.locator("#box").bounding_box()["y"] < 760, "chats, examples and box fit"


def test_retry_edit_undo_and_clear(served, tab):
    engine = Words("echo ")
    served.engines[:] = engine, engine
    other = ["echo other <i>words</i>"] * 2

    def press(label):
        tab.locator(f".tm-chat button[aria-label='{label}']").first.click()

    ask(tab, "first")
    finished(tab)
    press("Retry")
    until(lambda: engine.seeds == [0, 0, 1, 1])
    finished(tab)
    press("Edit")
    tab.locator(".tm-chat textarea").first.fill("other <i>words</i>")
    press("Submit")
    until(lambda: answers(tab) == other)
    finished(tab)
    press("Undo")
    until(lambda: tab.input_value("#box textarea") == "other <i>words</i>")
    assert answers(tab) == []
    tab.press("#box textarea", "Enter")
    until(lambda: answers(tab) == other)
    finished(tab)
    press("Clear")
    until(lambda: answers(tab) == [])


ATTACKS = [
    "<script>window.ran = 1</script> <img src=x onerror='window.ran = 2'><svg onload='window.ran = 3'>\n\n"
    "<iframe srcdoc='<script>parent.ran = 4</script>'></iframe>\n\n"
    "[click](javascript:window.ran=5) <a href='javascript:window.ran=6'>here</a>\n\n"
    "![picture](http://example.org/secret.png) ![another][ref]\n\n[ref]: http://example.org/ref.png\n\n"
    "<style>body { display: none }</style><form action='http://example.org'><button>send</button></form>\n\n"
    "bell \x07, escape \x1b[31mred, null \x00, turned \u202etxet",
    "`<script>window.ran = 7</script>`\n\n```html\n<script>window.ran = 8</script>\n```",
    "```\n``` <img src=x onerror='window.ran = 9'>\n<img src=x onerror='window.ran = 10'>",
    "```mermaid\ngraph TD\n  A[<img src=x onerror='window.ran = 11'>] --> B\n  click A 'javascript:window.ran=12'\n```",
    "text\n\n- ```mermaid  \n  <img src=http://example.org/drawn.png>\n  ```\n\n~~~mermaid\ngraph TD; A-->B\n~~~",
    "$$\n```\n<img src=x onerror='window.ran = 13'><b>bold</b>\n```\n$$\n\n"
    "$$\\href{javascript:window.ran=14}{x} \\includegraphics{http://example.org/tex.png}$$ \\(x^2\\)",
]


def test_nothing_in_a_text_runs_or_loads_anything(served, tab):
    served.engines[:] = Words(), Words()
    tab.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for number, attack in enumerate(ATTACKS, start=1):
        ask(tab, attack)
        until(lambda number=number: len(answers(tab)) == 2 * number and "…" not in answers(tab))
        finished(tab)
    shown = answers(tab)[: len(ATTACKS)]
    for text in ("<script>window.ran = 1</script>", "onerror='window.ran = 2'", "␇", "␛[31mred"):
        assert text in shown[0]
    assert "http://example.org/secret.png" in tab.content()
    assert shown[1].count("<script>") == 2
    links = [link.get_attribute("href") or "" for link in tab.query_selector_all(".tm-chat a")]
    assert not [link for link in links if link.startswith("javascript:")]
    tab.wait_for_timeout(500)  # a diagram would appear later than its text
    live = ["script", "iframe", "form", "style", "img", ".mermaid", "svg[id^=mermaid]", ".katex", ".latex-block"]
    assert tab.query_selector_all(", ".join(f".tm-chat .message {name}" for name in live)) == []
    assert [text for text in shown if "graph TD" in text and "-->" in text] == shown[3:5]
    assert tab.evaluate("window.ran") is None
    assert tab.is_visible("#box textarea")
    other = tab.context.new_page()  # even if a remote image got into the page, the browser would not ask for it
    other.goto(served.address)
    with other.expect_console_message(lambda message: "Content Security Policy" in message.text):
        other.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://example.org/remote.png'}))")


TAGS = ["<script>", "</script>", "<img src=x onerror=1>", "![a](http://x)"]
CODE = ["`", "``", "```", "~~~", "```mermaid\n", "$$", "\n", "\n\n", " ", "a"]


@given(st.lists(st.sampled_from([*TAGS, *CODE]), max_size=12).map("".join))
@example("<script>\n```\n</script>\n```\n<img src=x onerror=1>\n```")  # without the tags, other lines are code
def test_no_html_and_no_image_is_left_and_an_edit_starts_from_the_original(text):
    from tometune.chatting.page import JOINER, safe_markdown

    safe, found = safe_markdown(text), set()
    for token in MarkdownIt("commonmark", {"html": True}).parse(safe):
        found |= {token.type} | {child.type for child in token.children or []}
    assert not found & {"html_block", "html_inline", "image"}
    assert "```mermaid" not in safe
    assert safe.replace(JOINER, "") == text


def test_code_is_left_alone_and_control_characters_become_symbols():
    from tometune.chatting.page import JOINER, safe_markdown

    text = "look:\n\n```html\n<b>bold</b>\n```\n\n    <i>\n\nbut <u>"
    assert safe_markdown(text) == text.replace("<u>", f"<{JOINER}u>")
    text = "a\tb\nc\r\nd \x1b[2J\x07\x00 \x7f\x9b31m abc\u202edef"
    assert show_control_characters(text) == "a\tb\nc\nd ␛[2J␇␀ ␡\ufffd31m abc\ufffddef"


def test_a_conversation_is_exported_and_truncated_to_the_context(served, tab):
    tab.get_by_label("System prompt").fill("be kind")
    ask(tab, "the first prompt")
    finished(tab)
    with tab.expect_download() as download:
        tab.get_by_text("Save as JSON").click()
    rows = json.loads(download.value.path().read_text())
    assert [row["model"] for row in rows] == ["base", "tuned"]
    values = [turn["value"] for turn in rows[1]["conversations"]]
    assert values == ["be kind", "the first prompt", "after: the first prompt"]
    served.engines[:] = [Words(context=500)] * 2
    ask(tab, "x " * 500_000)
    tab.get_by_text("dropped the oldest turn and the middle of the prompt").first.wait_for()
    assert "more characters are not shown" in tab.inner_text(".tm-chat")
    assert tab.evaluate("localStorage.length") == 0, "nothing stays in the browser"


def test_users_wait_in_a_queue_and_a_closed_tab_ends_its_answer(served, tab):
    slow = Words(pause=0.02)
    served.engines[:] = slow, Words()
    closing = tab.context.new_page()
    closing.goto(served.address)
    ask(closing, LONG)
    until(lambda: slow.made > 5)
    ask(tab, "mine")
    tab.get_by_text("queue: 1/1").first.wait_for()
    closing.close()
    until(lambda: answers(tab)[-1:] == ["mine"])
    assert slow.made < 1000


def test_it_listens_on_this_machine_only_and_takes_and_serves_no_files(served):
    from gradio.utils import get_upload_folder

    assert served.address.startswith("http://127.0.0.1:")
    assert served.page.server.config.host == "127.0.0.1"
    assert "default-src 'self'" in httpx.get(served.address).headers["content-security-policy"]
    assert httpx.get(served.address, headers={"Host": "evil.example"}).status_code == 400
    for path in ("/etc/passwd", "pyproject.toml", __file__):
        assert httpx.get(f"{served.address}gradio_api/file={path}").status_code in (403, 404)
    before = set(Path(get_upload_folder()).rglob("*"))
    for route in ("upload", "upload/", "process_recording", "component_server", "vibe-edit/", "call/x", "stream/x"):
        sent = httpx.post(f"{served.address}gradio_api/{route}", files={"files": ("a.txt", b"x")})
        assert sent.status_code == 405, route
    assert httpx.put(served.address).status_code == 405
    assert set(Path(get_upload_folder()).rglob("*")) == before
    port = served.page.server.config.port
    with pytest.raises(UserError, match=rf"^chat\.port={port}: in use; choose another port, or null$"):
        serve(port=port)


@pytest.mark.parametrize("chosen", ["secret words", None])
def test_a_shared_page_asks_for_its_password(chosen, monkeypatch, capsys):
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda **_: "https://some.gradio.live")
    if chosen:
        monkeypatch.setenv("TOMETUNE_CHAT_PASSWORD", chosen)
    shared = serve(share=True)
    printed = capsys.readouterr().out.splitlines()[-1]
    if chosen:
        assert printed.endswith("https://some.gradio.live user chat, the password in TOMETUNE_CHAT_PASSWORD")
    password = chosen or re.search(r"user chat, password ([\w-]{12})$", printed)[1]
    with httpx.Client(base_url=shared.address) as client:
        assert {client.get(path).status_code for path in ("config", "gradio_api/info")} == {401}
        assert client.post("login", data={"username": "chat", "password": "secret"}).status_code == 400
        assert "Tuned: tiny" not in client.get("").text
        assert client.post("login", data={"username": "chat", "password": password}).status_code == 200
        assert "Tuned: tiny" in client.get("").text
    shared.page.close(verbose=False)
