// The tree of namespaces, containers and documents: loaded a page at a time, moved through by keyboard.
// Source: https://www.w3.org/WAI/ARIA/apg/patterns/treeview/

import {shown} from "./api.js"
import {VirtualList, h, icon, mark, soon} from "./dom.js"
import {Listing, POLL_MS, isWatched, watch} from "./live.js"

const ROW = 28 // px

export class Tree {
  constructor(go) {
    this.go = go
    this.rows = []
    this.active = 0
    this.draw = soon(() => this.flatten())
    this.root = this.branch({path: "/", name: "/", isContainer: true, isOpen: true})
    this.list = new VirtualList({role: "tree", tabindex: 0, "aria-label": "Documents", onkeydown: event => this.key(event)}, ROW,
      index => this.row(index), () => this.rows.at(-1)?.listing?.more())
    this.list.box.addEventListener("scroll", () => this.loadSeen(), {passive: true})
    this.element = this.list.box
    this.root.listing.more()
    setInterval(() => document.hidden || this.poll(), POLL_MS)
  }

  branch(item) {
    item.listing = new Listing(item.path, {keys: true, changed: this.draw})
    return item
  }

  poll() {
    const status = this.root.listing.problem?.status
    if (status !== 401 && status !== 403) this.each(item => item.isOpen && !isWatched(item.path) && item.listing.refresh())
  }

  /** Start again, with another token. */
  reset() {
    this.root = this.branch({path: "/", name: "/", isContainer: true, isOpen: true})
    this.root.listing.more()
  }

  async open(item) {
    item.isOpen = true
    this.draw()
    const isKnown = Boolean(item.listing)
    if (!isKnown) this.branch(item)
    await watch(item.path).catch(() => {})
    if (this.selected) watch(this.selected).catch(() => {}) // what the person looks at stays live
    await (isKnown ? item.listing.refresh() : item.listing.more())
  }

  close(item) {
    item.isOpen = false
    this.draw()
  }

  /** Show a path and what it lies in. */
  async reveal(path) {
    this.selected = path
    let item = this.root
    const parts = path.split("/").slice(1)
    for (const [i, part] of parts.entries()) {
      const isLast = i === parts.length - 1
      if (isLast && !part) break
      const name = isLast ? part : `${part}/`
      if (item.listing.next === item.listing.first) await item.listing.more()
      const found = isLast ? item.listing.find(name) : item.listing.pin(name)
      if (!found) break
      item = found
      // What is open is up to date. Whoever closes it while the rest is loaded has it closed.
      if (!isLast && !item.isOpen && !(i === parts.length - 2 && !parts[i + 1] && item.listing)) await this.open(item)
    }
    if (this.selected !== path) return // somebody has gone on meanwhile
    this.flatten()
    const index = this.rows.findIndex(row => row.item?.path === path)
    if (index >= 0) {
      this.active = index
      this.list.show(index)
    }
  }

  flatten() {
    const rows = []
    const add = (item, depth) => {
      const {items, next, problem, first} = item.listing
      for (const each of items) {
        rows.push({item: each, depth, parent: item})
        if (each.isOpen && each.listing) add(each, depth + 1)
      }
      if (problem) rows.push({text: problem.status === 401 ? "Paste a token to see what is stored." : problem.detail, depth, parent: item})
      else if (next !== null) rows.push({text: "Loading…", listing: item.listing, depth, parent: item})
      else if (!items.length && first) rows.push({text: item === this.root ? "Nothing is stored yet." : "Nothing is stored here.", depth, parent: item})
    }
    add(this.root, 1)
    const active = this.rows[this.active]?.item?.path
    this.rows = rows
    const index = rows.findIndex(row => row.item && row.item.path === active)
    this.active = index >= 0 ? index : Math.min(this.active, rows.length - 1)
    this.list.update(rows.length)
    this.point()
    this.loadSeen()
  }

