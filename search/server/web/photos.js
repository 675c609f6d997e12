// Pictures that people give: opened, made small enough to send, remembered for the back button.

import { find } from "./dom.js";

const SEND_BYTES = 3 << 20; // a file up to this size is sent as it is
const SEND_SIDE = 1600; // pixels; a larger file is made this small
const KEEP_SIDE = 512; // pixels of the copy that the browser's history holds

const photos = new Map(); // by id, as long as the page is open

/** A picture: {id, blob, url, width, height, small}. Throws Error for what is no picture. */
export async function openPhoto(file) {
  if (file.type && !file.type.startsWith("image/")) {
    throw new Error(`${file.name || "This file"} is not a picture.`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Error("This picture cannot be opened. JPEG, PNG and WebP work everywhere.");
  }
  const blob = file.size <= SEND_BYTES ? file : await drawn(bitmap, SEND_SIDE);
  const small = await dataURL(await drawn(bitmap, KEEP_SIDE));
  const { width, height } = bitmap;
  bitmap.close();
  return keep({
    id: crypto.getRandomValues(new Uint32Array(2)).join("-"),
    blob,
    width,
    height,
    small,
  });
}

/** The picture of a history entry, or null. After a reload it is the small copy. */
export async function recallPhoto(state) {
  if (!state?.photo) return null;
  const { id, small, width, height } = state.photo;
  if (photos.has(id)) return photos.get(id);
  return keep({ id, blob: blobOf(small), width, height, small });
}

/** What a history entry holds of a picture. */
export const remembered = (photo) =>
  photo && { id: photo.id, small: photo.small, width: photo.width, height: photo.height };

function keep(photo) {
  const kept = { ...photo, url: URL.createObjectURL(photo.blob) };
  photos.set(kept.id, kept);
  return kept;
}

async function drawn(bitmap, side) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => {
    canvas.toBlob(resolve, "image/jpeg", 0.9);
  });
}

function dataURL(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// By hand: the page's security policy lets `fetch` open nothing but the server.
function blobOf(url) {
  const [head, body] = url.split(",");
  const bytes = Uint8Array.from(atob(body), (sign) => sign.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5, head.indexOf(";")) });
}

/** Calls `take` with every picture that is chosen, dropped or pasted. */
export function listenForPhotos(take, refuse) {
  const [file, photo, dropping] = ["file", "photo", "dropping"].map(find);
  for (const id of ["upload", "drop"]) find(id).addEventListener("click", () => file.click());
  for (const id of ["camera", "camera-start"]) {
    find(id).addEventListener("click", () => photo.click());
  }
  for (const input of [file, photo]) {
    input.addEventListener("change", () => {
      if (input.files.length) take(input.files[0]);
      input.value = ""; // the same file can be chosen again
    });
  }
  document.addEventListener("paste", (event) => {
    const pasted = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (!pasted) return;
    event.preventDefault();
    take(pasted);
  });
  let depth = 0; // enter and leave also come for every element below
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  const rest = () => {
    depth = 0;
    dropping.hidden = true;
  };
  document.addEventListener("dragenter", (event) => {
    if (!carriesFiles(event)) return;
    depth += 1;
    dropping.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (carriesFiles(event) && --depth <= 0) rest();
  });
  document.addEventListener("dragover", (event) => {
    if (carriesFiles(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    rest();
    const dropped = event.dataTransfer.files[0];
    if (dropped) take(dropped);
    else refuse("Save the picture first, then drop the file here.");
  });
}
