// One document: its value, what is known about it, and what can be done with it.

import {curl, get, redisKey, send, shown} from "./api.js"
import {button, copier, countdown, date, h, mark, number, redraw, say} from "./dom.js"
import {editorView, openDelete, openPatch, openTTL} from "./editor.js"
import {write} from "./json.js"
import {POLL_MS, isAfter, isGone, isWatched, watch} from "./live.js"
import {valueView} from "./value.js"

const LATE_MS = 3000 // after which an expiry was seen; else somebody has changed the TTL, which sends no event
const SECONDS_MS = 2000 // a date has whole seconds
const MAX_TIMER_MS = 2 ** 31 - 1

/** The view of a document. `page` has setCurl(line), title(path, …actions) and go(path). */
export class DocumentView {
  constructor(path, tab, page) {
    this.path = path
    this.page = page
    this.folds = new Map()
    this.isClosed = false
    this.applied = 0 // events
    this.element = h("article", {class: "document", "aria-busy": "true"})
  }

  async load() {
    try {
      await watch(this.path, true)
      const found = await this.read()
      if (found !== undefined) this.show(found)
    } catch (problem) {
      if (this.isClosed) return
      this.element.replaceChildren(this.page.title(this.path), this.page.refusal(problem))
    }
    if (this.isClosed) return
    this.element.removeAttribute("aria-busy")
    this.polling ??= setInterval(() => document.hidden || (isWatched(this.path) ? this.look() : this.reload()), POLL_MS)
  }

  /** Look whether somebody has changed the TTL, which sends no event. */
  async look() {
    const {found, applied} = this
    const head = found && !this.editor && (await send("HEAD", this.path).catch(() => null))
    const expires = Date.parse(head?.headers.get("Sunset"))
    if (applied === this.applied && found === this.found && Math.abs(expires - found?.expires) > SECONDS_MS) this.reload()
  }

  /** Return what is stored; undefined if an event has told more meanwhile, or the view was left. */
  async read() {
    const {applied} = this
    const found = await get(this.path)
    return this.isClosed || applied !== this.applied ? undefined : found
  }

  close() {
    this.isClosed = true
    clearTimeout(this.timer)
    clearInterval(this.polling)
  }

  /** Show what is stored; what differs from before is marked where `at` is the time of the change. */
  show(found, at = 0) {
    if (this.isClosed) return undefined
    const old = this.found
    this.found = found
    this.editor = null
    this.page.setCurl(curl("GET", this.path))
    clearTimeout(this.timer)
    const overdue = found?.expires ? found.expires - Date.now() + LATE_MS : Infinity
    if (overdue < MAX_TIMER_MS) this.timer = setTimeout(() => this.reload(), overdue)
    if (!found) return this.showNothing(at)
    const then = next => this.show(next, Date.now())
    const ask = open => () => open(this.path, this.found, this.page.setCurl, then)
    const actions = [
      button("Edit", () => this.edit(), {class: "primary"}),
      button("Patch", ask(openPatch)),
      button("TTL", ask(openTTL)),
      button("Delete", () => openDelete(this.path, this.found, this.page.setCurl, () => this.show(null, Date.now())), {class: "danger"}),
    ]
    const text = () => write(this.found.node, "")
    const value = h("section", {class: "card"}, h("header", null, h("h2", null, "Value"), copier(text, "Copy the value")),
      valueView(found.node, {folds: this.folds, old: old?.node, at}))
    redraw(this.element, this.page.title(this.path, ...actions), h("div", {class: "columns"}, value, this.facts(found, at)))
    return undefined
  }

  facts(found, at) {
    const row = (name, ...value) => h("div", null, h("dt", null, name), h("dd", null, ...value))
    const changed = found.modified ?? (found.etag && Number(found.etag.slice(1).split("-")[0]))
    const key = redisKey(this.path)
    const list = h("dl", {class: "card facts"},
      row("Expires in", countdown(found.expires), found.expires ? h("small", null, date(found.expires)) : null),
      row("Changed", changed ? date(changed) : "by another Redis client"),
      row("Entity-tag", found.etag ? [h("code", null, found.etag), copier(() => found.etag, "Copy the entity-tag")] : "none"),
      row("Redis key", h("code", null, key), copier(() => key, "Copy the Redis key")),
      row("Size", `${number(write(found.node).length)} characters`))
    return at ? mark(list, at) : list
  }

  showNothing(at) {
    const note = at ? "This document has just been deleted, or has expired." : "Nothing is stored at this path."
    const container = `${this.path}/`
    redraw(this.element, this.page.title(this.path), h("section", {class: at ? "card empty gone" : "card empty"}, h("p", {role: at ? "alert" : null}, note),
      h("div", {class: "buttons"}, button("Create it", () => this.edit(), {class: "primary"}),
        this.path === "/" ? null : button(`Open ${shown(container)}`, () => this.page.go(container)))))
  }

  edit() {
    const then = (next, isDiscarded) => {
      if (next) this.show(next, Date.now())
      else if (isDiscarded) this.load()
      else this.show(this.found)
    }
    this.editor = editorView({path: () => this.path, found: this.found, setCurl: this.page.setCurl, done: then})
    this.element.replaceChildren(this.page.title(this.path), this.editor.element)
    this.editor.field.area.focus()
  }

  apply(event) {
    if (event.type === "reset") return this.path.startsWith(event.path) && this.reload()
    if (event.path !== this.path || (this.found && !isAfter(event.id, this.found.etag))) return undefined
    this.applied += 1
    if (this.editor) return this.editor.changed(event)
    if (isGone(event) && !this.found) return undefined
    say(`${this.path}: ${event.type}`)
    const {node, etag, expires} = event
    return this.show(isGone(event) ? null : {node, etag, expires, modified: null}, Date.now())
  }

  async reload() {
    const found = await this.read().catch(() => undefined)
    if (found === undefined) return
    const isSame = found?.etag === this.found?.etag
    const isLater = Math.abs((found?.expires ?? 0) - (this.found?.expires ?? 0)) > SECONDS_MS
    if (!this.editor && (isLater || !isSame)) this.show(found, isSame ? 0 : Date.now())
    else if (this.editor && !isSame) this.editor.changed(found ?? {type: "delete"})
  }

  isChanged() {
    return Boolean(this.editor?.isChanged())
  }
}
