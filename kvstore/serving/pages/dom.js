// Elements without HTML strings, what the page says about time, and a list that keeps only its visible rows in the page.

/** Return an element. Text from the store becomes text here, never markup. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(props ?? {})) {
    if (name.startsWith("aria-") && value !== null) element.setAttribute(name, value)
    else if (value === undefined || value === null || value === false) continue
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value)
    else if (name === "value") element.value = value
    else element.setAttribute(name, value === true ? "" : value)
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false))
  return element
}

export const button = (label, onclick, props) => h("button", {type: "button", onclick, ...props}, label)
export const icon = name => h("i", {class: `icon ${name}`, "aria-hidden": "true"})

const FOCUSABLE = "a, button, input, textarea, [tabindex]"

/** Replace what is in an element. Who works there by keyboard stays at the same place, and what is scrolled stays so. */
export function redraw(element, ...children) {
  const index = [...element.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement)
  const top = element.querySelector(".value")?.scrollTop
  element.replaceChildren(...children)
  const value = element.querySelector(".value"), found = element.querySelectorAll(FOCUSABLE)
  if (value && top) value.scrollTop = top
  if (index >= 0) (found[index] ?? found[0])?.focus({preventScroll: true})
}

/** A button that copies a text and says so. */
export function copier(text, label) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text())
    } catch {
      const area = h("textarea", {value: text()}) // where the connection is not safe, the browser has no clipboard
      element.after(area)
      area.select()
      document.execCommand("copy")
      area.remove()
    }
    say(`${label}: copied`)
    element.classList.add("done")
    setTimeout(() => element.classList.remove("done"), 1500)
  }
  const element = button(icon("copy"), copy, {class: "quiet", "aria-label": label, title: label})
  return element
}

/** Say something to those who do not see the page. */
export function say(text) {
  document.getElementById("said").textContent = text
}

let toastTimer
/** Show a sentence for some seconds. */
export function toast(text, isBad = false) {
  const element = document.getElementById("toast")
  element.textContent = text
  element.className = isBad ? "bad" : ""
  element.hidePopover()
  element.showPopover() // above a dialog
  clearTimeout(toastTimer)
  toastTimer = setTimeout(() => element.hidePopover(), isBad ? 8000 : 3000)
}

/** Open a dialog; `close()` of the element ends it. With `setCurl` the curl line is a part of it. */
export function openDialog(title, setCurl, ...content) {
  const curl = document.getElementById("curl"), line = document.getElementById("line").textContent
  const close = () => {
    document.getElementById("toast").before(curl)
    if (setCurl) setCurl(line)
    dialog.remove()
  }
  const dialog = h("dialog", {"aria-label": title, onclose: close}, h("h2", null, title), ...content)
  if (setCurl) dialog.append(curl)
  document.body.append(dialog)
  dialog.showModal()
  return dialog
}

// --- Time ---

const two = n => String(n).padStart(2, "0")

/** Return what is left until a time in ms, counting down to the second. */
export function left(expires) {
  if (!expires) return "never"
  const s = Math.max(0, Math.round((expires - Date.now()) / 1000))
  const clock = `${two(Math.floor((s % 86400) / 3600))}:${two(Math.floor((s % 3600) / 60))}:${two(s % 60)}`
  return s >= 86400 ? `${Math.floor(s / 86400)} d ${clock}` : clock
}

/** An element that counts down. */
export const countdown = expires => h("span", {class: "ttl", "data-expires": expires ?? ""}, left(expires))

setInterval(() => {
  for (const each of document.querySelectorAll("[data-expires]")) {
    const expires = Number(each.dataset.expires)
    each.textContent = left(expires)
    each.classList.toggle("soon", expires > 0 && expires - Date.now() < 60_000)
  }
}, 1000)

export const date = ms => new Date(ms).toLocaleString()
export const clock = ms => new Date(ms).toLocaleTimeString()
export const number = n => n.toLocaleString("en")

export const MARK_MS = 2500 // for which a change is marked

/** Mark an element as changed at a time. A row that is built again goes on where the old one was. */
export function mark(element, at, kind = "changed") {
  const age = Date.now() - at
  if (!at || age > MARK_MS) return element
  element.classList.add(kind)
  element.style.animationDelay = `${-age}ms`
  return element
}

// --- A list of any length ---

/**
 * A scrolling list whose rows have one height. `row(index)` returns {key, stamp, build}: a row is built again when its stamp
 * changes. `onend` is called when the last row is near.
 */
export class VirtualList {
  constructor(props, height, row, onend) {
    this.inner = h("div", {class: "rows", role: "presentation"})
    this.box = h("div", {...props, class: `virtual ${props.class ?? ""}`}, this.inner)
    Object.assign(this, {height, row, onend, count: 0, built: new Map()})
    this.box.addEventListener("scroll", () => this.draw(), {passive: true})
    new ResizeObserver(() => this.draw()).observe(this.box)
  }

  update(count) {
    this.count = count
    this.inner.style.height = `${count * this.height}px`
    this.draw()
  }

  draw() {
    const {box, inner, height, count} = this
    const first = Math.max(0, Math.floor(box.scrollTop / height) - 5)
    const last = Math.min(count, Math.ceil((box.scrollTop + box.clientHeight) / height) + 5)
    const before = this.built
    this.built = new Map()
    for (let i = first; i < last; i += 1) {
      const {key, stamp, build} = this.row(i)
      const old = before.get(key)
      if (old?.stamp === stamp) before.delete(key)
      this.built.set(key, old?.stamp === stamp ? old : {stamp, build})
    }
    const focused = document.activeElement?.closest("[data-key]")?.dataset.key
    for (const {element} of before.values()) element.remove()
    let next = inner.firstChild, i = first
    for (const [key, one] of this.built) {
      if (!one.element) {
        one.element = one.build()
        one.element.dataset.key = key
        inner.insertBefore(one.element, next)
        if (key === focused) one.element.querySelector("a, button")?.focus({preventScroll: true})
      } else next = one.element.nextSibling
      one.element.style.transform = `translateY(${i * height}px)`
      i += 1
    }
    if (last >= count - 10) this.onend?.()
  }

  show(index) {
    const top = index * this.height, {box} = this
    if (top < box.scrollTop) box.scrollTop = top
    else if (top + this.height > box.scrollTop + box.clientHeight) box.scrollTop = top + this.height - box.clientHeight
    this.draw()
  }
}

/** Return a function that calls another once before the next picture, however often it is called. */
export function soon(draw) {
  let isDue = false
  return () => {
    if (isDue) return
    isDue = true
    // A page that is not shown gets no frames.
    setTimeout(() => {
      isDue = false
      draw()
    }, 16)
  }
}
