"""The page in a real browser, against a shop that answers as the server does."""

from __future__ import annotations

import base64
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

from indexing.demo import write_demo_catalog

pytest.importorskip("playwright", reason="playwright is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("starlette", reason="starlette is not installed")

from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from tests.search.server.shop import RefusedError, Shop, read_shop, serving

CHROMIUM = os.environ.get("SHOPLENS_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

ATTRIBUTES = ["color", "category"]
PRODUCTS = 60
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SERIOUS = ("serious", "critical")
expect.set_options(timeout=30_000)  # milliseconds; machines that test are busy

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return read_shop(
        write_demo_catalog(tmp_path_factory.mktemp("shop"), PRODUCTS), ATTRIBUTES, PRODUCTS
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Chromium has no sandbox for root, as whom containers run.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def shop(read: Shop) -> Shop:
    return Shop(read.products, read.attributes)


@pytest.fixture
def opened(browser: Browser, shop: Shop) -> Iterator[Open]:
    """Opens the page; at the end nothing may have failed in it."""
    contexts, wrong = [], []

    def note(message: Any) -> None:
        # The browser reports every error that the shop answers with.
        if message.type == "error" and "Failed to load resource" not in message.text:
            wrong.append(message.text)

    with serving(shop) as url:

        def open_page(path: str = "/", **settings: Any) -> Page:
            context = browser.new_context(
                base_url=url, **{"viewport": {"width": 1280, "height": 900}, **settings}
            )
            contexts.append(context)
            page = context.new_page()
            page.on("console", note)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.goto(path)
            return page

        yield open_page
        for context in contexts:
            context.close()
    assert wrong == []


@pytest.fixture
def page(opened: Open) -> Page:
    return opened()


def cards(page: Page) -> Locator:
    return page.locator(".card:not(.skeleton)")


def settled(page: Page, many: int = 24) -> None:
    expect(page.locator("#results[aria-busy]")).to_have_count(0)
    expect(cards(page)).to_have_count(many)


def search(page: Page, words: str, many: int = 24) -> None:
    page.get_by_role("searchbox").fill(words)
    page.get_by_role("searchbox").press("Enter")
    settled(page, many)


def asks(page: Page) -> dict[str, list[str]]:
    """What the page's URL says."""
    return parse_qs(urlsplit(page.url).query)


def give(page: Page, picture: Path) -> None:
    page.set_input_files("#file", picture)
    settled(page)


def first_id(page: Page) -> str | None:
    return cards(page).first.get_attribute("data-id")


def crop_of(body: dict[str, Any]) -> list[float]:
    return [float(part) for part in body["crop"].split(",")]


# Words


def test_words_find_products(page: Page, shop: Shop) -> None:
    search(page, "red -striped")
    asked = shop.asked[-1]
    assert (asked["text"], asked["minus"], asked["k"]) == ("red", ["striped"], "24")
    assert asked["facets"] == ATTRIBUTES
    assert asks(page) == {"text": ["red"], "minus": ["striped"]}
    card = cards(page).first
    best = max(
        shop.products,
        key=lambda product: (
            "red" in f"{product.title} {product.fields}".lower(),
            "striped" not in f"{product.title} {product.fields}".lower(),
        ),
    )
    expect(card.get_by_role("heading")).to_have_text(best.title)
    expect(card.locator(".price")).to_have_text(f"€{best.price:.2f}")
    expect(page.locator("#status")).to_contain_text("24 products")


def test_a_minus_is_a_chip_that_can_be_removed(page: Page, shop: Shop) -> None:
    search(page, 'red -"long sleeves" -mug')
    assert shop.asked[-1]["minus"] == ["long sleeves", "mug"]
    expect(page.get_by_role("searchbox")).to_have_value("red")
    page.get_by_role("button", name="Remove: not long sleeves").click()
    settled(page)
    assert shop.asked[-1]["minus"] == ["mug"]


def test_a_minus_alone_is_not_sent(page: Page, shop: Shop) -> None:
    page.get_by_role("searchbox").fill("-red")
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator("#toast")).to_contain_text("Say also what you look for")
    assert shop.asked == []


@pytest.mark.parametrize(
    ("words", "text", "minus"),
    [
        ("t-shirt", "t-shirt", []),
        ("-a dress -b", "dress", ["a", "b"]),
        ("dress - blue", "dress - blue", []),
        ("dress −blue", "dress", ["blue"]),
        ("", "", []),
    ],
)
def test_which_words_a_minus_takes(page: Page, words: str, text: str, minus: list[str]) -> None:
    split = page.evaluate(
        "async (words) => (await import('/web/query.js')).splitMinus(words)", words
    )
    assert split == {"text": text, "minus": minus}


def test_a_url_holds_the_whole_query(page: Page) -> None:
    query = {
        "index": "my shop", "text": "a&b=c", "minus": ["x", "y z"], "like": "é/1 ?", "photo": False,
        "crop": [0.1, 0.2, 0.5, 0.6], "where": "a < 1", "min": 0, "max": 9.5,
        "attributes": {"color": "a=b"}, "page": 3, "product": "p#1",
    }  # fmt: skip
    again = page.evaluate(
        """async (query) => {
          const { fromURL, toURL } = await import('/web/query.js');
          return fromURL(toURL(query).slice(1));
        }""",
        query,
    )
    assert again == query


@pytest.mark.parametrize("key", ["Enter", "End"])
def test_words_typed_before_the_shop_answers_are_kept(opened: Open, key: str) -> None:
    page = opened("about:blank")
    held: list[Route] = []
    page.route("**/v1/indexes", lambda route: held.append(route))
    with page.expect_request("**/v1/indexes"):
        page.goto("/")
    page.get_by_role("searchbox").fill("red")
    page.get_by_role("searchbox").press(key)
    held[0].continue_()
    if key == "Enter":
        settled(page)
        assert asks(page) == {"text": ["red"]}
    else:
        expect(page.locator("#ideas")).to_be_visible()
        expect(page.get_by_role("searchbox")).to_have_value("red")


# Pictures


def test_an_uploaded_picture_is_searched_with(page: Page, shop: Shop) -> None:
    product = shop.products[7]
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(product.picture)
    settled(page)
    assert shop.asked[-1]["image"] == product.picture.read_bytes()
    assert first_id(page) == product.id
    expect(page.get_by_role("heading", name="Your picture")).to_be_visible()
    assert asks(page) == {"photo": ["1"]}


def test_a_pasted_picture_is_searched_with(opened: Open, shop: Shop) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    file = BytesIO()
    Image.open(shop.products[5].picture).save(file, "PNG")
    page.evaluate(
        """async (data) => {
          const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
          const item = new ClipboardItem({ 'image/png': new Blob([bytes], { type: 'image/png' }) });
          await navigator.clipboard.write([item]);
        }""",
        base64.b64encode(file.getvalue()).decode(),
    )
    page.get_by_role("searchbox").focus()
    page.keyboard.press("Control+V")
    settled(page)
    sent = Image.open(BytesIO(shop.asked[-1]["image"])).convert("RGB")
    assert sent.tobytes() == Image.open(BytesIO(file.getvalue())).convert("RGB").tobytes()
    assert first_id(page) == shop.products[5].id


def test_a_dropped_picture_is_searched_with(page: Page, shop: Shop) -> None:
    data = base64.b64encode(shop.products[9].picture.read_bytes()).decode()
    dropped = page.evaluate_handle(
        """(data) => {
          const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], 'a.jpg', { type: 'image/jpeg' }));
          return transfer;
        }""",
        data,
    )
    page.dispatch_event("main", "dragenter", {"dataTransfer": dropped})
    expect(page.locator("#dropping")).to_be_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": dropped})
    settled(page)
    expect(page.locator("#dropping")).to_be_hidden()
    assert first_id(page) == shop.products[9].id


def test_what_is_no_picture_is_refused_at_once(page: Page, shop: Shop, tmp_path: Path) -> None:
    for name in ("notes.txt", "broken.jpg"):
        (tmp_path / name).write_text("no picture")
        page.set_input_files("#file", tmp_path / name)
        expect(page.locator("#toast")).to_contain_text("picture")
    assert shop.asked == []


def test_a_huge_picture_is_made_smaller_before_it_is_sent(
    page: Page, shop: Shop, tmp_path: Path
) -> None:
    huge = tmp_path / "huge.png"
    Image.effect_noise((2400, 1800), 90).save(huge)
    assert huge.stat().st_size > 3 << 20
    give(page, huge)
    assert Image.open(BytesIO(shop.asked[-1]["image"])).size == (1600, 1200)


def test_a_crop_is_dragged_with_the_mouse(page: Page, shop: Shop) -> None:
    give(page, shop.products[3].picture)
    drag(page, (0.2, 0.3), (0.8, 0.7))
    page.wait_for_url("**crop=**")
    settled(page)
    assert crop_of(shop.asked[-1]) == pytest.approx([0.2, 0.3, 0.6, 0.4], abs=0.02)
    drag(page, (0.5, 0.5), (0.4, 0.45))  # inside: it moves
    page.wait_for_url(lambda url: "crop=0.2" not in url)
    settled(page)
    assert crop_of(shop.asked[-1]) == pytest.approx([0.1, 0.25, 0.6, 0.4], abs=0.02)
    page.get_by_role("button", name="Use the whole picture").click()
    settled(page)
    assert "crop" not in asks(page)


def test_a_crop_is_set_with_the_keys(page: Page, shop: Shop) -> None:
    give(page, shop.products[3].picture)
    page.locator(".rect").focus()
    for key in ("Shift+ArrowLeft", "Shift+ArrowLeft", "Shift+ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
    page.wait_for_url("**crop=**")
    settled(page)
    assert crop_of(shop.asked[-1]) == pytest.approx([0.02, 0, 0.96, 0.98])
    expect(page.locator(".rect")).to_be_focused()
    expect(page.locator(".rect")).to_have_attribute("aria-label", "Searching with a part of the "
        "picture: 96% wide and 98% high, 2% from the left, 0% from the top")  # fmt: skip
    page.keyboard.press("Escape")
    page.wait_for_url(lambda url: "crop" not in url)


def test_a_crop_is_dragged_with_a_finger(opened: Open, shop: Shop) -> None:
    page = opened(**PHONE)
    give(page, shop.products[3].picture)
    box = page.locator(".stage").bounding_box()
    assert box is not None
    touch = page.context.new_cdp_session(page)
    path = [(0.96, 0.96), (0.8, 0.8), (0.5, 0.75)]
    for at, (x, y) in enumerate(path):
        point = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        kind = "touchMove" if at else "touchStart"
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_url("**crop=**")
    settled(page)
    assert crop_of(shop.asked[-1]) == pytest.approx([0, 0, 0.5, 0.75], abs=0.02)


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Over the picture, in fractions of it."""
    box = page.locator(".stage").bounding_box()
    assert box is not None
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=4)
    page.mouse.up()


# Filters


def test_a_facet_is_a_wish_and_shows_its_count(page: Page, shop: Shop) -> None:
    search(page, "shop")
    counts = shop.facets(["color"])["facets"]["color"]
    values = page.locator("details", has_text="Color").locator(".value")
    first = counts[0]
    expect(values.first.locator(".name")).to_have_text(first["value"])
    expect(values.first.locator(".count")).to_have_text(f"{first['count']} products")
    values.first.click()
    page.wait_for_url("**attribute=**")
    settled(page)
    assert shop.asked[-1]["attribute"] == [f"color={first['value']}"]
    expect(values.first).to_have_attribute("aria-pressed", "true")
    expect(values.first).to_be_focused()
    assert values.locator(".name").all_inner_texts() == [found["value"] for found in counts]
    values.nth(1).click()  # another one takes its place
    settled(page)
    expect(page.locator("#chips button")).to_have_count(1)
    assert shop.asked[-1]["attribute"] == [f"color={counts[1]['value']}"]
    page.locator("#chips button").click()
    settled(page)
    expect(page.locator(".value[aria-pressed=true]")).to_have_count(0)
    assert asks(page) == {"text": ["shop"]}


def test_a_likely_category_is_proposed_until_it_is_asked_for(page: Page, shop: Shop) -> None:
    value = shop.products[0].fields["category"]
    shop.proposals = [{"attribute": "category", "value": value, "confidence": 0.9}]
    search(page, "red")
    proposed = page.get_by_role("group", name="Narrow it to").get_by_role("button")
    expect(proposed).to_have_text([f"{value}?"])
    expect(proposed).to_have_accessible_name(f"Only Category: {value}")
    proposed.click()
    expect(page.locator("#chips button")).to_have_text([f"Category: {value}"])
    settled(page)
    assert shop.asked[-1]["attribute"] == [f"category={value}"]
    expect(page.locator("#proposals")).to_be_hidden()


def test_the_price_range_is_added_to_the_filter(page: Page, shop: Shop) -> None:
    inside = [product for product in shop.products if 20 <= product.price <= 60]
    page.goto("/?text=shop&where=price+%3E+1")
    settled(page)
    page.get_by_label("Lowest price").fill("20")
    page.get_by_label("Lowest price").press("Tab")
    page.wait_for_url("**min=20**")
    page.get_by_label("Highest price").fill("60")
    page.get_by_label("Highest price").press("Enter")
    page.wait_for_url("**max=60**")
    settled(page, min(24, len(inside)))
    assert shop.asked[-1]["where"] == "(price > 1) and price >= 20 and price <= 60"
    for text in page.locator(".card .price").all_inner_texts():
        assert 20 <= float(text.removeprefix("€")) <= 60
    page.get_by_role("button", name="Clear all").click()
    settled(page)
    assert asks(page) == {"text": ["shop"]}


def test_values_that_were_filled_in_are_marked(page: Page, shop: Shop) -> None:
    filled = next(product for product in shop.products if product.filled)
    page.goto(f"/?text=shop&product={filled.id}")
    row = page.locator("dl").filter(has_text="Color")
    expect(row).to_contain_text(f"≈ {filled.fields['color']}")
    expect(row).to_contain_text("filled in, 93% sure")
    page.get_by_role("button", name="Close the product").click()
    marked = page.locator(f'.card[data-id="{filled.id}"] .filled')
    search(page, filled.title)
    expect(marked).to_contain_text(f"≈ {filled.fields['color']}")
    expect(page.locator(".legend")).to_contain_text("filled in by shoplens")


# Further pages, and the way back


def test_further_pages(page: Page, shop: Shop) -> None:
    search(page, "shop")
    page.get_by_role("button", name="Show more").click()
    expect(cards(page)).to_have_count(48)
    assert (shop.asked[-1]["k"], shop.asked[-1]["offset"]) == ("24", "24")
    expect(cards(page).nth(24).locator(".open")).to_be_focused()
    assert asks(page)["page"] == ["2"]
    page.get_by_role("button", name="Show more").click()
    expect(cards(page)).to_have_count(PRODUCTS)
    expect(page.get_by_role("button", name="Show more")).to_have_count(0)
    ids = {card.get_attribute("data-id") for card in cards(page).all()}
    assert ids == {product.id for product in shop.products}


def test_a_shared_link_shows_as_many_pages(page: Page, shop: Shop) -> None:
    page.goto("/?text=red&page=2&attribute=color%3DRed&min=5")
    settled(page, min(48, sum(product.price >= 5 for product in shop.products)))
    asked = shop.asked[-1]
    assert (asked["k"], asked["text"], asked["where"]) == ("48", "red", "price >= 5")


def test_back_shows_what_was_there_without_asking_again(page: Page, shop: Shop) -> None:
    search(page, "red")
    red = first_id(page)
    page.get_by_role("searchbox").fill("")
    give(page, shop.products[11].picture)
    drag(page, (0.2, 0.2), (0.8, 0.8))
    page.wait_for_url("**crop=**")
    settled(page)
    cards(page).nth(3).hover()
    cards(page).nth(3).get_by_role("button", name="More like").click()
    page.wait_for_url("**like=**")
    settled(page)
    asked = len(shop.asked)
    page.go_back()
    expect(page.locator(".stage.cropped")).to_be_visible()
    page.go_back()
    expect(page.locator(".stage.cropped")).to_have_count(0)
    expect(page.get_by_role("heading", name="Your picture")).to_be_visible()
    assert first_id(page) == shop.products[11].id
    page.go_back()
    expect(page.locator("#picture")).to_be_hidden()
    expect(page.get_by_role("searchbox")).to_have_value("red")
    assert first_id(page) == red
    page.go_back()
    expect(page.get_by_role("heading", name="Find it by picture")).to_be_visible()
    assert len(shop.asked) == asked


def test_a_picture_outlives_a_reload(page: Page, shop: Shop) -> None:
    give(page, shop.products[11].picture)
    page.reload()
    settled(page)
    assert first_id(page) == shop.products[11].id
    assert shop.asked[-1]["image"].startswith(b"\xff\xd8")  # the small copy, a JPEG


def test_a_link_to_a_picture_says_that_it_lacks_it(page: Page, shop: Shop) -> None:
    page.goto("/?photo=1")
    expect(page.get_by_role("heading", name="The picture is not in the link")).to_be_visible()
    assert shop.asked == []


# A product


def test_a_product_opens_and_back_closes_it(page: Page, shop: Shop) -> None:
    search(page, "red")
    second = cards(page).nth(1)
    second.locator(".open").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text(second.locator("h3").inner_text())
    for _ in range(12):  # the focus stays inside, or with the browser
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body"
            " || document.querySelector('#product').contains(document.activeElement)"
        )
    page.go_back()
    expect(dialog).to_be_hidden()
    page.go_forward()
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(second.locator(".open")).to_be_focused()
    # The browser goes back when it gets to it, after the dialog has closed.
    page.wait_for_url(lambda url: "product" not in parse_qs(urlsplit(url).query))
    told = {"request_id": "request-1", "product_id": second.get_attribute("data-id"), "rank": 2,
            "action": "click"}  # fmt: skip
    assert shop.told == [told]


def test_like_this_but(page: Page, shop: Shop) -> None:
    search(page, "red")
    wanted = first_id(page)
    cards(page).first.locator(".open").click()
    page.get_by_label("Like this, but …").fill("blue -striped")
    page.get_by_role("dialog").get_by_role("button", name="Search").click()
    page.wait_for_url("**like=**")
    settled(page)
    asked = shop.asked[-1]
    assert (asked["like"], asked["text"], asked["minus"]) == (wanted, "blue", ["striped"])
    expect(page.locator("#picture img")).to_be_visible()
    assert wanted not in [card.get_attribute("data-id") for card in cards(page).all()]


def test_why_it_matched(page: Page, shop: Shop) -> None:
    search(page, "red round mug")
    cards(page).first.locator(".open").click()
    page.get_by_role("button", name="Why this match?").click()
    heat = page.get_by_role("img", name="Heatmap")
    expect(heat).to_be_visible()
    picture = page.locator(".frame img:not(.heat)")
    assert heat.bounding_box() == pytest.approx(picture.bounding_box(), abs=1)
    assert page.locator(".word:not(.dropped)").all_inner_texts() == ["red", "round"]
    expect(page.locator("s.word.dropped")).to_contain_text("mug")
    assert shop.explained[-1]["text"] == "red round mug"
    assert shop.explained[-1]["product_id"] == shop.told[-1]["product_id"]
    page.get_by_role("button", name="Why this match?").click()
    expect(heat).to_have_count(0)


def test_a_product_that_does_not_fit_is_told(page: Page, shop: Shop) -> None:
    search(page, "red")
    cards(page).first.locator(".open").click()
    page.get_by_role("button", name="This does not fit").click()
    expect(page.get_by_role("dialog")).to_contain_text("It was noted")
    assert [event["action"] for event in shop.told] == ["click", "bad"]


# States


def test_places_are_held_while_products_load(page: Page, shop: Shop) -> None:
    shop.gate = threading.Event()
    page.goto("/?text=red")
    expect(page.locator(".skeleton")).to_have_count(12)
    expect(page.locator("#results")).to_have_attribute("aria-busy", "true")
    shop.gate.set()
    settled(page)
    expect(page.locator(".skeleton")).to_have_count(0)


def test_pictures_load_late_and_move_nothing(page: Page) -> None:
    search(page, "shop")
    for image in page.locator(".card img").all():
        assert image.get_attribute("loading") == "lazy"
        assert image.get_attribute("width") == image.get_attribute("height") == "320"
    page.mouse.wheel(0, 2000)
    for image in page.locator(".card img").all()[:8]:
        expect(image).to_have_js_property("complete", True)
    heights = {round(tile.bounding_box()["height"]) for tile in page.locator(".tile").all()}
    assert len(heights) == 1


def test_an_overloaded_server(page: Page, shop: Shop) -> None:
    shop.refusal = RefusedError(503, "overloaded", "busy", {"Retry-After": "4"})
    page.goto("/?text=red")
    alert = page.get_by_role("alert").filter(has_text="Many people")
    expect(alert).to_contain_text("try again in 4 seconds")
    expect(alert).to_contain_text("refused-1")
    shop.refusal = None
    alert.get_by_role("button", name="Try again").click()
    settled(page)


def test_a_bad_filter_can_be_removed(page: Page) -> None:
    page.goto("/?text=red&where=colour+%3D%3D+1")
    expect(page.locator(".panel.error")).to_contain_text("unknown field 'colour'")
    page.get_by_role("button", name="Remove the filter").click()
    settled(page)
    assert asks(page) == {"text": ["red"]}


def test_no_network(page: Page) -> None:
    search(page, "red")
    page.route("**/search", lambda route: route.abort())
    page.get_by_role("searchbox").fill("blue")
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator(".panel.error")).to_contain_text("The server cannot be reached")


def test_no_good_match(page: Page, shop: Shop) -> None:
    shop.good_match = False
    search(page, "submarine")
    expect(page.get_by_role("heading", name="No good match")).to_be_visible()
    expect(page.locator(".panel.weak")).to_contain_text("92%")
    expect(page.locator("#status")).to_contain_text("No good match")


def test_nothing_fits_the_filters(page: Page) -> None:
    page.goto("/?text=red&min=100000")
    expect(page.get_by_role("heading", name="Nothing fits these filters")).to_be_visible()
    page.get_by_role("button", name="Clear the filters").click()
    settled(page)


def test_titles_are_text_and_never_markup(opened: Open, shop: Shop) -> None:
    from dataclasses import replace

    evil = "<img src=x onerror=alert(1)><b>bold</b>"
    shop.products = [
        replace(shop.products[0], title=evil, fields={**shop.products[0].fields, "color": evil})
    ]
    page = opened(f"/?text={evil}")
    expect(cards(page).first.get_by_role("heading")).to_have_text(evil)
    expect(page.locator("#found b")).to_have_count(0)


# Several indexes, the token, small and dark screens


def test_several_indexes(opened: Open, shop: Shop) -> None:
    shop.names = ("shoes", "mugs & more")
    page = opened("/?text=red")
    settled(page)
    assert shop.asked[-1]["index"] == "shoes"
    page.get_by_role("combobox", name="Catalog").select_option("mugs & more")
    page.wait_for_url("**index=**")
    settled(page)
    assert shop.asked[-1]["index"] == "mugs & more"
    assert asks(page)["index"] == ["mugs & more"]


def test_the_token_is_asked_for_once(opened: Open, shop: Shop) -> None:
    shop.token = "a-token-of-the-shop"
    page = opened("/?text=red")
    dialog = page.get_by_role("dialog", name="This catalog is private")
    dialog.get_by_label("Token").fill("wrong")
    dialog.get_by_role("button").click()
    expect(dialog).to_contain_text("This is not the token")
    for _ in range(3):
        page.keyboard.press("Escape")
        expect(dialog).to_be_visible()
    dialog.get_by_label("Token").fill(shop.token)
    dialog.get_by_role("button").click()
    settled(page)
    page.reload()
    settled(page)


def test_on_a_phone(opened: Open, shop: Shop) -> None:
    page = opened(**PHONE)
    camera = page.locator("#photo")
    assert camera.get_attribute("capture") == "environment"
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").last.tap()
    chooser.value.set_files(shop.products[0].picture)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    tops = [cards(page).nth(at).bounding_box() for at in range(3)]
    assert tops[0]["y"] == tops[1]["y"] < tops[2]["y"]  # two columns
    page.get_by_role("button", name="Filters").tap()
    sheet = page.get_by_role("dialog", name="Filters")
    sheet.locator(".value").first.tap()
    page.wait_for_url("**attribute=**")
    sheet.get_by_role("button", name="Show").tap()
    expect(sheet).to_be_hidden()
    expect(page.get_by_role("button", name="Filters (1)")).to_be_visible()


def test_it_follows_the_dark_mode(opened: Open) -> None:
    luminance = """() => getComputedStyle(document.body).backgroundColor
      .match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)"""
    assert opened(color_scheme="light").evaluate(luminance) == 765
    assert opened(color_scheme="dark").evaluate(luminance) < 100


def test_the_keys_reach_everything(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    page.locator("body").press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    search(page, "red")
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.className"))
    assert {"value", "pill over", "open", "quiet"} <= reached


@pytest.mark.parametrize(
    "settings", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"]
)
def test_axe_finds_no_serious_fault(opened: Open, shop: Shop, settings: dict[str, Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    faults = []

    def check(state: str) -> None:
        page.wait_for_load_state("networkidle")
        found = axe.run(page).response["violations"]
        faults.extend(
            (state, fault["id"], [node["html"][:120] for node in fault["nodes"]][:3])
            for fault in found
            if fault["impact"] in SERIOUS
        )

    page = opened(**settings)
    page.locator("#ideas").wait_for()
    check("start")
    give(page, shop.products[2].picture)
    check("picture")
    like = f"like={shop.products[2].id}&crop=0,0,0.5,0.5"
    page.goto(f"/?text=red&minus=mug&{like}&min=1&where=price+%3E+0&attribute=color%3Dred")
    settled(page)
    check("results")
    if settings is PHONE:
        page.get_by_role("button", name="Filters").click()
        check("filters")
        page.keyboard.press("Escape")
    cards(page).first.locator(".open").click()
    page.get_by_role("button", name="Why this match?").click()
    page.locator(".heat").wait_for()
    check("product")
    page.keyboard.press("Escape")
    shop.good_match = False
    search(page, "submarine")
    check("no good match")
    shop.refusal = RefusedError(503, "overloaded", "busy", {"Retry-After": "4"})
    page.goto("/?text=red")
    page.locator(".panel.error").wait_for()
    check("error")
    shop.token = "a-token-of-the-shop"
    page.goto("/")
    page.locator("#login[open]").wait_for()
    check("token")
    assert faults == []
