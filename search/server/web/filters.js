// Facets with counts, the price range and the filter in words.

import { el, icon } from "./dom.js";
import { toURL } from "./query.js";
import { count, price, title } from "./values.js";

const SHOWN = 8; // values of a facet before "more"
const unfolded = new Set(); // facets whose rest is shown
const folded = new Set(); // facets that were closed
let before = { asked: "", values: {} }; // by facet, when none of its values was chosen

/** Fills `place`. `change(part)` takes what is to change in the query. */
export function drawFilters(place, query, index, answer, change) {
  const names = index.attributes.filter(
    (name) => query.attributes[name] || answer?.facets[name]?.length,
  );
  const focused = place.contains(document.activeElement)
    ? document.activeElement.dataset.key
    : null;
  const asked = toURL({ ...query, attributes: {}, page: 1, product: "" });
  place.replaceChildren(
    ...names.map((name) => facet(name, query, valuesOf(name, query, asked, answer), change)),
    ...(index.price ? [priceRange(query, index.price, answer?.price, change)] : []),
    rule(query, index, change),
    ...(names.some((name) => answer?.facets[name]?.some(({ filled }) => filled))
      ? [
          el(
            "p",
            { class: "hint legend" },
            "≈ for some of them filled in by shoplens, not by the merchant",
          ),
        ]
      : []),
  );
  if (focused) {
    [...place.querySelectorAll("[data-key]")]
      .find(({ dataset }) => dataset.key === focused)
      ?.focus();
  }
}

/** Those of the answer; where one is chosen also those that could be chosen instead. */
function valuesOf(name, query, asked, answer) {
  const values = answer?.facets[name] ?? [];
  const chosen = query.attributes[name];
  if (before.asked !== asked) before = { asked, values: {} };
  if (!chosen) {
    before.values[name] = values;
    return values;
  }
  const counted = new Map(values.map((found) => [found.value, found]));
  const names = new Set([
    chosen,
    ...counted.keys(),
    ...(before.values[name] ?? []).map(({ value }) => value),
  ]);
  return [...names].map((value) => counted.get(value) ?? { value, count: 0, filled: 0 });
}

function facet(name, query, all, change) {
  const chosen = query.attributes[name];
  const set = (value) => {
    const { [name]: old, ...others } = query.attributes;
    change({ attributes: old === value ? others : { ...others, [name]: value } });
  };
  const list = el(
    "ul",
    {},
    all.map((found, at) =>
      el(
        "li",
        { hidden: at >= SHOWN && found.value !== chosen && !unfolded.has(name) },
        el(
          "button",
          {
            type: "button",
            class: "value",
            "data-key": `${name}=${found.value}`,
            "aria-pressed": String(found.value === chosen),
            onclick: () => set(found.value),
          },
          el("span", { class: "tick" }, icon("check")),
          el("span", { class: "name" }, found.value),
          found.filled > 0 &&
            el(
              "span",
              {
                class: "part",
                title: `of ${count(found.filled)} it was filled in by shoplens, not by the merchant`,
              },
              el("span", { "aria-hidden": "true" }, "≈"),
              el("span", { class: "unseen" }, ` (${count(found.filled)} filled in)`),
            ),
          found.count > 0 &&
            el(
              "span",
              { class: "count" },
              count(found.count),
              el("span", { class: "unseen" }, " products"),
            ),
        ),
      ),
    ),
  );
  const rest = all.length - SHOWN;
  const more = el(
    "button",
    {
      type: "button",
      class: "text-button",
      "data-key": `${name} more`,
      onclick: () => {
        unfolded.add(name);
        for (const item of list.children) item.hidden = false;
        list.children[SHOWN].querySelector("button").focus();
        more.remove();
      },
    },
    `${rest} more`,
    el("span", { class: "unseen" }, ` of ${title(name)}`),
  );
  return group(title(name), name, list, rest > 0 && !unfolded.has(name) && more);
}

function group(heading, key, ...content) {
  const details = el(
    "details",
    { class: "group", open: !folded.has(key) },
    el("summary", {}, el("h3", {}, heading)),
    ...content,
  );
  details.addEventListener("toggle", () => {
    if (details.open) folded.delete(key);
    else folded.add(key);
  });
  return details;
}

function priceRange(query, whole, shown, change) {
  const input = (name, words, hint) =>
    el(
      "label",
      {},
      el("span", { class: "unseen" }, words),
      el("input", {
        type: "number",
        name,
        min: "0",
        step: "any",
        inputmode: "decimal",
        "data-key": name,
        placeholder: hint,
        value: query[name] ?? "",
        onchange: ({ target }) => {
          const value = target.value === "" ? null : Number(target.value);
          if (value === null || value >= 0) change({ [name]: value });
        },
      }),
    );
  return group(
    "Price",
    "price",
    el(
      "div",
      { class: "range" },
      input("min", "Lowest price", Math.floor(whole.min)),
      el("span", { "aria-hidden": "true" }, "–"),
      input("max", "Highest price", Math.ceil(whole.max)),
    ),
    shown &&
      el("p", { class: "hint" }, `These products: ${price(shown.min)} – ${price(shown.max)}`),
  );
}

function rule(query, index, change) {
  if (query.where) folded.delete("rule");
  else if (!unfolded.has("rule first")) {
    unfolded.add("rule first");
    folded.add("rule");
  }
  const example = index.fields.includes("price")
    ? "price < 50"
    : `${index.fields[0] ?? "title"} is not null`;
  return group(
    "Advanced filter",
    "rule",
    el(
      "form",
      {
        class: "rule",
        onsubmit: (event) => {
          event.preventDefault();
          change({ where: event.target.elements.where.value.trim() });
        },
      },
      el(
        "label",
        { for: "where" },
        el("span", { class: "unseen" }, "Filter that products must fit"),
      ),
      el("input", {
        id: "where",
        name: "where",
        maxlength: "5000",
        value: query.where,
        spellcheck: "false",
        autocapitalize: "none",
        placeholder: example,
        "data-key": "where",
        "aria-describedby": "where-fields",
      }),
      el("button", { type: "submit", class: "quiet" }, "Apply"),
      el("p", { class: "hint", id: "where-fields" }, `Fields: ${index.fields.join(", ")}`),
    ),
  );
}
