// A JSON value on the screen: coloured, folded, and no more of it in the page than somebody has opened.

import {button, h, mark, number} from "./dom.js"
import {write} from "./json.js"

const MOST_SHOWN = 100 // members or items that are added at once
const MOST_TEXT = 2000 // characters of a string
const OPEN_DEPTH = 3 // levels that are open at first
const OPEN_SIZE = 60 // a larger array or object below the first level is closed at first

/**
 * Return an element that shows a tree. `folds` remembers by place what is open. What differs from `old`, an earlier tree, is
 * marked as changed at the time `at`.
 */
export function valueView(tree, {folds, old, at}) {
  return h("div", {class: "value", tabindex: 0, role: "group", "aria-label": "Value"}, part(tree, {folds, old, at, place: "", depth: 1}))
}

function part(node, {label = [], end = "", folds, old, at, place, depth}) {
  const isSame = !at || (old && write(old) === write(node))
  const isNew = !isSame && !(old?.nodes && node.nodes && Boolean(old.names) === Boolean(node.names))
  const marked = element => (isNew ? mark(element, at) : element)
  if (!node.nodes) return marked(h("div", {class: "line"}, label, scalar(node), end))
  const [open, close] = node.names ? "{}" : "[]"
  const size = node.nodes.length
  if (!size) return marked(h("div", {class: "line"}, label, open, close, end))
  const isOpen = () => folds.get(place) ?? (depth <= OPEN_DEPTH && (depth === 1 || size <= OPEN_SIZE))
  const inner = h("div", {class: "inner"})
  const before = index => (node.names ? old?.nodes?.[old.names?.indexOf(node.names[index])] : old?.nodes?.[index])
  const filled = `${place}\n` // no name of a place: how many are shown
  const fill = (from, to) => {
    folds.set(filled, to)
    for (let i = from; i < Math.min(size, to); i += 1) {
      const name = node.names && [h("span", {class: "name"}, JSON.stringify(node.names[i])), ": "]
      const inside = `${place}/${node.names ? node.names[i] : i}`
      const rest = i < size - 1 ? "," : ""
      const child = {label: name ?? [], end: rest, folds, at: isSame || isNew ? 0 : at, old: before(i), place: inside, depth: depth + 1}
      inner.append(part(node.nodes[i], child))
    }
    const left = size - to
    if (left <= 0) return
    const more = button(`Show ${Math.min(left, MOST_SHOWN)} more of ${number(left)}`, () => {
      more.remove()
      fill(to, to + MOST_SHOWN)
    }, {class: "more"})
    inner.append(more)
  }
  const what = node.names ? (size === 1 ? "member" : "members") : size === 1 ? "item" : "items"
  const fold = button("", () => {
    folds.set(place, !isOpen())
    show()
  }, {class: "fold", "aria-label": `${number(size)} ${what}`})
  const closed = h("span", {class: "closed"}, ` ${number(size)} ${what} ${close}${end}`)
  const tail = h("div", {class: "line"}, close, end)
  const show = () => {
    fold.setAttribute("aria-expanded", isOpen())
    if (isOpen() && !inner.firstChild) fill(0, folds.get(filled) ?? MOST_SHOWN)
    inner.hidden = tail.hidden = !isOpen()
    closed.hidden = isOpen()
  }
  show()
  return marked(h("div", null, h("div", {class: "line"}, fold, label, open, closed), inner, tail))
}

function scalar(node) {
  if (node.text.length <= MOST_TEXT) return h("span", {class: node.kind}, node.text)
  const element = h("span", {class: node.kind}, `${node.text.slice(0, MOST_TEXT)}… `)
  element.append(button(`Show all ${number(node.text.length)} characters`, () => (element.textContent = node.text), {class: "more"}))
  return element
}

// --- Two versions side by side ---

const MOST_COMPARED = 1_000_000 // pairs of lines

/** Return the rows of two texts side by side: [left, right], undefined where a side has no such line. */
function compare(left, right) {
  let head = 0, tail = 0
  const least = Math.min(left.length, right.length)
  while (head < least && left[head] === right[head]) head += 1
  while (tail < least - head && left.at(-1 - tail) === right.at(-1 - tail)) tail += 1
  const a = left.slice(head, left.length - tail), b = right.slice(head, right.length - tail)
  const rows = left.slice(0, head).map(line => [line, line])
  if (a.length * b.length > MOST_COMPARED) {
    for (let i = 0; i < Math.max(a.length, b.length); i += 1) rows.push([a[i], b[i]])
  } else {
    // The longest common subsequence: common[i][j] is its length in a[i:] and b[j:].
    const common = Array.from({length: a.length + 1}, () => new Uint32Array(b.length + 1))
    for (let i = a.length - 1; i >= 0; i -= 1) {
      for (let j = b.length - 1; j >= 0; j -= 1) {
        common[i][j] = a[i] === b[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1])
      }
    }
    let i = 0, j = 0
    while (i < a.length || j < b.length) {
      if (a[i] === b[j] && i < a.length) rows.push([a[i++], b[j++]])
      else if (j >= b.length || (i < a.length && common[i + 1][j] >= common[i][j + 1])) rows.push([a[i++], undefined])
      else rows.push([undefined, b[j++]])
    }
    joinRows(rows)
  }
  return [...rows, ...left.slice(left.length - tail).map(line => [line, line])]
}

/** Put a line that is on the left only beside the next that is on the right only. */
function joinRows(rows) {
  for (let i = 0; i < rows.length; i += 1) {
    if (rows[i][0] === undefined || rows[i][1] !== undefined) continue
    let next = i + 1
    while (rows[next] && rows[next][0] !== undefined && rows[next][1] === undefined) next += 1
    if (!rows[next] || rows[next][0] !== undefined) continue
    rows[i][1] = rows[next][1]
    rows.splice(next, 1)
  }
}

/** Return a table of two versions. Each is a title and a text, or null for nothing. */
export function sideBySide([leftTitle, left], [rightTitle, right]) {
  const split = text => (text === null ? [] : text.split("\n"))
  const cell = (line, other) => h("td", {class: line === other ? null : line === undefined ? "none" : "differs"}, line ?? "")
  const rows = compare(split(left), split(right)).map(([a, b]) => h("tr", null, cell(a, b), cell(b, a)))
  const head = h("tr", null, h("th", {scope: "col"}, leftTitle), h("th", {scope: "col"}, rightTitle))
  const table = h("table", {class: "versions"}, h("thead", null, head), h("tbody", null, rows))
  return h("div", {class: "scroll", tabindex: 0, role: "group", "aria-label": "Both versions"}, table)
}
