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
  const document = path.endsWith("/") ? `${path}none` : path
  // An atomic batch applies nothing if one of its requests fails. The second one always does, whatever is permitted: there is
  // nothing to delete. A condition would not need it, but the right to read.
  const failing = {method: "DELETE", path: `/${document.split("/")[1]}/none${Math.random()}`}
  const judged = request => send("POST", "/_/batch", {body: JSON.stringify({requests: [request, failing]})})
  const asked = {
    read: () => send("GET", path, {query: path.endsWith("/") ? "keys&limit=1" : ""}),
    append: () => judged({method: "POST", path: container, body: 0}),
    write: () => judged({method: "DELETE", path: document}),
  }
  return Promise.all(Object.entries(asked).map(async ([right, ask]) => {
    const problem = await ask().then(() => null, error => error)
    const isOfAnother = problem?.index && problem.index !== "0"
    const isRefused = !isOfAnother && [problem?.status, problem?.inner].some(status => status === 401 || status === 403)
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
