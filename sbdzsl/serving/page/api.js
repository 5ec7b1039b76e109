// Requests to the service. A problem document becomes an error with its own words.

export class Problem extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

let whenSignedOut = () => {};
export function onSignedOut(call) {
  whenSignedOut = call;
}

async function checked(response) {
  if (response.ok) return response;
  let found = {};
  try {
    found = await response.json();
  } catch {
    // not a problem document: the status has to do
  }
  if (response.status === 401) whenSignedOut();
  const problem = new Problem(response.status, found.code ?? "", found.detail ?? `${response.status} ${response.statusText}`);
  problem.verdict = found.verdict ?? null;
  throw problem;
}

export async function get(path) {
  return (await checked(await fetch(path))).json();
}

export async function post(path, body) {
  const headers = { "content-type": "application/json" };
  return (await checked(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }))).json();
}

export async function remove(path) {
  await checked(await fetch(path, { method: "DELETE" }));
}

/** A picture with the headers that came with it. */
export async function picture(path) {
  const response = await checked(await fetch(path));
  return { blob: await response.blob(), headers: response.headers };
}

/** Send an image to be judged; a bad image is an answer too. */
export async function inspect(file, query) {
  const known = ["image/png", "image/jpeg", "image/bmp", "image/tiff", "image/webp"];
  const kind = known.includes(file.type) ? file.type : "application/octet-stream";
  try {
    const url = `v1/inspect?${new URLSearchParams(query)}`;
    return await (await checked(await fetch(url, { method: "POST", headers: { "content-type": kind }, body: file }))).json();
  } catch (error) {
    if (error.verdict) return error.verdict;
    throw error;
  }
}
