// The server's API: jobs, runs and their files.

const PLACE = { api: "/api/v1", studio: "/studio", live: "" };

/** What the page was told about its server. */
export function place() {
  return PLACE;
}

/** A refusal in words: `message`, `hint`, `status` (0 where the server can't be reached). */
export class ApiError extends Error {
  constructor(message, hint = "", status = 0) {
    super(message);
    this.hint = hint ?? "";
    this.status = status;
  }

  /** All of it in one line. */
  get words() {
    return [this.message, this.hint].filter(Boolean).join(" ");
  }
}

/** Ask the API; returns what it answers. Throws an `ApiError`. */
export async function ask(path, { method = "GET", body = null } = {}) {
  let answer;
  try {
    answer = await fetch(`${PLACE.api}${path}`, {
      method,
      cache: "no-store",
      headers: body === null ? {} : { "Content-Type": "application/json" },
      body: body === null ? null : JSON.stringify(body),
    });
  } catch {
    throw new ApiError("The server can't be reached.", "It may have been stopped; this page tries again.");
  }
  if (answer.status === 204) return null;
  const content = await answer.json().catch(() => null);
  if (!answer.ok) throw new ApiError(content?.error ?? `The server answered ${answer.status}.`, content?.hint, answer.status);
  return content;
}

/** Where a job is. */
export const jobPath = (id) => `/jobs/${encodeURIComponent(id)}`;

/** Where a run is. */
export const runPath = (id) => `/runs/${encodeURIComponent(id)}`;

/** The address of a file of a run; `version` makes a browser fetch it anew. */
export function fileUrl(run, name, { version = null, download = false } = {}) {
  const query = [version === null ? "" : `v=${encodeURIComponent(version)}`, download ? "download=true" : ""].filter(Boolean);
  const path = name.split("/").map(encodeURIComponent).join("/");
  return `${PLACE.api}${runPath(run)}/files/${path}${query.length ? `?${query.join("&")}` : ""}`;
}

/** A JSON file of a run; `null` where it can't be read. */
export async function fileJson(run, name) {
  try {
    const answer = await fetch(fileUrl(run, name), { cache: "no-store" });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}
