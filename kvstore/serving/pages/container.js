// A container: a table of its members, its queue, who is there, and what changes.

import {answer, canonical, curl, encodeSegment, follow, send, shown} from "./api.js"
import {VirtualList, button, clock, countdown, h, icon, mark, number, openDialog, redraw, soon, toast} from "./dom.js"
import {editorView} from "./editor.js"
import {member, preview, write} from "./json.js"
import {Listing, Matches, POLL_MS, isWatched, onEvent, watch} from "./live.js"
import {exportTo, importButton} from "./transfer.js"

const ROW = 36 // px
const MAX_COLUMNS = 6
const TYPING_MS = 400 // after which the filter is asked for
const KEPT = [0, 400, 503] // a question that is wrong, and a service that has no time for it now
const OPERATORS = ["eq", "ne", "lt", "lte", "gt", "gte", "in", "contains", "startsWith", "endsWith", "exists"]
const CONDITION = /^[^:&=]+:[a-zA-Z]+(:string)?=/
const NEXT_CONDITION = /&(?=[^:&=]+:[a-zA-Z]+(?::string)?=)/
const ASKABLE = /^[^-.:,][^.:,]*$/ // members whose names a question can hold
const QUEUE_MS = 2000 // between two looks at a queue: a lease sends no event
const HELD_S = 60 // what a stream holds expires sooner, or is held again
const LOGGED = 500 // changes that are kept for the screen

/** The last changes of all that is followed, newest first: of a value only what is shown, since a value may be large. */
export const log = []
onEvent(({type, path, node}) => {
  log.unshift({type, path, at: Date.now(), text: node && node.kind !== "null" ? preview(node, 120) : ""})
  log.length = Math.min(log.length, LOGGED)
})

const TABS = {documents: "Documents", queue: "Queue", presence: "Presence", changes: "Changes"}

export class ContainerView {
  constructor(path, tab, page) {
    Object.assign(this, {path, page, tab: Object.hasOwn(TABS, tab) ? tab : "documents", filter: "", sort: {member: null, isDown: false}, columns: [], ending: new AbortController()})
    this.element = h("article", {class: "container"})
    this.draw = soon(() => this.show?.())
  }

  async load() {
    await watch(this.path).catch(() => {})
    if (this.ending.signal.aborted) return
    const isRoot = this.path === "/"
    const href = tab => `#${this.path}${tab === "documents" ? "" : `?${tab}`}`
    const tabs = Object.entries(TABS).filter(([tab]) => !isRoot || tab === "documents" || tab === "changes")
    const links = tabs.map(([tab, label]) => h("a", {href: href(tab), "aria-current": tab === this.tab ? "page" : null}, label))
    const actions = [
      button("New", () => this.create(), {class: "primary", "aria-label": "New document"}),
      importButton(this.path, this.page.setCurl),
      button("Export", () => exportTo(this.path, this.page.setCurl)),
      isRoot ? button("Root document", () => this.page.go("/?document")) : button("Delete all", () => this.deleteAll(), {class: "danger"}),
    ]
    this.body = h("div", {class: "body"})
    this.element.replaceChildren(this.page.title(this.path, ...actions), h("nav", {class: "tabs", "aria-label": "Views of this container"}, links), this.body)
    this[this.tab]()
    this.timer ??= setInterval(() => document.hidden || isWatched(this.path) || this.listing?.refresh(), POLL_MS)
  }

  apply(event) {
    if (event.type === "reset") return event.path.startsWith(this.path) || this.path.startsWith(event.path) ? this.listing?.refresh() : undefined
    this.listing?.apply(event)
    if (this.tab === "changes") this.draw()
    return undefined
  }

  close() {
    this.ending.abort()
    this.show = null
    this.listing?.close?.()
    clearInterval(this.timer)
    clearTimeout(this.typing)
  }

  isChanged() {
    return Boolean(this.editor?.isChanged())
  }

  // --- Documents ---

