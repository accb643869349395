"""The page in a real browser: connect, choose, draw, make, look, download; and on a phone."""

from __future__ import annotations

import io
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from actors import web
from actors.door import Door
from cdiff.data.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
TOKEN = "a-token-of-some-length"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def url(backend) -> Iterator[str]:
    door = Door(token=TOKEN)
    app = web.build_app(lambda: backend, lambda: door)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    values = np.random.default_rng(1).integers(90, 150, (80, 96, 3)).astype(np.uint8)
    Image.fromarray(values).save(path)
    return path


def _connected(browser: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    page, trouble = browser.new_page(**options), []
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((url, "data:", "blob:")) else trouble.append(request.url)
        ),
    )
    page.goto(url)
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.get_by_role("button", name="Connect").click()
    page.get_by_text("Connected.").wait_for()
    return page, trouble


def _drag(page: Any, canvas: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for number, (x, y) in enumerate((start, end)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def _made(page: Any) -> tuple[np.ndarray, ...]:
    """Make one pair: rows and columns of its mask."""
    page.get_by_role("spinbutton", name="Pairs").fill("1")
    page.get_by_role("button", name="Make pairs").click()
    page.get_by_text("1 pairs in").wait_for()
    with page.expect_download() as mask:
        page.locator("#results figure a").last.click()
    return np.nonzero(np.asarray(Image.open(mask.value.path())) > 127)


def test_pairs_of_a_type_are_made_compared_and_downloaded(browser, url, tmp_path) -> None:
    page, trouble = _connected(browser, url)
    page.get_by_role("spinbutton", name="Pairs").fill("3")
    page.get_by_role("button", name="Make pairs").click()
    page.get_by_text("3 pairs in").wait_for()
    assert page.locator("#results figure").count() == 3
    with page.expect_download() as one:
        page.locator("#results figure a").first.click()
    assert Image.open(one.value.path()).size == (96, 80)
    with page.expect_download() as all_pairs:
        page.get_by_role("button", name="Download all").click()
    names = zipfile.ZipFile(io.BytesIO(Path(all_pairs.value.path()).read_bytes())).namelist()
    assert len(names) == 7 and "provenance.json" in names
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    assert trouble == []


def test_a_shape_that_is_drawn_is_where_the_target_is(browser, url, photo) -> None:
    page, trouble = _connected(browser, url)
    page.get_by_label("in a shape that I draw").check()
    page.get_by_role("button", name="Make pairs").click()
    page.get_by_text("Choose a photo to paint on first.").wait_for()
    page.locator("#background").set_input_files(str(photo))
    canvas = page.locator("#background-canvas")
    canvas.wait_for()
    page.get_by_label("Brush").last.fill("50")
    _drag(page, canvas, (0.4, 0.5), (0.6, 0.5))
    rows, columns = _made(page)
    assert abs(columns.mean() - 48) < 5 and abs(rows.mean() - 40) < 5
    assert trouble == []


def test_a_shape_can_be_a_file_for_who_has_no_pointer(browser, url, photo, tmp_path) -> None:
    shapes = {"small": np.zeros((8, 8), np.uint8), "shape": np.zeros((80, 96), np.uint8)}
    shapes["shape"][30:50, 10:40] = 255
    for name, values in shapes.items():
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    page, trouble = _connected(browser, url)
    page.get_by_label("in a shape that I draw").check()
    page.locator("#background-mask").set_input_files(str(tmp_path / "shape.png"))
    page.get_by_text("Choose the photo first").wait_for()
    page.locator("#background").set_input_files(str(photo))
    page.locator("#background-canvas").wait_for()
    page.locator("#background-mask").set_input_files(str(tmp_path / "small.png"))
    page.get_by_text("The mask is 8 x 8, the photo 96 x 80").wait_for()
    page.locator("#background-mask").evaluate("(input) => input.click()")
    assert page.locator("#background-mask").input_value() == "", "the same file can be chosen again"
    page.locator("#background-mask").set_input_files(str(tmp_path / "shape.png"))
    rows, columns = _made(page)
    assert abs(columns.mean() - 24.5) < 3 and abs(rows.mean() - 39.5) < 3
    assert trouble == []


def test_the_outline_can_be_taken_off_all_figures_that_are_shown(browser, url) -> None:
    page, trouble = _connected(browser, url)
    page.locator("#kept figure").nth(2).wait_for()
    pixels = "[...document.querySelectorAll('#kept figure canvas')].map((canvas) => canvas.toDataURL())"
    outlined = page.evaluate(pixels)
    page.get_by_label("Outline of the mask").uncheck()
    bare = page.evaluate(pixels)
    assert all(one != other for one, other in zip(outlined, bare, strict=True))
    page.get_by_label("Outline of the mask").check()
    assert page.evaluate(pixels) == outlined and trouble == []


def test_a_crack_of_one_pixel_has_its_outline_on_a_photo_of_twelve_megapixels(browser, url) -> None:
    page, trouble = _connected(browser, url)
    shown = page.evaluate("""async () => {
      const picture = (line) => {
        const canvas = new OffscreenCanvas(4000, 3000), pen = canvas.getContext("2d");
        pen.fillRect(0, 0, 4000, 3000);
        if (line) { pen.fillStyle = "#fff"; pen.fillRect(700, 1501, 2000, 1); }
        return canvas.transferToImageBitmap();
      };
      const canvas = outlined(picture(false), picture(true), "a crack");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const columns = new Set();
      for (let i = 0; i < data.length; i += 4) if (data[i] > 200) columns.add((i / 4) % canvas.width);
      return [canvas.width, Math.min(...columns), Math.max(...columns), columns.size];
    }""")
    assert shown[0] == 1024 and abs(shown[1] - 179) <= 2 and abs(shown[2] - 690) <= 2 and shown[3] > 500
    assert trouble == []


def test_a_region_can_be_dragged_or_typed_and_the_token_is_not_kept(browser, url, photo) -> None:
    page, trouble = _connected(browser, url, viewport={"width": 360, "height": 740})
    page.get_by_label("in a region").check()
    page.locator("#background").set_input_files(str(photo))
    canvas = page.locator("#background-canvas")
    canvas.wait_for()
    _drag(page, canvas, (0.25, 0.25), (0.5, 0.5))
    assert abs(int(page.locator("#left").input_value()) - 24) <= 2
    page.locator("#right").fill("60")
    page.get_by_role("spinbutton", name="Pairs").fill("1")
    page.get_by_role("button", name="Make pairs").press("Enter")
    page.get_by_text("1 pairs in").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "no sideways scrolling"
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert TOKEN not in kept and page.get_by_label("Token", exact=True).input_value() == ""
    assert trouble == []


def test_a_pair_of_the_run_is_rejected(browser, url, judged_run, tmp_path) -> None:
    page, trouble = _connected(browser, url)
    kept = page.locator("#kept figure")
    kept.first.wait_for()
    assert kept.count() == 3
    kept.nth(1).get_by_role("button", name="Reject").click()
    page.get_by_text("Give the reviewer's name first.").wait_for()
    page.get_by_label("Reviewer").fill("Grace")
    kept.nth(1).get_by_role("button", name="Reject").click()
    kept.nth(1).get_by_text("rejected").wait_for()
    told = [path.read_text() for path in (judged_run.path / "verdicts").iterdir()]
    assert any('"accepted": false' in text and "Grace" in text for text in told)
    page.screenshot(path=str(tmp_path / "kept.png"), full_page=True)
    assert trouble == []


def test_a_pair_made_by_hand_is_given_to_the_next_round(browser, url, judged_run, tmp_path) -> None:
    page, trouble = _connected(browser, url)
    page.get_by_role("spinbutton", name="Pairs").fill("2")
    page.get_by_role("button", name="Make pairs").click()
    made = page.locator("#results figure")
    made.nth(1).wait_for()
    made.nth(1).get_by_role("button", name="Train on it").click()
    page.get_by_text("Give the reviewer's name first.").wait_for()
    page.get_by_label("Reviewer").fill("Grace")
    made.nth(1).get_by_role("button", name="Train on it").click()
    made.nth(1).get_by_role("button", name="Accepted").wait_for()
    kept = page.locator("#kept figure")
    kept.nth(3).wait_for()
    kept.first.get_by_text("made by hand").wait_for()
    assert [pair.attempt.assignment.purpose for _, pair in Ledger(judged_run).human_pairs(True)] == ["human"]
    page.screenshot(path=str(tmp_path / "made.png"), full_page=True)
    assert trouble == []


def test_a_wrong_token_is_told(browser, url) -> None:
    page = browser.new_page()
    page.goto(url)
    page.get_by_label("Token", exact=True).fill("wrong")
    page.get_by_role("button", name="Connect").click()
    page.get_by_text("give the token").wait_for()
    assert page.locator("#studio").is_hidden()


def test_the_api_describes_itself(browser, url) -> None:
    page = browser.new_page()
    page.goto(f"{url}/docs")
    page.get_by_text("/v1/pairs").first.wait_for()
