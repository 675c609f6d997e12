// Where the filters are: beside the results, or in a sheet over a narrow page.

import { closable, find } from "./dom.js";
import { count } from "./values.js";

const wide = matchMedia("(min-width: 60rem)");

export function listenForSheet() {
  find("open-filters").addEventListener("click", () => find("sheet").showModal());
  closable(find("sheet"));
  wide.addEventListener("change", place);
  place();
}

/** How many filters there are, and to how many products the sheet leads back. */
export function tellSheet({ attributes, min, max, where }, products) {
  const filters =
    Object.keys(attributes).length + Number(min !== null || max !== null) + Number(where !== "");
  find("filter-count").textContent = filters ? ` (${filters})` : "";
  find("sheet-done").textContent = products ? `Show ${count(products)} products` : "Close";
}

function place() {
  if (wide.matches) find("sheet").close();
  find(wide.matches ? "filters-side" : "sheet-body").append(find("filters"));
  find("filters-side").hidden = !wide.matches;
}
