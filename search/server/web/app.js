// The page: from what is asked (the URL, a picture) to what is shown.

import * as api from "./api.js";
import { drawChips, drawProposals } from "./chips.js";
import { announce, closable, el, find, toast } from "./dom.js";
import { drawFilters } from "./filters.js";
import { drawIdeas } from "./ideas.js";
import { askForToken, listenForToken } from "./login.js";
import { listenForPhotos, openPhoto, recallPhoto, remembered } from "./photos.js";
import { drawPicture } from "./picture.js";
import { drawProduct } from "./product.js";
import {
  DEEPEST,
  EMPTY,
  PAGE,
  formOf,
  fromURL,
  hasFilters,
  isEmpty,
  splitMinus,
  toURL,
} from "./query.js";
import { card, skeletons } from "./results.js";
import { answerOf, pageOf } from "./search.js";
import { listenForSheet, tellSheet } from "./sheet.js";
import { failure, noGoodMatch, nothingFound, pictureMissing } from "./states.js";
import { count, score } from "./values.js";

const REMEMBERED = 20; // answers, for the back button

let indexes = [];
let takesFeedback = true;
let query = EMPTY;
let photo = null; // see photos.js
let answer = null; // the search's, with the hits of all pages
let shownKey = null; // the query whose answer the page shows
let asking = null; // AbortController of the search under way
let early = null; // what was asked before the indexes were known
const answers = new Map(); // by key

// From what is asked to the history

const indexOf = ({ index }) => indexes.find(({ name }) => name === index) ?? indexes[0];
const keyOf = (asked, picture) =>
  toURL({ ...asked, page: 1, product: "" }) + (asked.photo ? picture?.id : "");

/** Asks for something else; a place in the history to come back to. */
function go(part, picture = photo) {
  if (!indexes.length) {
    // They are on their way, or the token is asked for.
    early = [part, picture];
    return;
  }
  keepScroll();
  query = { ...query, page: 1, product: "", ...part };
  photo = query.photo ? picture : null;
  history.pushState({ photo: remembered(photo) }, "", toURL(query));
  show();
  if (find("results").getBoundingClientRect().top < 0) find("results").scrollIntoView();
}

/** A change of what was asked that keeps the words in the box in step. */
const refine = (part) => go({ ...wordsInBox(), ...part });

function keepScroll() {
  history.replaceState({ ...history.state, scroll: scrollY }, "");
}

/** Shows what the URL asks for; `typed` are words that wait in the box meanwhile. */
async function arrive({ typed = "" } = {}) {
  const asked = fromURL(location.search);
  const picture = await recallPhoto(history.state);
  query = asked;
  photo = asked.photo ? picture : null;
  await show({ scroll: history.state?.scroll ?? 0, typed });
}

// The search

async function show({ scroll = null, again = false, typed = "" } = {}) {
  const index = indexOf(query);
  const key = keyOf(query, photo);
  find("text").value = query.text || typed;
  find("index").value = index.name;
  find("text").placeholder =
    query.photo || query.like ? "but … (in red, say)" : "Search, or add a picture";
  document.body.dataset.view = isEmpty(query) ? "start" : "found";
  document.title = query.text ? `${query.text} · shoplens` : "shoplens";
  drawPicture({ query, photo, index }, refine);
  drawChips(find("chips"), query, refine);
  if (key !== shownKey || again) {
    asking?.abort();
    if (isEmpty(query)) await showStart(index, key);
    else if (query.photo && !photo) showInstead(pictureMissing(() => find("file").click()));
    else await load(index, key, again);
    if (key !== keyOf(query, photo)) return; // something else is asked for by now
  }
  await showProduct(index);
  if (scroll !== null) scrollTo(0, scroll);
}

async function load(index, key, again) {
  const known = again ? null : answers.get(key);
  if (known) return draw(index, key, known);
  const own = (asking = new AbortController());
  const refining = answer !== null && find("grid").childElementCount > 0;
  find("results").setAttribute("aria-busy", "true");
  find("more").replaceChildren();
  announce("Searching …");
  if (!refining) {
    find("notice").replaceChildren();
    find("grid").replaceChildren(...skeletons(12));
    find("results-title").textContent = "Searching …";
  }
  shownKey = null;
  try {
    draw(index, key, await answerOf({ index, query, photo }, own.signal));
  } catch (error) {
    if (own.signal.aborted) return;
    report(error);
  } finally {
    if (asking === own) find("results").removeAttribute("aria-busy");
  }
}

