"""The page in a real browser: typing, streaming, stopping, two models, what is kept, and that nothing on it runs."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Seen, needs_browser, opened
from tests.chatting.conftest import Engines
from tests.chatting.fake import Words
from tometune.chatting.engine import Settings
from tometune.chatting.transformers_engine import TransformersEngine, Weights
from tometune.common.errors import UserError
from tometune.config.chat import ChatConfig

pytest.importorskip("gradio")
pytestmark = needs_browser

LONG = " ".join(f"word{number}" for number in range(2000))
Served = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def quick() -> None:
    from tometune.chatting.gradio_import import import_gradio

    import_gradio()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    """Return a function that serves a page over engines (or over what loading them raises) and gives its address."""
    from tometune.chatting import loading as module
    from tometune.chatting.handlers import Chat
    from tometune.chatting.page import build
    from tometune.chatting.serving import serve
    from tometune.chatting.turns import Turns

    running = []

    def start(*engines: Words, load: Callable[..., Any] | None = None, share: bool = False, **settings: Any) -> str:
        monkeypatch.setattr(module, "load_engines", load or (lambda *_: list(engines)))
        names = ["base", "tuned"][: len(engines)] if len(engines) > 1 else ["tuned"]
        loading = module.Loading([], tmp_path, 1000)
        chat = Chat(names, loading, Turns(), ChatConfig(inbrowser=False, **settings), 0)
        page = build(chat)
        running.append((page, chat))
        address = serve(page, chat.defaults, share)
        loading.start(then=chat.turns.start)
        return address

    yield start
    for page, chat in running:
        chat.turns.close()
        page.close(verbose=False)


@contextmanager
def tab(address: str, **window: Any) -> Iterator[Seen]:
    """Open the page and wait until one can type; at the end, nothing went wrong and no other host was asked."""
    with opened(address, **window) as seen:
        seen.page.wait_for_selector("#box textarea:enabled")
        yield seen
        if not seen.page.is_closed():
            assert seen.errors == []
        assert not [url for url in seen.requests if not url.startswith((address, "data:", "blob:"))]


def ask(page: Any, text: str) -> None:
    page.fill("#box textarea", text)
    page.press("#box textarea", "Enter")


def answers(page: Any) -> list[str]:
    """The model's messages, all chats after each other."""
    return [each.inner_text().strip() for each in page.query_selector_all(".tm-chat .bot.message")]