  documents() {
    const ask = () => {
      clearTimeout(this.typing)
      if (filter.value.trim() === this.filter) return
      this.filter = filter.value.trim()
      this.isSettled = false
      this.list()
    }
    const later = () => {
      clearTimeout(this.typing)
      this.typing = setTimeout(ask, TYPING_MS)
    }
    const filter = h("input", {type: "search", size: 40, placeholder: "Search, or born:lt=1850", "aria-label": "Filter the documents", list: "conditions",
      autocomplete: "off", value: this.filter, oninput: later, onchange: ask})
    this.conditions = h("datalist", {id: "conditions"})
    this.found = h("span")
    this.again = button("Something has changed: ask again", () => this.listing.again(), {class: "link", hidden: true})
    const count = h("span", {class: "muted", role: "status"}, this.found, " ", this.again)
    this.refused = h("p", {class: "error", role: "alert", hidden: true})
    this.head = h("div", {class: "head", role: "row"})
    this.table = new VirtualList({class: "grid", role: "rowgroup"}, ROW, index => this.row(index), () => this.listing.more())
    const table = h("div", {class: "table card", role: "table", "aria-label": this.path}, h("div", {role: "rowgroup"}, this.head), this.table.box)
    // The root has namespaces, which no question finds.
    this.body.replaceChildren(h("div", {class: "toolbar"}, this.path === "/" ? [] : [filter, this.conditions], count), this.refused, table)
    this.show = () => this.showTable()
    this.list()
  }

  /** Ask the service for what filter and sort say. */
  list() {
    const {member, isDown} = this.sort
    const questions = [...questionOf(this.filter), member && `sort=${isDown ? "-" : ""}${encodeURIComponent(member)}`].filter(Boolean)
    const words = [this.path === "/" && "list", !member && isDown && "order=desc", ...questions].filter(Boolean).join("&")
    this.page.setCurl(curl("GET", this.path, {query: words}))
    this.listing?.close?.()
    this.listing = questions.length ? new Matches(this.path, words, this.draw) : new Listing(this.path, {descending: isDown, changed: this.draw})
    this.table.box.scrollTop = 0
    this.found.textContent = "Asking…"
    this.listing.more()
  }

  showTable() {
    const {items, next, problem, pending, isOld} = this.listing
    const isQuestion = this.listing instanceof Matches
    const isKept = isQuestion && problem && KEPT.includes(problem.status) // what was typed stays, and the rows go
    this.refused.textContent = isKept ? problem.detail : ""
    this.refused.hidden = !isKept
    if (isKept && problem.status !== 400) {
      clearTimeout(this.typing)
      this.typing = setTimeout(() => this.list(), POLL_MS)
    }
    if (problem && !isKept) return this.body.replaceChildren(this.page.refusal(problem))
    if (!isQuestion && !items.length && next === null) return this.body.replaceChildren(this.empty())
    if (!this.table.box.isConnected) return this.documents()
    if (items.length && !this.isSettled) {
      this.columns = columnsOf(items, this.sort.member)
      this.conditions.replaceChildren(...this.columns.filter(each => ASKABLE.test(each)).flatMap(each => OPERATORS.map(op => h("option", {value: `${each}:${op}=`}))))
      this.isSettled = true
    }
    this.showHead()
    const state = isQuestion ? (next === null ? " found" : " found so far") : next === null ? "" : " loaded"
    this.found.textContent = isKept ? "" : `${number(items.length)}${state}${isQuestion && pending ? "…" : ""}`
    this.again.hidden = !isOld // the same one all the time: whoever points at a button shall not lose it
    this.rows = items.slice() // what is drawn between a change and the next picture
    this.table.update(items.length)
    return undefined
  }

  showHead() {
    const style = `minmax(9rem, 1.4fr) ${"minmax(6rem, 1fr) ".repeat(this.columns.length)}8.5rem`
    this.head.style.gridTemplateColumns = style
    this.table.inner.style.setProperty("--columns", style)
    const key = JSON.stringify([this.columns, this.sort])
    if (this.head.dataset.key === key) return
    this.head.dataset.key = key
    const column = (label, member) => {
      const isSorted = this.sort.member === member, {isDown} = this.sort
      const choose = () => {
        // A member is sorted upwards, then downwards, then not at all; names upwards or downwards.
        this.sort = !isSorted ? {member, isDown: false} : isDown ? {member: null, isDown: false} : {member, isDown: true}
        this.list()
        this.showHead()
      }
      const order = isSorted ? (isDown ? "descending" : "ascending") : "none"
      return h("span", {role: "columnheader", "aria-sort": order}, button(label, choose, {class: "sort"}))
    }
    const plain = label => h("span", {role: "columnheader"}, h("span", {class: "sort"}, label))
    const members = this.columns.map(each => (this.path !== "/" && ASKABLE.test(each) && each !== VALUE ? column(each, each) : plain(each)))
    redraw(this.head, column("Name", null), ...members, plain("Expires in"))
  }

