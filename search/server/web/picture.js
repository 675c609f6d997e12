// The query's picture, with the rectangle that says which part of it is meant.

import * as api from "./api.js";
import { cropper } from "./crop.js";
import { el, find, icon } from "./dom.js";

let drawn = ""; // what the page shows

/** Shows the given picture or the product's; `refine` takes a change of the query. */
export async function drawPicture({ query, photo, index }, refine) {
  const place = find("picture");
  const source = query.photo ? photo?.id : query.like && `${index.name} ${query.like}`;
  const key = source ? `${source} ${query.crop ?? ""}` : "";
  place.hidden = !source;
  find("box-picture").hidden = !source;
  if (key === drawn) return;
  const same = source && drawn.startsWith(`${source} `);
  drawn = key;
  if (!same) place.replaceChildren();
  if (!source) return;
  const shown = query.photo
    ? { src: photo.url, width: photo.width, height: photo.height, name: "Your picture" }
    : await pictureOf(index, query.like);
  if (key !== drawn) return;
  find("box-picture").hidden = !shown.src;
  if (shown.src) find("box-picture").src = shown.src;
  const focused = place.contains(document.activeElement);
  place.replaceChildren(...parts(shown, query.crop, refine));
  if (focused) place.querySelector(".rect")?.focus({ preventScroll: true });
}

function parts(shown, crop, refine) {
  const head = el(
    "div",
    { class: "picture-head" },
    el("h2", { id: "picture-title" }, shown.name),
    el(
      "button",
      {
        type: "button",
        class: "round",
        "aria-label": "Remove the picture",
        title: "Remove the picture",
        onclick: () => {
          refine({ photo: false, like: "", crop: null });
          find("text").focus();
        },
      },
      icon("close"),
    ),
  );
  if (!shown.src) return [head, el("p", { class: "hint" }, "The picture is not on this server.")];
  return [
    head,
    cropper({ ...shown, alt: "The picture that is searched with", crop }, (box) =>
      refine({ crop: box }),
    ),
    crop
      ? el(
          "button",
          { type: "button", class: "text-button", onclick: () => refine({ crop: null }) },
          "Use the whole picture",
        )
      : el("p", { class: "hint" }, "Drag the corners to what you mean."),
  ];
}

/** A product's main picture with its size; only its name where it has none here. */
async function pictureOf(index, id) {
  let known = null;
  try {
    known = await api.productOf(index, id);
  } catch {
    // the search says what is wrong
  }
  const thumbnail = known?.images[0]?.thumbnail;
  const name = known?.fields.title || id;
  if (!thumbnail) return { name };
  const image = new Image();
  image.src = api.sized(thumbnail, 640);
  try {
    await image.decode();
  } catch {
    return { name };
  }
  return { src: image.src, width: image.naturalWidth, height: image.naturalHeight, name };
}