def until(true: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def said(page: Any, text: str, nth: int = 0) -> None:
    page.locator(".tm-said").nth(nth).get_by_text(text).wait_for(timeout=20_000)


def test_it_streams_stops_and_goes_on(served: Served) -> None:
    engine = Words("echo ", pause=0.02)
    with tab(served(engine)) as seen:
        page = seen.page
        ask(page, LONG)
        until(lambda: "word5" in "".join(answers(page)))
        first = answers(page)[0]
        until(lambda: len(answers(page)[0]) > len(first))
        page.click("#box .stop-button")
        said(page, "stopped")
        made = engine.made
        time.sleep(0.4)
        assert engine.made == made < 1000
        assert re.search(r"\d+ tokens · [\d.]+ tokens/s · first after [\d.]+ s · stopped", page.inner_text(".tm-said"))
        engine.pause = 0
        ask(page, "short")
        until(lambda: answers(page)[-1:] == ["echo short"])
        page.locator(".tm-chat button[aria-label='Retry']").last.click()
        until(lambda: engine.made > made + 2)
        page.locator(".tm-chat button[aria-label='Edit']").last.click()
        page.locator(".tm-chat textarea").fill("other <i>words</i>")
        page.locator(".tm-chat button[aria-label='Submit']").click()
        until(lambda: [text.replace("\u2060", "") for text in answers(page)[-1:]] == ["echo other <i>words</i>"])
        assert len(answers(page)) == 2


def test_two_models_answer_the_same_question_side_by_side(served: Served) -> None:
    with tab(served(Words("before: ", pause=0.01), Words("after: ", pause=0.01))) as seen:
        page = seen.page
        ask(page, "one two three four five six seven")
        said(page, "9 tokens", nth=0)
        said(page, "9 tokens", nth=1)
        assert answers(page) == [f"{name}: one two three four five six seven" for name in ("before", "after")]
        boxes = [each.bounding_box() for each in page.query_selector_all(".tm-chat")]
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
        page.set_viewport_size({"width": 400, "height": 800})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


ATTACKS = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 2'><svg onload='window.ran = 3'>",
    "<iframe srcdoc='<script>parent.ran = 4</script>'></iframe>",
    "[click](javascript:window.ran=5) <a href='javascript:window.ran=6'>here</a>",
    "![picture](http://example.org/secret.png) ![another][ref]\n\n[ref]: http://example.org/ref.png",
    "`<script>window.ran = 7</script>`\n\n```html\n<script>window.ran = 8</script>\n```",
    "```\n``` <img src=x onerror='window.ran = 9'>\n<img src=x onerror='window.ran = 10'>",
    "<style>body { display: none }</style><form action='http://example.org'><button>send</button></form>",
    "bell \x07, escape \x1b[31mred, null \x00, turned \u202etxet",
    "```mermaid\ngraph TD\n  A[<img src=x onerror='window.ran = 11'>] --> B\n  click A 'javascript:window.ran=12'\n```",
    "text\n\n- ```mermaid  \n  <img src=http://example.org/drawn.png>\n  ```\n\n~~~mermaid\ngraph TD; A-->B\n~~~",
    "$$\n```\n<img src=x onerror='window.ran = 13'><b>bold</b>\n```\n$$",
    "$$\\href{javascript:window.ran=14}{x} \\includegraphics{http://example.org/tex.png}$$ \\(x^2\\)",
]


def test_nothing_in_a_text_runs_or_asks_another_host(served: Served) -> None:
    with tab(served(Words())) as seen:
        page = seen.page
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
        for number, attack in enumerate(ATTACKS):
            ask(page, attack)
            until(lambda number=number: len(answers(page)) == number + 1 and answers(page)[-1] not in ("", "…"))
        shown = [text.replace("\u2060", "") for text in answers(page)]
        assert shown[0] == ATTACKS[0]
        assert "onerror='window.ran = 2'" in shown[1]
        assert "http://example.org/secret.png" in page.content()
        assert shown[5].count("<script>") == 2
        assert "␇" in shown[8]
        assert "␛[31mred" in shown[8]
        for link in page.query_selector_all(".tm-chat a"):
            assert not (link.get_attribute("href") or "").startswith("javascript:")
        inside = ".tm-chat .message"
        assert page.query_selector_all(f"{inside} script, {inside} iframe, {inside} form, {inside} style") == []
        assert page.query_selector_all(f"{inside} img") == []
        page.wait_for_timeout(500)  # a drawing would come later than its text
        for drawing in (".mermaid", "svg[id^=mermaid]", ".katex", ".latex-block"):
            assert page.query_selector_all(f"{inside} {drawing}") == []
        assert [text for text in shown if "graph TD" in text and "-->" in text] == [shown[9], shown[10]]
        assert page.evaluate("window.ran") is None
        assert page.is_visible("#box textarea")
        assert dialogs == []


def test_a_closed_tab_ends_its_answer(served: Served) -> None:
    engine = Words(pause=0.02)
    with tab(served(engine)) as seen:
        ask(seen.page, LONG)
        until(lambda: engine.made > 5)
        seen.page.close()
        made = until(lambda: (before := engine.made) and (time.sleep(0.5) or before == engine.made) and before)
        assert made < 500


