// How values are written: prices, scores, names of fields.

import { el } from "./dom.js";

const FILLED = "filled in by shoplens, not by the merchant";

export function price(value, currency) {
  if (value == null) return "";
  const digits = { minimumFractionDigits: 2, maximumFractionDigits: 2 };
  try {
    if (currency)
      return new Intl.NumberFormat(undefined, { style: "currency", currency }).format(value);
  } catch {
    // no code that the browser knows
  }
  const number = new Intl.NumberFormat(undefined, digits).format(value);
  return currency ? `${number} ${currency}` : number;
}

export const score = (value) => value.toFixed(2);

export const count = (value) => new Intl.NumberFormat().format(value);

/** article_type: Article type */
export function title(name) {
  const words = name.replaceAll("_", " ").trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** A value that a classifier filled in, marked as such. */
export function filled({ value, confidence }) {
  return el(
    "span",
    { class: "filled", title: `${FILLED} (${percent(confidence)} sure)` },
    el("span", { "aria-hidden": "true" }, "≈ "),
    value,
    el("span", { class: "unseen" }, ` (${FILLED})`),
  );
}

export const percent = (fraction) => `${Math.round(fraction * 100)}%`;
