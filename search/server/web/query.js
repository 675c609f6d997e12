// What is asked: a value that the page's URL holds and that a search's form is made of.

export const PAGE = 24; // products
export const DEEPEST = 1000; // products that can be paged to

export const EMPTY = Object.freeze({
  index: "",
  text: "",
  minus: [],
  like: "", // id of the product whose picture is the query's
  photo: false, // whether a picture was given; the URL cannot hold it
  crop: null, // [x, y, width, height] in fractions of the picture
  where: "",
  min: null, // price
  max: null,
  attributes: {}, // value by name
  page: 1,
  product: "", // id of the product that is looked at
});

export const isEmpty = (query) => !(query.text || query.like || query.photo);

export const hasFilters = (query) =>
  Boolean(
    query.where || query.min !== null || query.max !== null || Object.keys(query.attributes).length,
  );

/** The query of a URL's search part; what is wrong in it is left out. */
export function fromURL(search) {
  const given = new URLSearchParams(search);
  const number = (name) => {
    const value = parseFloat(given.get(name));
    return Number.isFinite(value) && value >= 0 ? value : null;
  };
  const crop = (given.get("crop") ?? "").split(",").map(Number);
  const goodCrop =
    crop.length === 4 &&
    crop.every((part) => part >= 0 && part <= 1) &&
    crop[2] > 0 &&
    crop[3] > 0 &&
    crop[0] + crop[2] <= 1.001 &&
    crop[1] + crop[3] <= 1.001;
  const attributes = {};
  for (const pair of given.getAll("attribute")) {
    const cut = pair.indexOf("=");
    if (cut > 0) attributes[pair.slice(0, cut)] = pair.slice(cut + 1);
  }
  const page = Math.floor(number("page") ?? 1);
  return {
    index: given.get("index") ?? "",
    text: given.get("text") ?? "",
    minus: given.getAll("minus").filter(Boolean),
    like: given.get("like") ?? "",
    photo: given.has("photo") && !given.get("like"),
    crop: goodCrop ? crop : null,
    where: given.get("where") ?? "",
    min: number("min"),
    max: number("max"),
    attributes,
    page: Math.min(Math.max(page, 1), Math.ceil(DEEPEST / PAGE)),
    product: given.get("product") ?? "",
  };
}

/** The URL of a query, relative to the server. */
export function toURL(query) {
  const given = new URLSearchParams();
  const put = (name, value) => {
    if (value) given.append(name, value);
  };
  put("index", query.index);
  put("text", query.text);
  for (const word of query.minus) put("minus", word);
  put("like", query.like);
  put("photo", query.photo ? "1" : "");
  put("crop", query.crop && cropText(query.crop));
  for (const [name, value] of Object.entries(query.attributes))
    put("attribute", `${name}=${value}`);
  put("where", query.where);
  if (query.min !== null) given.append("min", query.min);
  if (query.max !== null) given.append("max", query.max);
  put("page", query.page > 1 ? String(query.page) : "");
  put("product", query.product);
  const text = given.toString();
  return text ? `/?${text}` : "/";
}

/** Words, and those that a leading minus takes away: red dress -floral -"long sleeves". */
export function splitMinus(words) {
  const minus = [];
  const text = words.replace(
    /(^|\s)[-−–](?:"([^"]+)"|([^\s"-]\S*))/g,
    (_, space, quoted, plain) => {
      minus.push((quoted ?? plain).trim());
      return space;
    },
  );
  return { text: text.replace(/\s+/g, " ").trim(), minus: minus.filter(Boolean) };
}

/** The form of a query without its paging; `photo` is the picture's file. */
export function formOf(query, photo) {
  const form = new FormData();
  if (query.photo && photo) form.append("image", photo, "query");
  if (query.like) form.append("like", query.like);
  if (query.crop) form.append("crop", cropText(query.crop));
  if (query.text) form.append("text", query.text);
  for (const word of query.minus) form.append("minus", word);
  for (const [name, value] of Object.entries(query.attributes)) {
    form.append("attribute", `${name}=${value}`);
  }
  const where = whereOf(query);
  if (where) form.append("where", where);
  return form;
}

/** The filter of a query: its own and the price range. */
export function whereOf({ where, min, max }) {
  const parts = [];
  if (where) parts.push(min === null && max === null ? where : `(${where})`);
  if (min !== null) parts.push(`price >= ${min}`);
  if (max !== null) parts.push(`price <= ${max}`);
  return parts.join(" and ");
}

const cropText = (crop) => crop.map((part) => Number(part.toFixed(4))).join(",");
