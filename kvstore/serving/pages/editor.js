// Writing a document: text with the place of an error, and what to do where somebody else was faster.

import {curl, send, stored, withoutTTL} from "./api.js"
import {button, h, openDialog, say, toast} from "./dom.js"
import {parse, write} from "./json.js"
import {sideBySide} from "./value.js"

const CHECK_MS = 250 // after the last key
const MOST_LINES = 20_000 // of a text that is edited

/** A field for JSON with line numbers. `tree` is what was written, null while it is none. */
export class JSONField {
  constructor(text, {label = "JSON", rows = 12, oninput = () => {}} = {}) {
    const error = h("p", {class: "error", id: `error-${label.replaceAll(" ", "-")}`, "aria-live": "polite"})
    const area = h("textarea", {
      value: text,
      rows,
      spellcheck: "false",
      autocapitalize: "off",
      wrap: "off",
      "aria-label": label,
      "aria-describedby": error.id,
      oninput: () => {
        clearTimeout(this.timer)
        this.timer = setTimeout(() => this.check(), CHECK_MS)
        this.number()
        oninput()
      },
      onscroll: () => (this.gutter.scrollTop = area.scrollTop),
    })
    this.gutter = h("pre", {class: "gutter", "aria-hidden": "true"})
    Object.assign(this, {area, error, tree: null, element: h("div", {class: "field"}, h("div", {class: "code"}, this.gutter, area), error)})
    this.number()
    if (text) this.check()
  }

  get text() {
    return this.area.value
  }

  number(wrong) {
    const lines = this.text.split("\n").length
    if (lines === this.lines && wrong === this.wrong) return
    Object.assign(this, {lines, wrong})
    const upTo = (from, to) => Array.from({length: Math.max(0, to - from + 1)}, (_, i) => `${from + i}\n`).join("")
    const parts = wrong ? [upTo(1, wrong - 1), h("span", {class: "wrong"}, `${wrong}\n`), upTo(wrong + 1, lines)] : [upTo(1, lines)]
    this.gutter.replaceChildren(...parts)
    this.gutter.scrollTop = this.area.scrollTop
  }

  /** Parse the text; show where it is wrong. Returns the tree or null. */
  check() {
    clearTimeout(this.timer)
    try {
      this.tree = parse(this.text)
      this.number()
      this.error.replaceChildren()
      this.area.removeAttribute("aria-invalid")
    } catch (problem) {
      this.tree = null
      this.number(problem.line)
      this.area.setAttribute("aria-invalid", "true")
      const place = `Line ${problem.line}, column ${problem.column}`
      this.error.replaceChildren(button(place, () => this.goTo(problem), {class: "link"}), `: ${problem.message}`)
    }
    return this.tree
  }

  goTo({at, line}) {
    this.area.focus()
    this.area.setSelectionRange(at, Math.min(this.text.length, at + 1))
    this.area.scrollTop = Math.max(0, line - 4) * parseFloat(getComputedStyle(this.area).lineHeight)
  }

  /** Show a refusal of the server. */
  refuse(problem) {
    this.error.replaceChildren(problem.detail ?? problem.message)
    this.area.setAttribute("aria-invalid", "true")
  }
}

/** The field of a TTL: seconds, or a number with a unit. */
const ttlField = (value, placeholder, oninput) =>
  h("label", {class: "short"}, "TTL ", h("input", {value, placeholder, size: 12, oninput, pattern: "\\d+[smhd]?", autocomplete: "off", "aria-label": "TTL"}))

const queryOf = (field, otherwise) => {
  const asked = field.querySelector("input").value.trim()
  return asked || otherwise ? `ttl=${encodeURIComponent(asked || otherwise)}` : ""
}

const remaining = found => found?.expires && Math.max(1, Math.round((found.expires - Date.now()) / 1000))

/** Return a tree as text to edit: on one line where it would have too many for a browser. */
function editable(node) {
  const text = write(node, "")
  return text.split("\n", MOST_LINES + 1).length > MOST_LINES ? write(node) : text
}

/** The condition under which a write replaces what was seen: {node, etag}, or null for nothing. */
export const condition = found => (found ? {"If-Match": found.etag ?? "*"} : {"If-None-Match": "*"})