function draw(index, key, found) {
  answer = found;
  shownKey = key;
  answers.delete(key);
  answers.set(key, found);
  if (answers.size > REMEMBERED) answers.delete(answers.keys().next().value);

  const { hits } = found;
  const filters = hasFilters(query);
  const clear = () => refine({ where: "", min: null, max: null, attributes: {} });
  find("results").removeAttribute("aria-busy");
  find("notice").replaceChildren(
    ...(!hits.length
      ? [nothingFound(filters, clear)]
      : found.good_match === false
        ? [noGoodMatch(found.match_probability, filters, clear)]
        : []),
  );
  find("grid").replaceChildren(...hits.map((hit) => card(hit, index.attributes, act)));
  find("results-title").textContent = headline();
  drawProposals(find("proposals"), query, found.proposals, refine);
  drawFilters(find("filters"), query, index, found, refine);
  drawMore();
  announce(
    hits.length
      ? `${found.good_match === false ? "No good match. " : ""}${count(hits.length)} products, ` +
          `the first with similarity ${score(hits[0].score)}.`
      : "No products.",
  );
}

function headline() {
  if (query.text && (query.photo || query.like)) return `Like the picture, but “${query.text}”`;
  if (query.text) return `“${query.text}”`;
  return query.like ? "More like this" : "Visual matches";
}

function report(error) {
  if (error.status === 401) return askForToken();
  showInstead(
    failure(
      error,
      () => show({ again: true }),
      () => refine({ where: "" }),
    ),
  );
  announce("");
}

function showInstead(panel) {
  answer = null;
  shownKey = null;
  find("results").removeAttribute("aria-busy");
  find("results-title").textContent = headline();
  find("notice").replaceChildren(panel);
  find("grid").replaceChildren();
  find("more").replaceChildren();
  drawProposals(find("proposals"), query, [], refine);
  drawFilters(find("filters"), query, indexOf(query), null, refine);
  tellSheet(query, 0);
}

async function showStart(index, key) {
  answer = null;
  shownKey = key;
  for (const id of ["grid", "notice", "more"]) find(id).replaceChildren();
  announce("");
  try {
    await drawIdeas(find("ideas"), index, (text) => go({ text }));
  } catch (error) {
    if (error.status === 401) askForToken();
  }
}

// Further pages

function drawMore() {
  const shown = answer.hits.length;
  tellSheet(query, shown);
  find("more").replaceChildren(
    ...(answer.ended || !shown
      ? []
      : shown >= DEEPEST
        ? [el("p", { class: "hint" }, `The first ${count(DEEPEST)} products are shown.`)]
        : [el("button", { type: "button", class: "quiet", onclick: showMore }, "Show more")]),
  );
}

async function showMore({ target: button }) {
  const index = indexOf(query);
  const own = (asking = new AbortController());
  const key = shownKey;
  const offset = answer.hits.length;
  const k = Math.min(PAGE, DEEPEST - offset);
  button.disabled = true;
  button.textContent = "Loading …";
  try {
    const next = await pageOf({ index, query, photo }, offset, k, own.signal);
    if (key !== shownKey) return;
    answer.hits.push(...next.hits);
    answer.ended = next.hits.length < k;
    const cards = next.hits.map((hit) => card(hit, index.attributes, act));
    find("grid").append(...cards);
    cards[0]?.querySelector(".open").focus({ preventScroll: true });
    query = { ...query, page: Math.ceil(answer.hits.length / PAGE) };
    history.replaceState(history.state, "", toURL(query));
    drawMore();
    announce(
      next.hits.length
        ? `${count(next.hits.length)} more products, ${count(answer.hits.length)} in all.`
        : "There are no more.",
    );
  } catch (error) {
    if (own.signal.aborted) return;
    if (error.status === 401) return askForToken();
    drawMore();
    toast(`${error.message} ${error.requestId && `(request ${error.requestId})`}`);
  }
}