  row(index) {
    const item = this.rows[index]
    const build = () => {
      const label = shown(item.name)
      const name = h("span", {role: "cell", class: "name"}, icon(item.isContainer ? "folder" : "file"), " ", h("a", {href: `#${item.path}`, title: item.path}, h("bdi", null, label)))
      const cells = this.columns.map(column => h("span", {role: "cell"}, item.isContainer ? "" : cell(item.node, column)))
      const expires = h("span", {role: "cell"}, item.isContainer ? "" : countdown(item.expires))
      return mark(h("div", {class: `row${item.gone ? " gone" : ""}`, role: "row"}, name, cells, expires), item.marked, item.gone ? "deleted" : "changed")
    }
    return {key: item.path, stamp: [item.etag, item.marked, item.gone, item.expires, this.columns].join(), build}
  }

  empty() {
    return h("section", {class: "card empty"}, h("h2", null, this.path === "/" ? "Nothing is stored yet" : "Nothing is stored here"),
      h("p", null, this.path === "/" ? "Store any JSON at any path, from here or with curl:" : "Create a document, or drop a file to import."),
      this.path === "/" ? h("pre", null, curl("PUT", "/people/ada", {body: '{"name":"Ada","born":1815}'})) : null,
      button("New document", () => this.create(), {class: "primary"}))
  }

