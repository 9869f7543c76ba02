// The API page: every operation of /_/openapi.json, each with a form to try it.

import {ask, canonical, curl} from "./api.js"
import {button, h, redraw} from "./dom.js"
import {JSONField} from "./editor.js"

const MOST_SHOWN = 100_000 // characters of a response
const LEFT_OUT = ["head", "options"] // methods that say what another says
const NOT_ASKED = ["access_token", "as", "hold"] // parameters of streams that a form cannot fill

const plain = text => (text ?? "").replaceAll("`", "") // Markdown

export class ReferenceView {
  constructor(path, tab, page) {
    this.page = page
    this.ending = new AbortController()
    this.element = h("article", {class: "reference"})
  }

  async load() {
    try {
      this.api = await (await ask("GET", "/_/openapi.json")).json()
    } catch (problem) {
      if (this.ending.signal.aborted) return undefined
      return redraw(this.element, this.page.refusal(problem))
    }
    if (this.ending.signal.aborted) return undefined
    this.page.setCurl(curl("GET", "/_/openapi.json"))
    document.title = "API · kvstore"
    const operations = Object.entries(this.api.paths).flatMap(([path, methods]) =>
      Object.entries(methods).filter(([method, operation]) => operation.responses && !LEFT_OUT.includes(method))
        .map(([method, operation]) => this.operation(path, method.replace("x-", "").toUpperCase(), operation))) // OpenAPI has no QUERY
    const about = h("p", {class: "muted"}, `${plain(this.api.info.description)} What you send here is carried out.`)
    return redraw(this.element, h("header", {class: "title"}, h("h1", null, "API")), about, h("div", {class: "card operations"}, operations))
  }

  operation(path, method, operation) {
    const summary = h("summary", null, h("span", {class: `badge ${method.toLowerCase()}`}, method), " ", h("code", null, path), h("span", {class: "muted"}, ` ${plain(operation.summary)}`))
    const fill = () => details.open && details.childElementCount === 1 && details.append(this.form(path, method, operation))
    const details = h("details", {ontoggle: fill}, summary)
    return details
  }

  form(path, method, operation) {
    const resolve = each => (each.$ref ? this.api.components.parameters[each.$ref.split("/").at(-1)] : each)
    const places = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => ({name, in: "path", description: "one or more segments, joined by slashes", schema: {}}))
    const asked = [...places, ...(operation.parameters ?? []).map(resolve).filter(each => each.in !== "path" && !NOT_ASKED.includes(each.name))]
    const fields = asked.map(each => {
      const isFlag = each.schema?.const === ""
      const input = h("input", {type: isFlag ? "checkbox" : "text", "aria-label": each.name, autocomplete: "off", placeholder: each.schema?.default ?? "", oninput: () => show()})
      const value = () => (isFlag ? (input.checked ? "" : null) : input.value.trim() || null)
      return {...each, value, row: h("tr", null, h("th", {scope: "row"}, each.name, h("br"), h("small", null, each.in)), h("td", null, input), h("td", {class: "muted"}, plain(each.description)))}
    })
    const types = Object.keys(operation.requestBody?.content ?? {}).filter(type => type.endsWith("json"))
    const body = types.length ? new JSONField("", {label: `Body of ${method} ${path}`, rows: 5, oninput: () => show()}) : null
    const type = h("select", {"aria-label": "Content-Type", onchange: () => show()}, types.map(each => h("option", null, each)))
    const request = () => {
      const of = place => fields.filter(each => each.in === place && each.value() !== null)
      const to = path.replace(/\{(\w+)\}/g, (_, name) => canonical(fields.find(each => each.name === name).value() ?? name).replace(/^\/|\/$/g, ""))
      const query = of("query").map(({name, value}) => (value() ? `${name}=${encodeURIComponent(value())}` : name)).join("&")
      const headers = Object.fromEntries(of("header").map(({name, value}) => [name, value()]))
      const text = body?.text || undefined
      return [method, to, {query, headers: text === undefined ? headers : {"Content-Type": type.value, ...headers}, body: text}]
    }
    const show = () => this.page.setCurl(curl(...request()))
    const result = h("div", {"aria-live": "polite"})
    const sendIt = async () => {
      show()
      const ending = new AbortController()
      this.ending.signal.addEventListener("abort", () => ending.abort())
      const text = h("pre", {tabindex: 0, role: "group", "aria-label": "Response"})
      const stop = button("Stop", () => ending.abort())
      try {
        const [verb, to, options] = request()
        const response = await ask(verb, to, {...options, signal: ending.signal})
        const head = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n")
        result.replaceChildren(h("p", null, h("b", {class: response.ok ? "yes" : "no"}, `${response.status} ${response.statusText} `), stop), text)
        text.textContent = `${head}\n\n`
        const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader()
        for (let part = await reader?.read(); part && !part.done && text.textContent.length < MOST_SHOWN; part = await reader.read()) text.append(part.value)
        reader?.cancel()
      } catch (problem) {
        if (!ending.signal.aborted) result.replaceChildren(h("p", {class: "error"}, problem.message))
      }
      stop.remove()
    }
    show()
    return h("div", {class: "try"}, fields.length ? h("table", null, h("tbody", null, fields.map(each => each.row))) : null,
      body && [h("p", null, "Body ", type), body.element], h("div", {class: "buttons"}, button(`Send ${method}`, sendIt, {class: "primary"})), result)
  }

  apply() {}

  isChanged() {
    return false
  }

  close() {
    this.ending.abort()
  }
}