// A picture that is given

async function takePhoto(file) {
  try {
    const taken = await openPhoto(file);
    go({ ...wordsInBox(), photo: true, like: "", crop: null }, taken);
  } catch (error) {
    toast(error.message);
  }
}

// A product, looked at

const act = {
  open(hit) {
    keepScroll();
    query = { ...query, product: hit.product_id };
    history.pushState({ ...history.state, opened: true }, "", toURL(query));
    showProduct(indexOf(query));
    tell(hit, "click");
  },
  like: (hit) => moreLike(hit.product_id, ""),
};

function moreLike(id, words) {
  find("product").close();
  go({ like: id, photo: false, crop: null, ...splitMinus(words) });
  scrollTo(0, 0);
  find("results-title").focus({ preventScroll: true });
}

async function showProduct(index) {
  const dialog = find("product");
  if (!query.product) {
    if (dialog.open) dialog.close();
    return;
  }
  const id = query.product;
  try {
    const known = await api.productOf(index, id);
    if (query.product !== id) return;
    const hit = answer?.hits.find(({ product_id }) => product_id === id) ?? null;
    drawProduct(dialog, {
      hit,
      known,
      act: {
        like: (words) => moreLike(id, words),
        bad: hit && takesFeedback ? () => tell(hit, "bad") : null,
        why:
          isEmpty(query) || (query.photo && !photo)
            ? null
            : () => {
                const form = formOf(
                  { ...query, attributes: {}, where: "", min: null, max: null },
                  photo?.blob,
                );
                form.append("product_id", id);
                return api.explain(index.name, form);
              },
      },
    });
    if (!dialog.open) dialog.showModal();
  } catch (error) {
    if (error.status === 401) return askForToken();
    toast(error.message);
    leaveProduct();
  }
}

function leaveProduct() {
  if (!query.product) return;
  if (history.state?.opened) return history.back();
  query = { ...query, product: "" };
  history.replaceState(history.state, "", toURL(query));
}

function tell(hit, action) {
  if (!takesFeedback || !answer) return;
  const event = {
    request_id: answer.request_id,
    product_id: hit.product_id,
    rank: hit.rank,
    action,
  };
  api.feedback(indexOf(query).name, event).catch(() => {}); // nobody waits for it
}

// The form, the dialogs, the keys

function wordsInBox() {
  const { text, minus } = splitMinus(find("text").value);
  return { text, minus: [...new Set([...query.minus, ...minus])] };
}

function listen() {
  find("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const words = wordsInBox();
    if (isEmpty({ ...query, ...words })) {
      toast(
        words.minus.length
          ? "Say also what you look for: a minus only leaves something out."
          : "Type what you look for, or add a picture.",
      );
      find("text").focus();
      return;
    }
    go(words);
  });
  find("home").addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go({ ...EMPTY, index: query.index });
    find("text").focus();
  });
  find("index").addEventListener("change", ({ target }) =>
    go({
      ...wordsInBox(),
      index: target.value,
      like: "",
      attributes: {},
      where: "",
      min: null,
      max: null,
      crop: query.photo ? query.crop : null,
    }),
  );
  find("product").addEventListener("close", leaveProduct);
  closable(find("product"));
  addEventListener("popstate", arrive);
  addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, dialog");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      find("text").select();
    }
  });
  listenForPhotos(takePhoto, toast);
}

async function start() {
  try {
    const found = await api.indexes();
    indexes = found.indexes;
    takesFeedback = found.feedback ?? true;
  } catch (error) {
    if (error.status === 401) return askForToken();
    document.body.dataset.view = "found";
    find("notice").replaceChildren(failure(error, start, start));
    return;
  }
  find("index").replaceChildren(...indexes.map(({ name }) => el("option", { value: name }, name)));
  find("index-choice").hidden = indexes.length < 2;
  shownKey = null;
  if (!early) return arrive({ typed: find("text").value });
  const asked = early;
  early = null;
  query = fromURL(location.search);
  go(...asked);
}

history.scrollRestoration = "manual";
listenForSheet();
listen();
listenForToken(start);
start();
