// JSON as a tree that keeps what JSON.parse() loses: the text of each number, and where in the text something stands.
// Source: RFC 8259. The limits are those of a document.

const MAX_DEPTH = 64
export const ANY_DEPTH = 99 // of a response, which has documents in it
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y
const SPACE = /[ \t\n\r]*/y

/** What is wrong with a JSON text, and where: `line` and `column` count from 1. */
export class JSONError extends Error {
  constructor(message, text, at) {
    super(message)
    const before = text.slice(0, at)
    this.at = at
    this.line = before.split("\n").length
    this.column = at - before.lastIndexOf("\n")
  }
}

/**
 * Return the tree of a JSON text; throws JSONError. A node is {kind, text} for a scalar, with `value` for a string,
 * {kind: "array", nodes} or {kind: "object", names, nodes}.
 */
export function parse(text, maxDepth = MAX_DEPTH) {
  let at = 0
  const fail = (message, where = at) => {
    throw new JSONError(where < text.length ? message : `${message}, but the text ends here`, text, where)
  }
  const skip = () => {
    SPACE.lastIndex = at
    SPACE.test(text)
    at = SPACE.lastIndex
  }
  const string = () => {
    const start = at
    for (at += 1; text[at] !== '"'; at += 1) {
      const code = text.charCodeAt(at)
      if (!(code >= 32)) fail("a string ends with a double quote; write a line break in it as \\n")
      if (code === 92) at += 1
    }
    at += 1
    const raw = text.slice(start, at)
    try {
      return {kind: "string", text: raw, value: JSON.parse(raw)}
    } catch {
      return fail("this string has a backslash with a character that it cannot escape", start)
    }
  }
  const list = (node, end, one) => {
    at += 1
    skip()
    if (text[at] === end) return (at += 1), node
    for (;;) {
      one()
      skip()
      if (text[at] === end) return (at += 1), node
      if (text[at] !== ",") fail(`a comma or ${end} is expected`)
      at += 1
      skip()
    }
  }
  const value = depth => {
    skip()
    const first = text[at]
    if (first === '"') return string()
    if (first === "{" || first === "[") {
      if (depth > maxDepth) fail(`a document has at most ${maxDepth} levels`)
      const nodes = []
      if (first === "[") return list({kind: "array", nodes}, "]", () => nodes.push(value(depth + 1)))
      const names = [], seen = new Set()
      return list({kind: "object", names, nodes}, "}", () => {
        if (text[at] !== '"') fail("a name in double quotes is expected")
        const start = at, name = string().value
        if (seen.has(name)) fail(`the name ${JSON.stringify(name)} occurs twice in this object`, start)
        seen.add(name)
        skip()
        if (text[at] !== ":") fail("a colon is expected after a name")
        at += 1
        names.push(name)
        nodes.push(value(depth + 1))
      })
    }
    for (const word of ["true", "false", "null"]) {
      if (text.startsWith(word, at)) return (at += word.length), {kind: word === "null" ? "null" : "boolean", text: word}
    }
    NUMBER.lastIndex = at
    const number = NUMBER.exec(text)?.[0]
    if (!number) fail("a value is expected: an object, an array, a string in double quotes, a number, true, false or null")
    at += number.length
    return {kind: "number", text: number}
  }
  const root = value(1)
  skip()
  if (at < text.length) fail("nothing may follow the value")
  return root
}

/** Return a tree as text: compact, or indented by two spaces a level. */
export function write(node, indent = null) {
  if (!node.nodes) return node.text
  const [open, close] = node.names ? "{}" : "[]"
  if (!node.nodes.length) return open + close
  const deeper = indent === null ? null : indent + "  "
  const colon = indent === null ? ":" : ": "
  const parts = node.nodes.map((each, i) => (node.names ? JSON.stringify(node.names[i]) + colon : "") + write(each, deeper))
  if (indent === null) return open + parts.join(",") + close
  return `${open}\n${deeper}${parts.join(`,\n${deeper}`)}\n${indent}${close}`
}

/** Return a member of an object, undefined where there is none. */
export const member = (node, name) => node?.names && node.nodes[node.names.indexOf(name)]

/** Return the beginning of a tree as text, of about `most` characters: never more work than that. */
export function preview(node, most = 80) {
  let left = most
  const short = each => {
    if (left <= 0) return "…"
    if (!each.nodes) {
      const text = each.text.length > left ? `${each.text.slice(0, left)}…` : each.text
      left -= text.length
      return text
    }
    const parts = []
    for (let i = 0; i < each.nodes.length && left > 0; i += 1) {
      const name = each.names ? `${each.names[i].slice(0, left)}: ` : ""
      left -= name.length + 2
      parts.push(name + short(each.nodes[i]))
    }
    if (parts.length < each.nodes.length) parts.push("…")
    const [open, close] = each.names ? "{}" : "[]"
    return open + parts.join(", ") + close
  }
  return short(node)
}
