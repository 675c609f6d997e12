// The server's HTTP interface, see /docs.

/** An answer that is no success. */
export class ApiError extends Error {
  constructor(status, code, message, requestId = "", retryAfter = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.requestId = requestId;
    this.retryAfter = retryAfter; // seconds
  }
}

const PATIENCE = 60_000; // milliseconds

async function ask(path, { signal, ...options } = {}) {
  const limit = AbortSignal.timeout(PATIENCE);
  let response;
  try {
    response = await fetch(path, {
      ...options,
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const message =
      error.name === "TimeoutError"
        ? "The server did not answer in time."
        : "The server cannot be reached. Are you online?";
    throw new ApiError(0, "unreachable", message);
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  const { error = {} } = await response.json().catch(() => ({}));
  throw new ApiError(
    response.status,
    error.code ?? "internal",
    error.message ?? `The server answered with status ${response.status}.`,
    error.request_id ?? response.headers.get("x-request-id") ?? "",
    Number(response.headers.get("retry-after")) || null,
  );
}

const json = (body) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
});

const at = (index, rest) => `/v1/indexes/${encodeURIComponent(index)}/${rest}`;

export const indexes = () => ask("/v1/indexes");
export const login = (token) => ask("/v1/login", json({ token }));
export const search = (index, form, signal) =>
  ask(at(index, "search"), { method: "POST", body: form, signal });
export const similar = (index, id, k, offset, signal) =>
  ask(at(index, `similar?${new URLSearchParams({ id, k, offset })}`), { signal });
export const explain = (index, form) => ask(at(index, "explain"), { method: "POST", body: form });
export const facets = (index, names) =>
  ask(at(index, `facets?${new URLSearchParams(names.map((name) => ["names", name]))}`));
export const feedback = (index, event) =>
  ask(at(index, "feedback"), { ...json(event), keepalive: true });

const products = new Map(); // by index, its version and the product's id

/** What an index knows of a product; asked once. */
export async function productOf({ name, version }, id) {
  const key = `${name} ${version} ${id}`;
  if (!products.has(key)) {
    products.set(key, await ask(at(name, `product?${new URLSearchParams({ id })}`)));
  }
  return products.get(key);
}

/** A thumbnail's URL for another size: 160, 320, 640 or 1280 pixels. */
export function sized(thumbnail, size) {
  const url = new URL(thumbnail, location.origin);
  url.searchParams.set("size", size);
  return url.pathname + url.search;
}