  /** Load the pages whose place is on the screen. */
  loadSeen() {
    for (const {element} of this.list.built.values()) {
      const row = this.rows[Number(element.dataset.row)]
      if (row?.listing) row.listing.more()
    }
  }

  row(index) {
    const {item, text, depth, parent} = this.rows[index]
    const isSelected = item?.path === this.selected
    const key = item?.path ?? `${parent.path} ${text}`
    const stamp = [index, item?.marked, item?.gone, item?.isOpen, isSelected, index === this.active, depth].join()
    const build = () => {
      if (!item) return h("div", {class: "row note", role: "treeitem", "aria-level": depth, id: `row-${index}`, "data-row": index}, h("span", null, text))
      const label = item.isContainer ? shown(item.name.slice(0, -1)) : shown(item.name)
      const element = h("div", {
        class: `row${isSelected ? " selected" : ""}${index === this.active ? " active" : ""}${item.gone ? " gone" : ""}`,
        role: "treeitem",
        id: `row-${index}`,
        title: item.path,
        "data-row": index,
        "aria-level": depth,
        "aria-selected": isSelected,
        "aria-expanded": item.isContainer ? Boolean(item.isOpen) : null,
        onclick: event => {
          this.active = index
          if (item.isContainer && (event.target.closest(".twist") || isSelected)) this.toggle(item)
          else this.choose(item)
        },
      }, h("i", {class: item.isContainer ? "twist" : "twist none"}), icon(item.isContainer ? "folder" : "file"), h("bdi", null, label))
      element.style.paddingInlineStart = `${8 + 14 * (Math.min(depth, 12) - 1)}px`
      return mark(element, item.marked, item.gone ? "deleted" : "changed")
    }
    return {key, stamp, build}
  }

  choose(item) {
    this.go(item.path)
    if (item.isContainer && !item.isOpen) this.open(item)
    this.draw()
  }

  toggle(item) {
    if (item.isOpen) this.close(item)
    else this.open(item)
  }

  point() {
    this.list.box.setAttribute("aria-activedescendant", `row-${this.active}`)
  }

  key(event) {
    const row = this.rows[this.active], {item} = row ?? {}
    const last = this.rows.length - 1
    const to = {ArrowDown: this.active + 1, ArrowUp: this.active - 1, Home: 0, End: last, PageDown: this.active + 15, PageUp: this.active - 15}[event.key]
    if (to !== undefined) this.active = Math.max(0, Math.min(last, to))
    else if (event.key === "Enter" || event.key === " ") item && this.choose(item)
    else if (event.key === "ArrowRight" && item?.isContainer) {
      if (!item.isOpen) this.open(item)
      else this.active = Math.min(last, this.active + 1)
    } else if (event.key === "ArrowLeft") {
      if (item?.isOpen) this.close(item)
      else this.active = Math.max(0, this.rows.findIndex(each => each.item === row?.parent))
    } else return
    event.preventDefault()
    this.list.show(this.active)
    this.point()
  }

  /** Apply an event to all listings that are loaded. */
  apply(event) {
    if (event.type === "reset") return this.each(item => item.path.startsWith(event.path) && item.listing.refresh())
    let item = this.root
    while (item?.listing) {
      const parent = item
      item = item.listing.apply(event)
      if (item?.isContainer && (event.type === "delete" || event.type === "expire")) this.prune(parent.listing, item)
    }
    return undefined
  }

  /** Take a container out once nothing is below it any more. */
  prune(listing, item) {
    clearTimeout(item.pruning)
    item.pruning = setTimeout(async () => {
      const look = new Listing(item.path, {keys: true})
      await look.more()
      if (!look.problem && !look.items.length && item.path !== this.selected) listing.remove(item)
    }, 1000)
  }

  each(call, item = this.root) {
    call(item)
    for (const each of item.listing.items) if (each.listing && each.isOpen) this.each(call, each)
  }
}