  create() {
    const name = h("input", {size: 30, placeholder: this.path === "/" ? "people/ada" : "name", "aria-label": "Name of the document", autocomplete: "off", oninput: () => this.editor.show()})
    const path = () => (name.value.trim() ? canonical(this.path + name.value.trim().replace(/^\//, "")) : "")
    const append = async () => {
      if (!this.editor.field.check()) return
      try {
        const response = await send("POST", this.path, {body: this.editor.field.text})
        if (this.ending.signal.aborted) return
        this.editor = null
        this.page.go(member(await answer(response), "path").value)
      } catch (problem) {
        this.editor.field.refuse(problem)
      }
    }
    const label = h("label", {class: "path"}, h("span", null, this.path === "/" ? "/" : shown(this.path)), name)
    const top = h("div", {class: "toolbar"}, label, this.path === "/" ? null : button("Append under a new id", append))
    this.editor = editorView({path, found: null, top, setCurl: this.page.setCurl, done: document => {
      if (this.ending.signal.aborted) return
      this.editor = null
      if (document) this.page.go(path())
      else this.load()
    }})
    this.body.replaceChildren(this.editor.element)
    this.show = null
    name.focus()
  }

  deleteAll() {
    const typed = h("input", {"aria-label": "Type the path to confirm", autocomplete: "off", oninput: () => (deleting.disabled = typed.value !== this.path)})
    const deleting = button("Delete all of it", async () => {
      try {
        const deleted = member(await answer(await send("DELETE", this.path, {query: "recursive"})), "deleted").text
        toast(`${deleted} deleted`)
        dialog.close()
        this.listing?.refresh()
      } catch (problem) {
        toast(problem.detail, true)
      }
    }, {class: "danger", disabled: true})
    const dialog = openDialog(`Delete all below ${this.path}`, this.page.setCurl, h("p", null, "This cannot be undone. Type the path to confirm: ", h("code", null, this.path)), typed,
      h("div", {class: "buttons"}, deleting, button("Cancel", () => dialog.close())))
    this.page.setCurl(curl("DELETE", this.path, {query: "recursive"}))
  }

  // --- Queue ---

  queue() {
    this.page.setCurl(curl("POST", this.path, {query: "lease=30s"}))
    const jobs = new Listing(this.path, {changed: () => this.draw()})
    const dead = new Listing(`${this.path}dead/`, {changed: () => this.draw()})
    const look = async () => document.hidden || (await Promise.all([jobs.refresh(), dead.refresh()]))
    this.listing = {refresh: look, apply: soon(look)}
    this.show = () => this.showQueue(jobs, dead)
    this.timer = setInterval(look, QUEUE_MS)
    look()
  }

  showQueue(jobs, dead) {
    if (jobs.problem) {
      this.drawn = null
      return this.body.replaceChildren(this.page.refusal(jobs.problem))
    }
    const table = (title, columns, rows, none) => [h("h2", null, title), rows.length
      ? h("div", {class: "card scroll", tabindex: 0, role: "group", "aria-label": title}, h("table", null, h("thead", null, h("tr", null, columns.map(each => h("th", {scope: "col"}, each)))), h("tbody", null, rows)))
      : h("p", {class: "muted"}, none)]
    this.showTakers(jobs.takers, table)
    const key = [jobs, dead].map(each => each.items.map(item => [item.name, item.etag, item.state, item.attempts])).join()
    if (key === this.drawn) return undefined // whoever points at a button shall not lose it
    this.drawn = key
    const items = jobs.items.filter(item => !item.isContainer)
    const states = ["ready", "leased", "delayed"]
    // Of a long queue the first page is counted.
    const tile = (label, count, {next}) => h("div", {class: `tile ${label}`}, h("b", null, number(count), next === null ? "" : "+"), label)
    const counts = states.map(state => tile(state, items.filter(item => (item.state ?? "ready") === state).length, jobs))
    const act = (label, [method, path, options], props) => {
      const show = () => this.page.setCurl(curl(method, path, options))
      const call = () => send(method, path, options).catch(problem => toast(problem.detail, true)).then(() => this.listing.refresh())
      return button(label, call, {...props, onfocus: show, onmouseenter: show})
    }
    const remove = item => ["DELETE", item.path, {headers: {"If-Match": "*"}}]
    const job = item => h("tr", null, h("td", null, h("a", {href: `#${item.path}`}, h("bdi", null, shown(item.name)))),
      h("td", null, h("span", {class: `badge ${item.state ?? "ready"}`}, item.state ?? "ready")), h("td", null, item.attempts ?? "0"),
      h("td", {class: "wide"}, preview(item.node, 100)), h("td", null, act("Cancel", remove(item), {class: "danger", "aria-label": `Cancel ${item.name}`})))
    const back = item => {
      const requests = [`{"method":"POST","path":${JSON.stringify(this.path)},"body":${write(member(item.node, "value") ?? item.node)}}`,
        JSON.stringify({method: "DELETE", path: item.path, headers: {"If-Match": item.etag}})]
      return ["POST", "/_/batch", {body: `{"requests":[${requests}]}`}]
    }
    const said = (item, name) => member(item.node, name)
    const corpse = item => h("tr", null, h("td", null, h("a", {href: `#${item.path}`}, h("bdi", null, shown(item.name)))),
      h("td", null, said(item, "died") ? new Date(Number(said(item, "died").text)).toLocaleString() : ""), h("td", null, said(item, "attempts")?.text),
      h("td", {class: "wide"}, h("p", null, said(item, "reason")?.value ?? ""), preview(said(item, "value") ?? item.node, 100)),
      h("td", null, act("Put back", back(item), {"aria-label": `Put back ${item.name}`}), act("Delete", remove(item), {class: "danger", "aria-label": `Delete ${item.name}`})))
    const buried = dead.items.filter(item => !item.isContainer)
    const more = jobs.next === null ? "" : ` of the first ${number(jobs.items.length)}`
    redraw(this.body, h("div", {class: "tiles"}, counts, tile("dead", buried.length, dead)),
      ...table(`Jobs${more}`, ["Job", "State", "Attempts", "Value", "Actions"], items.slice(0, 100).map(job), "No job waits."),
      this.takers,
      ...table("Dead jobs", ["Job", "Died", "Attempts", "Reason and value", "Actions"], buried.slice(0, 100).map(corpse), "No job has died."))
    return undefined
  }

  /** Show who waits, apart from the jobs: takers come and go. */
  showTakers(takers, table) {
    const key = takers.map(each => write(each)).join()
    if (key === this.shownTakers) return
    this.shownTakers = key
    const named = name => (name.kind === "null" ? h("span", {class: "muted"}, "not named") : preview(name, 100))
    const row = each => h("tr", null, h("td", {class: "wide"}, named(member(each, "as"))), h("td", null, clock(Number(member(each, "since").text))))
    redraw((this.takers ??= h("div")), ...table(`Who waits${takers.length ? `: ${takers.length}` : ""}`, ["Taker", "Since"], takers.map(row), "Nobody waits for a job."))
  }

  // --- Presence ---

  presence() {
    this.listing = new Listing(this.path, {changed: this.draw})
    const name = h("input", {placeholder: "your name", "aria-label": "Your name", autocomplete: "off", oninput: () => show()})
    const query = () => `hold=${encodeURIComponent(this.path + encodeSegment(name.value.trim() || "…"))}&as=${encodeURIComponent(JSON.stringify({name: name.value.trim()}))}`
    const show = () => this.page.setCurl(curl("GET", this.path, {query: query(), headers: {Accept: "text/event-stream"}}).replace("curl ", "curl -N "))
    const join = async event => {
      event.preventDefault()
      if (!name.value.trim()) return name.focus()
      joining.disabled = name.disabled = true // one stream is enough
      const on = {event() {}, reset() {}, state: is => (note.textContent = is === "live" ? "You are here while this page is open." : "Reconnecting…")}
      const refused = await follow(this.path, null, this.ending.signal, on, query())
      if (refused) note.textContent = refused.detail
      joining.disabled = name.disabled = false
      return undefined
    }
    const note = h("span", {class: "muted", role: "status"}, "")
    const people = h("div", {class: "people"})
    const joining = h("button", null, "Be here")
    this.body.replaceChildren(h("form", {class: "toolbar", onsubmit: join}, name, joining, note), people)
    this.show = () => {
      const there = this.listing.items.filter(item => !item.isContainer && item.ttl <= HELD_S)
      const person = item => mark(h("a", {class: `card person${item.gone ? " gone" : ""}`, href: `#${item.path}`}, h("b", null, h("bdi", null, shown(item.name))), h("small", null, item.node ? preview(item.node, 60) : "")), item.marked, item.gone ? "deleted" : "changed")
      people.replaceChildren(...(there.length ? there.slice(0, 200).map(person) : [h("p", {class: "muted"}, "Nobody is here. A stream with ?hold= holds a document here while it is open.")]))
    }
    show()
    this.listing.more()
  }

  // --- Changes ---

  changes() {
    this.page.setCurl(curl("GET", this.path, {headers: {Accept: "text/event-stream"}}).replace("curl ", "curl -N "))
    let paused = null
    const note = h("span", {class: "muted", role: "status"})
    const pause = button("Pause", () => {
      paused = paused ? null : [...log]
      pause.textContent = paused ? "Go on" : "Pause"
      this.show()
    })
    const list = h("ol", {class: "log card", "aria-label": "Changes, newest first"})
    this.body.replaceChildren(h("div", {class: "toolbar"}, pause, note), list)
    const entry = event => mark(h("li", null, h("time", null, clock(event.at)), h("span", {class: `badge ${event.type}`}, event.type),
      h("a", {href: `#${event.path}`}, h("bdi", null, shown(event.path))), h("code", null, event.text)), event.at)
    this.show = () => {
      const kept = (paused ?? log).filter(event => event.path.startsWith(this.path))
      const missed = paused ? log.indexOf(paused[0]) : 0
      note.textContent = paused ? `${number(missed < 0 ? LOGGED : missed)} more since` : `${number(kept.length)} since this page was opened`
      list.replaceChildren(...kept.slice(0, 200).map(entry))
    }
    this.show()
  }
}

// --- Columns ---

const VALUE = "Value" // of documents that are no objects

/** The members that most documents have, in order of their first appearance; "Value" where there are other documents. */
function columnsOf(items, sorted) {
  const counts = new Map()
  let others = 0
  for (const {node} of items) {
    if (node && !node.names) others += 1
    for (const name of node?.names ?? []) counts.set(name, (counts.get(name) ?? 0) + 1)
  }
  const most = [...counts.entries()].sort((a, b) => b[1] - a[1]).slice(0, MAX_COLUMNS).map(([name]) => name)
  const named = [...counts.keys()].filter(name => most.includes(name) || name === sorted)
  return others || !named.length ? [VALUE, ...named.slice(0, MAX_COLUMNS - 1)] : named
}

const nodeAt = (node, column) => (column === VALUE && !node?.names ? node : member(node, column))

function cell(node, column) {
  const found = node && nodeAt(node, column)
  return found ? h("span", {class: found.kind}, found.kind === "string" ? found.value.slice(0, 100) : preview(found, 80)) : ""
}

/** The parameters of a filter: its conditions, and a text to search for where there is one before them. */
function questionOf(filter) {
  const encoded = text => encodeURIComponent(text).replaceAll("%3A", ":")
  return filter.split(NEXT_CONDITION).filter(Boolean).map(part => {
    const [condition] = CONDITION.exec(part) ?? []
    return condition ? `${encoded(condition.slice(0, -1))}=${encoded(part.slice(condition.length))}` : `search=${encoded(part)}`
  })
}
