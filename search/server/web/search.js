// From what is asked to an answer of the server.

import * as api from "./api.js";
import { DEEPEST, PAGE, formOf, hasFilters } from "./query.js";

const MOST = 200; // products of a request
const MOST_FACETS = 50;

/** All pages of the query up to the one that is asked for. */
export async function answerOf(asked, signal) {
  const last = Math.min(asked.query.page * PAGE, DEEPEST);
  const first = await pageOf(asked, 0, Math.min(last, MOST), signal);
  while (first.hits.length < last) {
    const offset = first.hits.length;
    const next = await pageOf(asked, offset, Math.min(last - offset, MOST), signal);
    if (!next.hits.length) break;
    first.hits.push(...next.hits);
  }
  return { ...first, ended: first.hits.length < last };
}

/** One page. */
export async function pageOf({ index, query, photo }, offset, k, signal) {
  const form = formOf(query, photo?.blob);
  form.append("k", k);
  form.append("offset", offset);
  for (const name of index.attributes.slice(0, MOST_FACETS)) form.append("facets", name);
  try {
    return await api.search(index.name, form, signal);
  } catch (error) {
    // The picture of a product may be a URL that the server does not open; its vector is known.
    const only =
      query.like && !query.text && !query.minus.length && !query.crop && !hasFilters(query);
    if (error.code !== "bad_image" || !only) throw error;
    return api.similar(index.name, query.like, k, offset, signal);
  }
}
