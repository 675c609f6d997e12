// The grid of products and what stands there instead.

import { el, icon } from "./dom.js";
import { count, filled, percent, price, score } from "./values.js";

const SHOWN_VALUES = 3;

/** A product in the grid. `act` has open(hit) and like(hit). */
export function card(hit, attributes, act) {
  const name = hit.title || hit.product_id;
  const values = attributes
    .map((attribute) => (attribute in hit.filled ? filled(hit.filled[attribute]) : hit.fields[attribute]))
    .filter(Boolean)
    .slice(0, SHOWN_VALUES)
    .flatMap((value, at) => (at ? [" · ", value] : [value]));
  return el("li", { class: "card", "data-id": hit.product_id },
    el("div", { class: "tile" },
      productPicture(hit.thumbnail, 320),
      el("button", { type: "button", class: "pill over", onclick: () => act.like(hit),
        "aria-label": `More like ${name}` }, icon("similar"), el("span", {}, "More like this"))),
    el("h3", {},
      el("button", { type: "button", class: "open", onclick: () => act.open(hit) }, name)),
    el("p", { class: "facts" },
      el("span", { class: "price" }, price(hit.price, hit.currency)),
      el("span", { class: "score", title: "Similarity to what was asked: 1 is the same" },
        el("span", { class: "unseen" }, "similarity "), score(hit.score))),
    values.length > 0 && el("p", { class: "values" }, values),
    hit.duplicates.length > 0 && el("p", { class: "values" },
      `and ${count(hit.duplicates.length)} nearly the same`));
}

/** A product's picture, in a box that is there before it; the name stands beside it. */
export function productPicture(thumbnail, side, alt = "") {
  if (!thumbnail) return el("div", { class: "no-picture" }, "no picture here");
  const image = el("img", { src: thumbnail, alt, width: side, height: side, loading: "lazy",
    decoding: "async", draggable: "false" });
  image.addEventListener("error", () => {
    image.replaceWith(el("div", { class: "no-picture" }, "no picture here"));
  });
  return image;
}

/** Places that products will take. */
export function skeletons(many) {
  return Array.from({ length: many }, () => el("li", { class: "card skeleton", "aria-hidden": "true" },
    el("div", { class: "tile" }), el("div", { class: "line" }), el("div", { class: "line short" })));
}

/** What stands above or instead of the products; `buttons` are [words, action]. */
function panel(kind, heading, lines, buttons) {
  return el("div", { class: `panel ${kind}`, role: kind === "error" ? "alert" : null },
    el("h3", {}, heading),
    lines.map((line) => el("p", {}, line)),
    buttons.length > 0 && el("p", { class: "buttons" }, buttons.map(([words, action], at) =>
      el("button", { type: "button", class: at || kind === "weak" ? "quiet" : "primary", onclick: action }, words))));
}

export function noGoodMatch(probability, filters, clear) {
  const sure = probability == null ? "" : ` (${percent(1 - probability)})`;
  return panel("weak", "No good match",
    [`Probably${sure} this catalog does not have it. What comes nearest is below.`,
      "A tighter crop or other words may help."],
    filters ? [["Clear the filters", clear]] : []);
}

export function nothingFound(filters, clear) {
  return filters
    ? panel("empty", "Nothing fits these filters", ["Take one away, or widen the price."],
      [["Clear the filters", clear]])
    : panel("empty", "Nothing found", ["Try other words or another picture."], []);
}

export function pictureMissing(choose) {
  return panel("empty", "The picture is not in the link",
    ["A picture that somebody searched with stays on their device. Add yours to go on."],
    [["Choose a picture", choose]]);
}

/** An ApiError, with what helps to find it in the server's log. */
export function failure(error, retry, clearFilters) {
  const [heading, line] = {
    overloaded: ["Many people are searching", error.retryAfter
      ? `Please try again in ${error.retryAfter} seconds.` : "Please try again in a moment."],
    bad_image: ["The picture cannot be used", error.message],
    bad_where: ["The filter cannot be used", error.message],
    too_large: ["The picture is too large", error.message],
    unreachable: ["No answer", error.message],
    not_found: ["It is not here", error.message],
  }[error.code] ?? ["The search failed", error.message];
  const buttons = [["Try again", retry]];
  if (error.code === "bad_where") buttons.push(["Remove the filter", clearFilters]);
  const shown = panel("error", heading, [line], buttons);
  if (error.requestId) {
    shown.append(el("p", { class: "request" }, `${error.code}, request `, el("code", {}, error.requestId)));
  }
  return shown;
}
