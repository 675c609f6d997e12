// What stands above the products or instead of them.

import { el } from "./dom.js";
import { percent } from "./values.js";

/** What stands above or instead of the products; `buttons` are [words, action]. */
function panel(kind, heading, lines, buttons) {
  return el(
    "div",
    { class: `panel ${kind}`, role: kind === "error" ? "alert" : null },
    el("h3", {}, heading),
    lines.map((line) => el("p", {}, line)),
    buttons.length > 0 &&
      el(
        "p",
        { class: "buttons" },
        buttons.map(([words, action], at) =>
          el(
            "button",
            { type: "button", class: at || kind === "weak" ? "quiet" : "primary", onclick: action },
            words,
          ),
        ),
      ),
  );
}

export function noGoodMatch(probability, filters, clear) {
  const sure = probability == null ? "" : ` (${percent(1 - probability)})`;
  return panel(
    "weak",
    "No good match",
    [
      `Probably${sure} this catalog does not have it. What comes nearest is below.`,
      "A tighter crop or other words may help.",
    ],
    filters ? [["Clear the filters", clear]] : [],
  );
}

export function nothingFound(filters, clear) {
  return filters
    ? panel(
        "empty",
        "Nothing fits these filters",
        ["Take one away, or widen the price."],
        [["Clear the filters", clear]],
      )
    : panel("empty", "Nothing found", ["Try other words or another picture."], []);
}

export function pictureMissing(choose) {
  return panel(
    "empty",
    "The picture is not in the link",
    ["A picture that somebody searched with stays on their device. Add yours to go on."],
    [["Choose a picture", choose]],
  );
}

/** An ApiError, with what helps to find it in the server's log. */
export function failure(error, retry, clearFilters) {
  const [heading, line] = {
    overloaded: [
      "Many people are searching",
      error.retryAfter
        ? `Please try again in ${error.retryAfter} seconds.`
        : "Please try again in a moment.",
    ],
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
    shown.append(
      el("p", { class: "request" }, `${error.code}, request `, el("code", {}, error.requestId)),
    );
  }
  return shown;
}