/**
 * Edit a document; `found` is what is stored, null to create one. `path()` returns where it goes. Calls done(document) when it
 * is stored, done(null) when the person gives up.
 */
export function editorView({path, found, top, setCurl, done}) {
  let base = found
  const keep = () => (base ? remaining(base) : null)
  const ttl = ttlField("", found?.expires ? "unchanged" : "one year", () => show())
  const first = found ? editable(found.node) : "{\n  \n}"
  const field = new JSONField(first, {label: "Value", rows: 16, oninput: () => show()})
  const show = () => setCurl(curl("PUT", path() || "/…", {query: queryOf(ttl, keep()), headers: condition(base), body: shortened(field.text)}))
  const save = async () => {
    if (!path()) return toast("Write a path first", true)
    if (!field.check()) return field.area.focus()
    saving.disabled = true
    try {
      const response = await send("PUT", path(), {query: queryOf(ttl, keep()), headers: condition(base), body: field.text})
      toast("Saved")
      done(await stored(response))
    } catch (problem) {
      if (problem.status === 412 && !isUnchanged(problem, base)) conflict(problem)
      else field.refuse(problem)
    }
    saving.disabled = false
    return undefined
  }
  const conflict = ({etag, current}) => {
    const theirs = current ? {etag: etag ?? null, node: withoutTTL(current), expires: base?.expires} : null
    say("Somebody else has changed this document")
    const again = () => {
      base = theirs
      element.replaceChildren(...parts)
      show()
    }
    const note = theirs ? "Somebody else has changed this document since you opened it." : "Somebody else has deleted this document."
    const yours = field.tree ? write(field.tree, "") : field.text
    element.replaceChildren(
      h("h2", null, "Conflict"),
      h("p", {role: "alert"}, `${note} Nothing of yours was stored.`),
      sideBySide(["Stored now", theirs && write(theirs.node, "")], ["Yours", yours]),
      h("div", {class: "buttons"},
        button(theirs ? "Overwrite with yours" : "Create it again", () => (again(), save()), {class: "primary"}),
        button("Edit yours", again),
        button("Discard yours", () => done(null, true)),
      ),
    )
  }
  const saving = button(found ? "Save" : "Create", save, {class: "primary"})
  const hint = h("span", {class: "muted"}, "Ctrl+Enter saves")
  const notice = h("div")
  const parts = [top, notice, field.element, h("div", {class: "buttons"}, saving, button("Cancel", () => done(null)), ttl, hint)].filter(Boolean)
  const element = h("section", {class: "editor", onkeydown: event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save()
  }}, parts)
  show()
  return {
    element,
    field,
    show,
    isChanged: () => field.text !== first,
    /** Somebody else has written the document while it is edited. */
    changed(event) {
      const current = event.node?.kind && event.type !== "delete" && event.type !== "expire" ? event.node : null
      notice.replaceChildren(h("p", {class: "notice", role: "alert"},
        current ? "Somebody else has just changed this document. " : "Somebody else has just deleted this document. ",
        button("Compare", () => conflict({etag: event.etag, current}), {class: "link"})))
    },
  }
}

/** A body as curl gets it: on one line; a long one comes from a file. */
function shortened(text) {
  if (text.length > 2000) return "@document.json"
  try {
    return write(parse(text))
  } catch {
    return text
  }
}

/** Whether a 412 is about what was seen all the same: it is a job that somebody has taken. */
const isUnchanged = ({etag, current}, found) => Boolean(current && etag && etag === found?.etag)

/**
 * Show in `about` that somebody else was faster than a dialog about `found`, with both versions. Returns what the dialog is about
 * from now on: what is stored now.
 */
function overtaken(problem, found, about, said) {
  const {etag, current, detail} = problem
  const note = text => h("p", {role: "alert"}, text)
  if (!current || isUnchanged(problem, found)) {
    about.replaceChildren(note(current ? detail : "Somebody else has deleted this document."))
    return found
  }
  const now = {etag, node: withoutTTL(current)}
  about.replaceChildren(note(`Somebody else has changed this document. ${said}`), sideBySide(["Stored now", write(now.node, "")], ["What you saw", write(found.node, "")]))
  return now
}