def test_conversations_are_kept_by_the_browser_and_saved_as_training_data(served: Served) -> None:
    address = served(Words("echo "))
    with tab(address) as seen:
        page = seen.page
        page.get_by_label("System prompt").fill("be kind")
        ask(page, "the first question")
        until(lambda: answers(page) == ["echo the first question"])
        page.get_by_text("New conversation", exact=True).click()
        until(lambda: answers(page) == [])
        ask(page, "the second question")
        until(lambda: answers(page) == ["echo the second question"])
        until(lambda: page.evaluate("localStorage.length") == 2)
        (name, *_) = page.evaluate("Object.keys(localStorage)")
        for number, bad in enumerate(["{", "null", '{"time": "x"}', '{"time": 1e999, "text": {"turns": 5}}']):
            page.evaluate(
                "([name, bad]) => localStorage.setItem(name, bad)", [f"{name.rpartition('/')[0]}/{number}", bad]
            )
        page.reload()
        page.wait_for_selector("#box textarea:enabled")
        page.get_by_label("the first question").click()
        until(lambda: answers(page) == ["echo the first question"])
        assert page.get_by_label("System prompt").input_value() == "be kind"
        with page.expect_download() as download:
            page.get_by_text("Save as JSON").click()
        (row,) = json.loads(download.value.path().read_text())
        assert row["conversations"] == [
            {"from": "system", "value": "be kind"},
            {"from": "human", "value": "the first question"},
            {"from": "gpt", "value": "echo the first question"},
        ]
        page.get_by_text("Delete", exact=True).click()
        until(lambda: page.evaluate("localStorage.length") == 5)
        until(lambda: answers(page) == [])
        ask(page, "the third question")
        until(lambda: page.evaluate("localStorage.length") == 6)


def test_two_tabs_wait_for_each_other_and_get_their_own_answers(served: Served) -> None:
    with tab(served(Words("echo ", pause=0.05))) as seen:
        other = seen.page.context.browser.new_page()
        other.goto(seen.page.url)
        other.wait_for_selector("#box textarea:enabled")
        ask(seen.page, " ".join(["mine"] * 40))
        until(lambda: answers(seen.page)[:1] not in ([], ["…"]))
        ask(other, "yours")
        said(other, "waiting: 1 question of others")
        until(lambda: answers(other) == ["echo yours"])
        assert answers(seen.page) == ["echo" + " mine" * 40]


