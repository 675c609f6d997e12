// Why a product matched: warm areas over its picture, words that counted.

import * as api from "./api.js";
import { announce, el } from "./dom.js";
import { productPicture } from "./results.js";
import { percent, score } from "./values.js";

/** A button that shows it and hides it again. `why()` asks the server; it may throw ApiError. */
export function whyButton(frame, words, pictures, why) {
  let shown = false;
  const button = el(
    "button",
    {
      type: "button",
      class: "quiet why",
      "aria-pressed": "false",
      onclick: async () => {
        if (shown) {
          frame.querySelector(".heat")?.remove();
          words.replaceChildren();
          shown = false;
          button.setAttribute("aria-pressed", "false");
          return;
        }
        button.disabled = true;
        words.replaceChildren(el("p", { class: "hint" }, "Looking for what made it match …"));
        try {
          const found = await why();
          if (pictures.length) {
            // The heatmap is of the main picture.
            const main = productPicture(
              api.sized(pictures[0].thumbnail, 640),
              640,
              frame.querySelector("img")?.alt ?? "",
            );
            const heat = el("img", {
              class: "heat",
              src: found.heatmap,
              width: "640",
              height: "640",
              alt: "Heatmap: warm where the picture made the product match",
            });
            frame.replaceChildren(main, heat);
          }
          words.replaceChildren(...explained(found));
          shown = true;
          button.setAttribute("aria-pressed", "true");
          announce("The explanation is shown.");
        } catch (error) {
          const unknown = error.code === "not_available";
          words.replaceChildren(
            el(
              "p",
              { class: unknown ? "hint" : "error-text", role: "alert" },
              unknown ? "This server explains no answers." : error.message,
            ),
          );
        } finally {
          button.disabled = false;
        }
      },
    },
    "Why this match?",
  );
  return button;
}

function explained({ words, score: likeness }) {
  const most = Math.max(...words.map(({ weight }) => weight ?? 0), 0);
  return [
    el("p", { class: "hint" }, `Warm areas made it match; similarity ${score(likeness)}.`),
    words.length > 0 &&
      el(
        "p",
        { class: "word-list" },
        words.flatMap((word) => [wordOf(word, most), " "]),
      ),
    words.some(({ kept }) => kept === false) &&
      el(
        "p",
        { class: "hint" },
        "Crossed out: words that say little about the picture and were left out.",
      ),
  ].filter(Boolean);
}

function wordOf({ text, kept, weight }, most) {
  const strength = weight == null || most <= 0 ? 0 : Math.max(0, weight) / most;
  const dropped = kept === false;
  const word = el(
    dropped ? "s" : "span",
    { class: dropped ? "word dropped" : "word" },
    text,
    dropped && el("span", { class: "unseen" }, " (left out)"),
  );
  if (!dropped && strength > 0) {
    word.style.setProperty("--strength", percent(strength));
    word.title = `weight ${weight.toFixed(2)}`;
  }
  return word;
}
