// A product, looked at closely: its pictures, what is known of it, and why it matched.

import * as api from "./api.js";
import { announce, el, icon } from "./dom.js";
import { productPicture } from "./results.js";
import { filled, percent, price, score, title } from "./values.js";

const BESIDE = new Set(["title", "price", "currency", "description"]); // shown on their own
const LINKS = ["link", "url", "product_url"];

/**
 * Fills the dialog. `hit` is its place in the answer or null, `known` what the server says of it.
 * `act` has like(words), bad() and why(): the explanation, or null where nothing was asked.
 */
export function drawProduct(dialog, { hit, known, act }) {
  const { fields } = known;
  const name = String(fields.title || known.product_id);
  const pictures = known.images.filter(({ thumbnail }) => thumbnail);
  const main = productPicture(pictures[0] && api.sized(pictures[0].thumbnail, 640), 640, name);
  const frame = el("div", { class: "frame" }, main);
  const words = el("div", { class: "words" });
  const link = LINKS.map((field) => fields[field]).find((url) => /^https?:\/\//.test(url ?? ""));

  dialog.replaceChildren(
    el("div", { class: "dialog-head" },
      el("h2", { id: "product-title" }, name),
      el("button", { type: "button", class: "round", "data-close": true, "aria-label": "Close the product" },
        icon("close"))),
    el("div", { class: "product" },
      el("div", { class: "pictures" },
        el("div", { class: "stand" }, frame),
        pictures.length > 1 && gallery(pictures, name, frame),
        act.why && whyButton(frame, words, pictures, act.why),
        words),
      el("div", { class: "about" },
        el("p", { class: "facts" },
          el("span", { class: "price" }, price(fields.price, fields.currency)),
          hit && el("span", { class: "score" }, `similarity ${score(hit.score)}`)),
        el("form", { class: "but", onsubmit: (event) => {
          event.preventDefault();
          act.like(event.target.elements.but.value);
        } },
        el("label", { for: "but" }, "Like this, but …"),
        el("div", { class: "row" },
          el("input", { id: "but", name: "but", maxlength: "2000", placeholder: "in red, without a pattern",
            autocomplete: "off", enterkeyhint: "search" }),
          el("button", { type: "submit", class: "primary" }, "Search"))),
        el("p", { class: "buttons" },
          el("button", { type: "button", class: "quiet", onclick: () => act.like("") },
            icon("similar"), "More like this"),
          link && el("a", { class: "quiet", href: link, target: "_blank", rel: "noopener noreferrer" },
            "Open in the shop")),
        facts(known),
        fields.description && el("p", { class: "description" }, fields.description),
        act.bad && badButton(act.bad))),
  );
}

function facts({ product_id, fields, filled: guessed }) {
  const rows = Object.entries(fields)
    .filter(([name, value]) => !BESIDE.has(name) && !LINKS.includes(name) && !(name in guessed) && value !== "");
  return el("dl", {},
    rows.map(([name, value]) => [el("dt", {}, title(name)), el("dd", {}, String(value))]),
    Object.entries(guessed).map(([name, guess]) => [el("dt", {}, title(name)),
      el("dd", {}, filled(guess), el("span", { class: "hint" }, ` filled in, ${percent(guess.confidence)} sure`))]),
    el("dt", {}, "Id"), el("dd", {}, product_id));
}

function gallery(pictures, name, frame) {
  const buttons = pictures.map(({ thumbnail }, at) => el("button", {
    type: "button", "aria-label": `Picture ${at + 1} of ${pictures.length}`, "aria-pressed": String(at === 0),
    onclick: () => {
      frame.replaceChildren(productPicture(api.sized(thumbnail, 640), 640, `${name}, picture ${at + 1}`));
      buttons.forEach((button, other) => button.setAttribute("aria-pressed", String(other === at)));
    },
  }, productPicture(api.sized(thumbnail, 160), 64)));
  return el("div", { class: "gallery", role: "group", "aria-label": "Pictures" }, buttons);
}

function whyButton(frame, words, pictures, why) {
  let shown = false;
  const button = el("button", { type: "button", class: "quiet why", "aria-pressed": "false",
    onclick: async () => {
      if (shown) {
        frame.querySelector(".heat")?.remove();
        words.replaceChildren();
        shown = false;
        button.setAttribute("aria-pressed", "false");
        return;
      }
      button.disabled = true;
      words.replaceChildren(el("p", { class: "hint" }, "Looking for what made it match …"));
      try {
        const found = await why();
        if (pictures.length) {
          // The heatmap is of the main picture.
          const main = productPicture(api.sized(pictures[0].thumbnail, 640), 640, frame.querySelector("img")?.alt ?? "");
          const heat = el("img", { class: "heat", src: found.heatmap, width: "640", height: "640",
            alt: "Heatmap: warm where the picture made the product match" });
          frame.replaceChildren(main, heat);
        }
        words.replaceChildren(...explained(found));
        shown = true;
        button.setAttribute("aria-pressed", "true");
        announce("The explanation is shown.");
      } catch (error) {
        const words_ = error.code === "not_available" ? "This server explains no answers." : error.message;
        words.replaceChildren(el("p", { class: "error-text", role: "alert" }, words_));
      } finally {
        button.disabled = false;
      }
    } }, "Why this match?");
  return button;
}

function explained({ words, score: likeness }) {
  const most = Math.max(...words.map(({ weight }) => weight ?? 0), 0);
  return [
    el("p", { class: "hint" },
      `Warm areas made it match; similarity ${score(likeness)}.`),
    words.length > 0 && el("p", { class: "word-list" }, words.flatMap((word) => [wordOf(word, most), " "])),
    words.some(({ kept }) => kept === false)
      && el("p", { class: "hint" }, "Crossed out: words that say little about the picture and were left out."),
  ].filter(Boolean);
}

function wordOf({ text, kept, weight }, most) {
  const strength = weight == null || most <= 0 ? 0 : Math.max(0, weight) / most;
  const dropped = kept === false;
  const word = el(dropped ? "s" : "span", { class: dropped ? "word dropped" : "word" },
    text, dropped && el("span", { class: "unseen" }, " (left out)"));
  if (!dropped && strength > 0) {
    word.style.setProperty("--strength", percent(strength));
    word.title = `weight ${weight.toFixed(2)}`;
  }
  return word;
}

function badButton(bad) {
  const button = el("button", { type: "button", class: "text-button", onclick: () => {
    bad();
    button.replaceWith(el("p", { class: "hint", role: "status" }, "Thank you. It was noted."));
  } }, "This does not fit what I asked");
  return button;
}