/** Ask for a patch of a document, in a dialog; done() is called when it was applied. */
export function openPatch(path, found, setCurl, done) {
  const KINDS = [
    ["application/merge-patch+json", "Merge patch", '{\n  "name": null\n}', "Members replace those of the document; null removes one."],
    ["application/json-patch+json", "JSON Patch", '[\n  {"op": "replace", "path": "/name", "value": 1}\n]', "Operations, all or none: add, remove, replace, move, copy, test."],
  ]
  const field = new JSONField("", {label: "Patch", rows: 8, oninput: () => show()})
  const about = h("div")
  const hint = h("p", {class: "muted"})
  let kind = KINDS[0]
  const choose = chosen => {
    kind = chosen
    field.area.placeholder = kind[2]
    hint.textContent = kind[3]
    show()
  }
  const headers = () => ({"Content-Type": kind[0], ...condition(found)})
  const show = () => setCurl(curl("PATCH", path, {headers: headers(), body: field.text || "…"}))
  const apply = async () => {
    if (!field.check()) return field.area.focus()
    try {
      done(await stored(await send("PATCH", path, {headers: headers(), body: field.text})))
      toast("Patched")
      dialog.close()
    } catch (problem) {
      if (problem.status !== 412) return field.refuse(problem)
      found = overtaken(problem, found, about, "It was not patched.")
      show()
    }
    return undefined
  }
  const choice = h("fieldset", {class: "choice"}, h("legend", null, "Kind of patch"), KINDS.map((each, i) => h("label", null, h("input", {
    type: "radio", name: "kind", checked: i === 0, onchange: () => choose(each),
  }), ` ${each[1]}`)))
  const dialog = openDialog("Patch", setCurl, about, choice, hint, field.element, h("div", {class: "buttons"}, button("Apply", apply, {class: "primary"}), button("Cancel", () => dialog.close())))
  choose(KINDS[0])
  field.area.focus()
}

/** Ask for another TTL, in a dialog. */
export function openTTL(path, found, setCurl, done) {
  const input = h("input", {value: "1h", size: 12, autocomplete: "off", "aria-label": "TTL", oninput: () => show()})
  const error = h("p", {class: "error", "aria-live": "polite"})
  const asked = () => ({query: `ttl=${encodeURIComponent(input.value.trim())}`, headers: condition(found)})
  const show = () => setCurl(curl("PATCH", path, asked()))
  const presets = ["5m", "1h", "1d", "30d", "365d"].map(each => button(each, () => {
    input.value = each
    show()
  }))
  const apply = async event => {
    event?.preventDefault()
    try {
      done(await stored(await send("PATCH", path, asked())))
      toast("TTL changed")
      dialog.close()
    } catch (problem) {
      if (problem.status !== 412) return (error.textContent = problem.detail)
      found = overtaken(problem, found, about, "Its TTL was not changed.")
      show()
    }
    return undefined
  }
  const about = h("div")
  const dialog = openDialog("Change the TTL", setCurl, about,
    h("p", {class: "muted"}, "The document expires after this time: seconds, or a number with s, m, h or d. Its value and entity-tag stay."),
    h("form", {onsubmit: apply}, input, h("span", {class: "presets"}, presets), error,
      h("div", {class: "buttons"}, h("button", {class: "primary"}, "Change"), button("Cancel", () => dialog.close()))))
  input.select()
  show()
}

/** Ask whether a document shall be deleted, in a dialog. */
export function openDelete(path, found, setCurl, done) {
  const about = h("div", null, h("p", null, "This cannot be undone."))
  const show = () => setCurl(curl("DELETE", path, {headers: condition(found)}))
  const apply = async () => {
    try {
      await send("DELETE", path, {headers: condition(found)})
      toast("Deleted")
      dialog.close()
      done()
    } catch (problem) {
      if (problem.status !== 412) return toast(problem.detail, true)
      const seen = found
      found = overtaken(problem, found, about, "It was not deleted.")
      if (found !== seen) deleting.textContent = "Delete it all the same"
      show()
    }
    return undefined
  }
  const deleting = button("Delete", apply, {class: "danger"})
  const dialog = openDialog(`Delete ${path}`, setCurl, about, h("div", {class: "buttons"}, deleting, button("Cancel", () => dialog.close())))
  show()
}
