// A rectangle to drag over a picture, by mouse, finger or keys.

import { announce, el } from "./dom.js";

const WHOLE = [0, 0, 1, 1];
const LEAST = 0.06; // of a side
const STEP = 0.02; // of a side, for a key
const HANDLES = ["nw", "ne", "sw", "se", "n", "s", "w", "e"];

/**
 * A picture with its rectangle. `changed(crop)` is called when a drag ends or the keys rest;
 * null is the whole picture.
 */
export function cropper({ src, width, height, alt, crop }, changed) {
  const image = el("img", { src, width, height, alt, draggable: "false" });
  const rect = el(
    "div",
    {
      class: "rect",
      tabindex: "0",
      role: "group",
      "aria-roledescription": "crop rectangle",
      "aria-describedby": "crop-keys",
    },
    HANDLES.map((side) => el("span", { class: `handle ${side}`, "data-side": side })),
  );
  const stage = el("div", { class: "stage" }, image, rect);
  stage.style.setProperty("--ratio", width / height);
  const keys = el(
    "p",
    { class: "unseen", id: "crop-keys" },
    "Arrow keys move the rectangle, with Shift they resize it, Escape takes the whole picture.",
  );
  let box = crop ?? WHOLE;
  let timer = 0;

  function draw() {
    const percent = box.map((part) => `${(part * 100).toFixed(2)}%`);
    [rect.style.left, rect.style.top, rect.style.width, rect.style.height] = percent;
    stage.classList.toggle("cropped", !isWhole(box));
    rect.setAttribute("aria-label", words(box));
  }

  function settle() {
    changed(isWhole(box) ? null : box);
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const side = event.target.dataset.side;
    const inside = event.target === rect && !isWhole(box);
    // A finger on the picture scrolls the page: it draws no new rectangle.
    if (event.pointerType === "touch" && !side && !inside) return;
    event.preventDefault();
    rect.focus({ preventScroll: true });
    const before = box;
    const start = place(event, image);
    const move = (now) => {
      const [x, y] = place(now, image);
      if (side) box = resized(before, side, x, y);
      else if (inside) box = moved(before, x - start[0], y - start[1]);
      else if (Math.hypot(x - start[0], y - start[1]) > LEAST / 2) box = between(start, [x, y]);
      draw();
    };
    const end = (now) => {
      for (const [name, listener] of listeners) stage.removeEventListener(name, listener);
      if (now.type === "pointercancel") box = before;
      draw();
      if (box.some((part, i) => part !== before[i])) settle();
    };
    const listeners = [
      ["pointermove", move],
      ["pointerup", end],
      ["pointercancel", end],
    ];
    for (const [name, listener] of listeners) stage.addEventListener(name, listener);
    stage.setPointerCapture(event.pointerId);
  });

  rect.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[
      event.key
    ];
    if (way) {
      const [x, y] = way.map((sign) => sign * STEP);
      box = event.shiftKey
        ? resized(box, "se", box[0] + box[2] + x, box[1] + box[3] + y)
        : moved(box, x, y);
    } else if (event.key === "Escape" && !isWhole(box)) {
      box = WHOLE;
    } else {
      return;
    }
    event.preventDefault();
    draw();
    clearTimeout(timer);
    timer = setTimeout(() => {
      announce(words(box));
      settle();
    }, 500);
  });

  draw();
  return el("div", { class: "cropper" }, stage, keys);
}

const isWhole = ([x, y, width, height]) => x < 0.005 && y < 0.005 && width > 0.99 && height > 0.99;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function place(event, image) {
  const { left, top, width, height } = image.getBoundingClientRect();
  return [clamp((event.clientX - left) / width, 0, 1), clamp((event.clientY - top) / height, 0, 1)];
}

function moved([x, y, width, height], right, down) {
  return [clamp(x + right, 0, 1 - width), clamp(y + down, 0, 1 - height), width, height];
}

function resized([x, y, width, height], side, toX, toY) {
  let [left, top, right, bottom] = [x, y, x + width, y + height];
  if (side.includes("w")) left = clamp(toX, 0, right - LEAST);
  if (side.includes("e")) right = clamp(toX, left + LEAST, 1);
  if (side.includes("n")) top = clamp(toY, 0, bottom - LEAST);
  if (side.includes("s")) bottom = clamp(toY, top + LEAST, 1);
  return [left, top, right - left, bottom - top];
}

function between([fromX, fromY], [toX, toY]) {
  const width = Math.max(Math.abs(toX - fromX), LEAST);
  const height = Math.max(Math.abs(toY - fromY), LEAST);
  return [
    clamp(Math.min(fromX, toX), 0, 1 - width),
    clamp(Math.min(fromY, toY), 0, 1 - height),
    width,
    height,
  ];
}

function words(box) {
  if (isWhole(box)) return "Searching with the whole picture";
  const [x, y, width, height] = box.map((part) => Math.round(part * 100));
  return (
    `Searching with a part of the picture: ${width}% wide and ${height}% high, ` +
    `${x}% from the left, ${y}% from the top`
  );
}
