// What was asked besides the picture and the text, and what might be.

import { el, icon } from "./dom.js";
import { count, title } from "./values.js";

/** Fills `place` with a chip for each; a click takes it away through `change(part)`. */
export function drawChips(place, query, change) {
  const without = (list, at) => list.filter((_, other) => other !== at);
  const chips = [
    ...query.minus.map((word, at) => [`not ${word}`, { minus: without(query.minus, at) }, "minus"]),
    ...Object.entries(query.attributes).map(([name, value]) => {
      const { [name]: _, ...others } = query.attributes;
      return [`${title(name)}: ${value}`, { attributes: others }, ""];
    }),
    ...(query.min === null && query.max === null
      ? []
      : [[priceWords(query), { min: null, max: null }, ""]]),
    ...(query.where ? [[query.where, { where: "" }, ""]] : []),
  ];
  place.hidden = chips.length === 0;
  place.replaceChildren(
    ...chips.map(([words, part, kind]) =>
      el(
        "button",
        {
          type: "button",
          class: `chip ${kind}`,
          "aria-label": `Remove: ${words}`,
          onclick: () => change(part),
        },
        words,
        icon("close"),
      ),
    ),
  );
  if (chips.length > 1) {
    place.append(
      el(
        "button",
        {
          type: "button",
          class: "text-button",
          onclick: () => change({ minus: [], attributes: {}, min: null, max: null, where: "" }),
        },
        "Clear all",
      ),
    );
  }
}

/** Categories that the words let expect; a click asks for one through `change(part)`. */
export function drawProposals(place, query, proposals, change) {
  place.hidden = proposals.length === 0;
  place.replaceChildren(
    ...proposals.map(({ attribute, value }) =>
      el(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-label": `Only ${title(attribute)}: ${value}`,
          onclick: () => change({ attributes: { ...query.attributes, [attribute]: value } }),
        },
        `${value}?`,
      ),
    ),
  );
}

function priceWords({ min, max }) {
  if (min === null) return `Price: up to ${count(max)}`;
  return max === null ? `Price: from ${count(min)}` : `Price: ${count(min)} – ${count(max)}`;
}
