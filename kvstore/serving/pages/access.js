// The token, and what it may do as far as it says so itself and the service tells.

import {canonical, send, token} from "./api.js"
import {button, date, h, openDialog} from "./dom.js"

/** The claims of a token, which are not verified here; null if it has none that can be read. */
function claimsOf(text) {
  try {
    const bytes = Uint8Array.from(atob(text.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")), each => each.charCodeAt(0))
    return JSON.parse(new TextDecoder().decode(bytes))
  } catch {
    return null
  }
}

/** Ask for each right on a path, with requests that change nothing whatever the answer is. Returns [right, word] of each. */
async function rightsOn(path) {
  const container = path.endsWith("/") ? path : `${path}/`
  const none = {"If-Match": '"0-0"'} // the entity-tag of no document
  // An atomic batch is judged as a whole before anything is applied, and its last request always fails.
  const failing = {method: "PUT", path: `${container}none`, headers: none, body: 0}
  const append = {method: "POST", path: container, body: 0}
  const batch = requests => send("POST", "/_/batch", {body: JSON.stringify({requests})})
  const document = path.endsWith("/") ? `${path}none` : path
  const asked = {
    read: () => send("GET", path, {query: path.endsWith("/") ? "keys&limit=1" : ""}),
    append: () => batch([append, failing]),
    write: () => send("DELETE", document, {headers: none}),
  }
  return Promise.all(Object.entries(asked).map(async ([right, ask]) => {
    const problem = await ask().then(() => null, error => error)
    const isRefused = problem && (problem.status === 401 || problem.status === 403 || (problem.status === 409 && problem.index === "0"))
    return [right, problem?.status === 0 ? "unknown" : isRefused ? "no" : "yes"]
  }))
}

/** Open the dialog; changed() is called with another token. */
export function openAccess(path, changed) {
  const area = h("textarea", {rows: 4, value: token.get(), "aria-label": "Token", placeholder: "eyJ…", spellcheck: "false", autocomplete: "off"})
  const about = h("div")
  const show = () => {
    const claims = claimsOf(token.get())
    const row = (name, text) => text && h("div", null, h("dt", null, name), h("dd", null, text))
    about.replaceChildren(claims ? h("dl", {class: "facts"}, row("Subject", claims.sub), row("Roles", claims.roles?.join?.(", ")),
      row("Expires", claims.exp && date(1000 * claims.exp)), row("Own rights", claims.allow && JSON.stringify(claims.allow)))
      : h("p", {class: "muted"}, token.get() ? "This is no token that can be read." : "No token: you may do what the rules give to anyone."))
  }
  const use = text => {
    token.set(text.trim())
    show()
    changed()
  }
  const place = h("input", {value: path, "aria-label": "Path", size: 24, autocomplete: "off"})
  const rights = h("span", {class: "rights", role: "status"})
  const ask = async event => {
    event.preventDefault()
    const found = await rightsOn(canonical(place.value))
    rights.replaceChildren(...found.map(([right, word]) => h("span", {class: `badge ${word}`}, `${right}: ${word}`)))
  }
  show()
  const dialog = openDialog("Access", null, h("p", {class: "muted"}, "The token stays in this tab, and is sent with every request."), area,
    h("div", {class: "buttons"}, button("Use this token", () => use(area.value), {class: "primary"}),
      button("Use none", () => use((area.value = ""))), button("Close", () => dialog.close())),
    about, h("h3", null, "What may I do?"), h("form", {class: "toolbar", onsubmit: ask}, place, h("button", null, "Ask")), rights)
}
