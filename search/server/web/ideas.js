// What somebody may start with who has no picture at hand.

import * as api from "./api.js";
import { el } from "./dom.js";
import { title } from "./values.js";

const IDEAS = 6;

/** The most frequent values of an attribute that says what products are. Throws ApiError. */
export async function drawIdeas(place, index, choose) {
  place.hidden = true;
  const { attributes } = index;
  const name =
    attributes.find((attribute) => /type|category|kind/i.test(attribute)) ?? attributes[0];
  if (!name) return;
  const values = (await api.facets(index.name, [name])).facets[name] ?? [];
  if (!values.length) return;
  place.replaceChildren(
    el("span", {}, "Or start with"),
    ...values
      .slice(0, IDEAS)
      .map(({ value }) =>
        el("button", { type: "button", class: "chip", onclick: () => choose(value) }, value),
      ),
  );
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", title(name));
  place.hidden = false;
}
