// The grid of products.

import { el, icon } from "./dom.js";
import { count, filled, price, score } from "./values.js";

const SHOWN_VALUES = 3;

/** A product in the grid. `act` has open(hit) and like(hit). */
export function card(hit, attributes, act) {
  const name = hit.title || hit.product_id;
  const values = attributes
    .map((attribute) =>
      attribute in hit.filled ? filled(hit.filled[attribute]) : hit.fields[attribute],
    )
    .filter(Boolean)
    .slice(0, SHOWN_VALUES)
    .flatMap((value, at) => (at ? [" · ", value] : [value]));
  return el(
    "li",
    { class: "card", "data-id": hit.product_id },
    el(
      "div",
      { class: "tile" },
      productPicture(hit.thumbnail, 320),
      el(
        "button",
        {
          type: "button",
          class: "pill over",
          onclick: () => act.like(hit),
          "aria-label": `More like ${name}`,
        },
        icon("similar"),
        el("span", {}, "More like this"),
      ),
    ),
    el(
      "h3",
      {},
      el("button", { type: "button", class: "open", onclick: () => act.open(hit) }, name),
    ),
    el(
      "p",
      { class: "facts" },
      el("span", { class: "price" }, price(hit.price, hit.currency)),
      el(
        "span",
        { class: "score", title: "Similarity to what was asked: 1 is the same" },
        el("span", { class: "unseen" }, "similarity "),
        score(hit.score),
      ),
    ),
    values.length > 0 && el("p", { class: "values" }, values),
    hit.duplicates.length > 0 &&
      el("p", { class: "values" }, `and ${count(hit.duplicates.length)} nearly the same`),
  );
}

/** A product's picture, in a box that is there before it; the name stands beside it. */
export function productPicture(thumbnail, side, alt = "") {
  if (!thumbnail) return el("div", { class: "no-picture" }, "no picture here");
  const image = el("img", {
    src: thumbnail,
    alt,
    width: side,
    height: side,
    loading: "lazy",
    decoding: "async",
    draggable: "false",
  });
  image.addEventListener("error", () => {
    image.replaceWith(el("div", { class: "no-picture" }, "no picture here"));
  });
  return image;
}

/** Places that products will take. */
export function skeletons(many) {
  return Array.from({ length: many }, () =>
    el(
      "li",
      { class: "card skeleton", "aria-hidden": "true" },
      el("div", { class: "tile" }),
      el("div", { class: "line" }),
      el("div", { class: "line short" }),
    ),
  );
}
