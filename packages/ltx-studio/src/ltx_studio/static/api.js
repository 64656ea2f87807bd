// Talks to the server: one function per route, errors as Error with the server's own words.

export class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

export async function call(method, path, body) {
  const form = body instanceof FormData;
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.body = form ? body : JSON.stringify(body);
    if (!form) options.headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(path, options);
  const json = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(json.error?.message ?? `the server answered ${answer.status}`, answer.status);
  return json;
}

export const create = request => call("POST", "/v1/videos", request);
export const list = (after, limit = 24) =>
  call("GET", `/v1/videos?limit=${limit}${after ? `&after=${encodeURIComponent(after)}` : ""}`);
export const get = id => call("GET", `/v1/videos/${id}`);
export const cancel = id => call("POST", `/v1/videos/${id}/cancel`);
export const remove = id => call("DELETE", `/v1/videos/${id}`);
export const favour = (id, on) => call("POST", `/v1/videos/${id}/favourite?on=${on}`);
export const models = () => call("GET", "/v1/models");
export const schema = () => call("GET", "/v1/schema");
export const plan = request => call("POST", "/v1/plan", request);
export const content = (id, variant = "video") => `/v1/videos/${id}/content?variant=${variant}`;

export function upload(blob, name) {
  const form = new FormData();
  form.append("file", blob, name);
  return call("POST", "/v1/uploads", form);
}

export function follow(handler) {
  const stream = new EventSource("/v1/videos/*/events");
  for (const kind of ["started", "progress", "completed", "failed", "cancelled", "queued", "note"])
    stream.addEventListener(kind, event => handler(kind, JSON.parse(event.data)));
  stream.addEventListener("open", () => handler("open", {}));
  stream.addEventListener("error", () => handler("lost", {}));
  return stream;
}
