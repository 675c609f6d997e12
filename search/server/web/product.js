// A product, looked at closely: its pictures and what is known of it.

import * as api from "./api.js";
import { el, icon } from "./dom.js";
import { productPicture } from "./results.js";
import { filled, percent, price, score, title } from "./values.js";
import { whyButton } from "./why.js";

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
    el(
      "div",
      { class: "dialog-head" },
      el("h2", { id: "product-title" }, name),
      el(
        "button",
        { type: "button", class: "round", "data-close": true, "aria-label": "Close the product" },
        icon("close"),
      ),
    ),
    el(
      "div",
      { class: "product" },
      el(
        "div",
        { class: "pictures" },
        el("div", { class: "stand" }, frame),
        pictures.length > 1 && gallery(pictures, name, frame),
        act.why && whyButton(frame, words, pictures, act.why),
        words,
      ),
      el(
        "div",
        { class: "about" },
        el(
          "p",
          { class: "facts" },
          el("span", { class: "price" }, price(fields.price, fields.currency)),
          hit && el("span", { class: "score" }, `similarity ${score(hit.score)}`),
        ),
        el(
          "form",
          {
            class: "but",
            onsubmit: (event) => {
              event.preventDefault();
              act.like(event.target.elements.but.value);
            },
          },
          el("label", { for: "but" }, "Like this, but …"),
          el(
            "div",
            { class: "row" },
            el("input", {
              id: "but",
              name: "but",
              maxlength: "2000",
              placeholder: "in red, without a pattern",
              autocomplete: "off",
              enterkeyhint: "search",
            }),
            el("button", { type: "submit", class: "primary" }, "Search"),
          ),
        ),
        el(
          "p",
          { class: "buttons" },
          el(
            "button",
            { type: "button", class: "quiet", onclick: () => act.like("") },
            icon("similar"),
            "More like this",
          ),
          link &&
            el(
              "a",
              { class: "quiet", href: link, target: "_blank", rel: "noopener noreferrer" },
              "Open in the shop",
            ),
        ),
        facts(known),
        fields.description && el("p", { class: "description" }, fields.description),
        act.bad && badButton(act.bad),
      ),
    ),
  );
}

function facts({ product_id, fields, filled: guessed }) {
  const rows = Object.entries(fields).filter(
    ([name, value]) =>
      !BESIDE.has(name) && !LINKS.includes(name) && !(name in guessed) && value !== "",
  );
  return el(
    "dl",
    {},
    rows.map(([name, value]) => [el("dt", {}, title(name)), el("dd", {}, String(value))]),
    Object.entries(guessed).map(([name, guess]) => [
      el("dt", {}, title(name)),
      el(
        "dd",
        {},
        filled(guess),
        el("span", { class: "hint" }, ` filled in, ${percent(guess.confidence)} sure`),
      ),
    ]),
    el("dt", {}, "Id"),
    el("dd", {}, product_id),
  );
}

function gallery(pictures, name, frame) {
  const buttons = pictures.map(({ thumbnail }, at) =>
    el(
      "button",
      {
        type: "button",
        "aria-label": `Picture ${at + 1} of ${pictures.length}`,
        "aria-pressed": String(at === 0),
        onclick: () => {
          frame.replaceChildren(
            productPicture(api.sized(thumbnail, 640), 640, `${name}, picture ${at + 1}`),
          );
          buttons.forEach((button, other) =>
            button.setAttribute("aria-pressed", String(other === at)),
          );
        },
      },
      productPicture(api.sized(thumbnail, 160), 64),
    ),
  );
  return el("div", { class: "gallery", role: "group", "aria-label": "Pictures" }, buttons);
}

function badButton(bad) {
  const button = el(
    "button",
    {
      type: "button",
      class: "text-button",
      onclick: () => {
        bad();
        button.replaceWith(el("p", { class: "hint", role: "status" }, "Thank you. It was noted."));
      },
    },
    "This does not fit what I asked",
  );
  return button;
}