@pytest.fixture
def real(engine: Engines, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> tuple[TransformersEngine, list[int]]:
    """The engine over transformers, which does not end by itself and takes its time; and the tokens it has read."""
    weights.stops = frozenset()
    read: list[int] = []
    plain = TransformersEngine._read

    def slowly(self: TransformersEngine, ids: list[int], cache: Any) -> Any:
        time.sleep(0.02)
        read.append(len(ids))
        return plain(self, ids, cache)

    monkeypatch.setattr(TransformersEngine, "_read", slowly)
    return engine("one"), read


def test_a_closed_tab_ends_the_answer_of_a_real_engine(
    served: Served, real: tuple[TransformersEngine, list[int]]
) -> None:
    engine, read = real
    with tab(served(engine, max_new_tokens=900)) as seen:
        ask(seen.page, "What is it?")
        until(lambda: len(read) > 10)
        seen.page.close()
        made = until(lambda: (before := len(read)) and (time.sleep(0.5) or before == len(read)) and before)
        assert made < 800


def test_two_users_of_a_real_engine_wait_and_get_their_own_answers(
    served: Served, real: tuple[TransformersEngine, list[int]]
) -> None:
    engine, _ = real
    questions = ["Who are you?", "What is the fox?"]
    settings = Settings(temperature=0, max_new_tokens=60)
    alone = [
        "".join(
            piece.text for piece in engine.stream([{"role": "user", "content": text}], settings, lambda: False)
        ).strip()
        for text in questions
    ]
    assert alone[0] != alone[1]
    with tab(served(engine, max_new_tokens=60, temperature=0)) as seen:
        other = seen.page.context.browser.new_page()  # a browser of its own: another storage
        other.goto(seen.page.url)
        other.wait_for_selector("#box textarea:enabled")
        ask(seen.page, questions[0])
        until(lambda: answers(seen.page)[:1] not in ([], ["…"]))
        ask(other, questions[1])
        said(other, "waiting: 1 question of others")
        for page, expected in zip((seen.page, other), alone, strict=True):
            until(lambda page=page: page.evaluate("localStorage.length") == 1)
            kept = json.loads(json.loads(page.evaluate("Object.values(localStorage)[0]"))["text"])
            assert [answer["text"] for turn in kept["turns"] for answer in turn["answers"]] == [expected]


def test_a_megabyte_is_answered_and_it_is_said_what_is_left_out(served: Served) -> None:
    with tab(served(Words(context=500))) as seen:
        ask(seen.page, "x " * 500_000)
        said(seen.page, "the middle of the prompt left out")


def test_how_far_loading_is_and_why_it_failed(served: Served) -> None:
    steps = []

    def load(_sides: Any, _cache: Any, _context: Any, tell: Callable[[str], None]) -> list[Words]:
        tell("loading the weights of <b>it</b>")
        until(lambda: steps)
        raise UserError("model.id=<i>x</i>: is gated")

    with tab(served(load=load)) as seen:
        seen.page.get_by_text("Loading: loading the weights of <b>it</b>").wait_for()
        steps.append(1)
        seen.page.get_by_role("alert").get_by_text("model.id=<i>x</i>: is gated").wait_for()


def test_a_shared_page_asks_for_its_password(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import httpx
    from gradio import networking

    monkeypatch.setattr(networking, "setup_tunnel", lambda **_: "https://some.gradio.live")
    monkeypatch.setenv("TOMETUNE_CHAT_PASSWORD", "secret words")
    address = served(Words("echo "), share=True)
    said = capsys.readouterr().out
    assert "https://some.gradio.live user chat, the password of TOMETUNE_CHAT_PASSWORD" in said
    assert "secret words" not in said
    for path in ("config", "gradio_api/info"):
        assert httpx.get(f"{address}{path}").status_code == 401
    assert "tuned" not in httpx.get(address).text
    wrong = {"username": "chat", "password": "secret"}
    assert httpx.post(f"{address}login", data=wrong).status_code == 400
    with opened(address) as seen:
        seen.page.get_by_label("username").fill("chat")
        seen.page.get_by_label("password").fill("secret words")
        seen.page.get_by_role("button", name="Login").click()
        seen.page.wait_for_selector("#box textarea:enabled")
        ask(seen.page, "hello")
        until(lambda: answers(seen.page) == ["echo hello"])
    monkeypatch.delenv("TOMETUNE_CHAT_PASSWORD")
    served(Words(), share=True)
    assert re.search(r"user chat, password [\w-]{12}$", capsys.readouterr().out.strip())


def test_no_file_is_served_and_no_other_name_is_answered(served: Served) -> None:
    import httpx

    address = served(Words())
    for path in ("/etc/passwd", "README.md", "pyproject.toml", str(Path(__file__))):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404)
    assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 421
    assert "default-src 'self'" in httpx.get(address).headers["content-security-policy"]


def test_nothing_can_be_written_to_the_server(served: Served) -> None:
    import httpx
    from gradio.utils import get_upload_folder

    def files() -> set[Path]:
        return set(Path(get_upload_folder()).rglob("*"))

    address, before = served(Words()), files()
    for content in (b"", b"x", b"x" * 100):
        for route in ("upload", "upload/", "process_recording", "component_server"):
            sent = httpx.post(f"{address}gradio_api/{route}", files={"files": ("a.txt", content)})
            assert sent.status_code == 405, route
    for method in ("PUT", "DELETE", "PATCH"):
        assert httpx.request(method, address).status_code == 405
    for route in ("vibe-edit/", "vibe-code", "undo-vibe-edit", "profiling/clear", "call/x", "api/x", "stream/x"):
        assert httpx.post(f"{address}gradio_api/{route}", json={}).status_code == 405, route
    assert files() == before
