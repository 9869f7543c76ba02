// The explorer: the page around the views. `#/people/ada` is a document, `#/people/` a container, `#/people/?queue` its queue.
// Values keep the text of their numbers, which a client that calls JSON.parse() would lose; so requests are made in api.js.

import {openAccess} from "./access.js"
import {canonical, shown, token, typed} from "./api.js"
import {ContainerView} from "./container.js"
import {DocumentView} from "./document.js"
import {button, copier, h, say} from "./dom.js"
import {closeAll, onEvent, onState, watch} from "./live.js"
import {importFile} from "./transfer.js"
import {Tree} from "./tree.js"

const at = id => document.getElementById(id)
const RETRY_MS = 2000 // until what cannot be reached is asked again
let view, retrying, path = "/"
const ROOT_DOCUMENT = "document" // `#/?document`: the root itself is a document as well

const go = to => {
  if (location.hash === `#${to}`) route()
  else location.hash = to
}

const page = {
  go,
  setCurl: line => (at("line").textContent = line),

  title(of, ...actions) {
    const parts = of.split("/").slice(1)
    const crumbs = [h("a", {href: "#/"}, "/")]
    parts.forEach((part, i) => {
      if (!part) return
      const isContainer = i < parts.length - 1
      const to = `/${parts.slice(0, i + 1).join("/")}${isContainer ? "/" : ""}`
      crumbs.push(h("a", {href: `#${to}`, "aria-current": to === of ? "page" : null}, h("bdi", null, shown(part)), isContainer ? "/" : ""))
    })
    document.title = `${shown(of)} · kvstore`
    return h("header", {class: "title"}, h("h1", null, crumbs), h("div", {class: "buttons"}, actions))
  },

  refusal(problem) {
    if (problem.status === 0 || problem.status === 503) retrying = setTimeout(route, RETRY_MS)
    const isAccess = problem.status === 401 || problem.status === 403
    return h("section", {class: "card empty", role: "alert"}, h("h2", null, problem.title ?? "That did not work"), h("p", null, problem.detail ?? String(problem)),
      h("div", {class: "buttons"}, isAccess ? button("Paste a token", access, {class: "primary"}) : button("Try again", route, {class: "primary"})))
  },
}

async function route() {
  const [hash, tab = ""] = (location.hash.slice(1) || "/").split("?")
  if (view?.isChanged() && !confirm("What you have written is not saved. Leave it?")) return history.replaceState(null, "", `#${path}`)
  clearTimeout(retrying)
  path = canonical(hash)
  view?.close()
  const isContainer = path.endsWith("/") && !(path === "/" && tab === ROOT_DOCUMENT)
  const isReference = path === "/" && tab === "api"
  const from = location.hash
  const View = isReference ? (await import("./reference.js")).ReferenceView : isContainer ? ContainerView : DocumentView
  if (location.hash !== from) return undefined // somebody has gone on meanwhile
  view = new View(path, tab, page)
  at("main").replaceChildren(view.element)
  at("path").value = typed(path)
  document.body.classList.remove("menu-open")
  tree.reveal(path)
  return view.load()
}

function access() {
  openAccess(path, () => {
    closeAll()
    tree.reset()
    showToken()
    route()
  })
}

const showToken = () => at("access").classList.toggle("on", Boolean(token.get()))

const tree = new Tree(go)
at("tree").append(tree.element)
at("curl").append(copier(() => at("line").textContent, "Copy the curl command"))
at("access").addEventListener("click", access)
at("menu").addEventListener("click", () => {
  const isOpen = document.body.classList.toggle("menu-open")
  at("menu").setAttribute("aria-expanded", isOpen)
  if (isOpen) tree.element.focus()
})
at("go").addEventListener("submit", event => {
  event.preventDefault()
  go(canonical(at("path").value))
})
addEventListener("keydown", event => {
  if (event.key === "/" && !event.target.closest("input, textarea, select, dialog")) {
    event.preventDefault()
    at("path").select()
  }
  if (event.key === "Escape") document.body.classList.remove("menu-open")
})

const THEMES = ["auto", "light", "dark"]
function setTheme(theme) {
  document.documentElement.dataset.theme = theme
  localStorage.setItem("kvstore-theme", theme)
  at("theme").setAttribute("aria-label", `Colours: ${theme}`)
  at("theme").title = `Colours: ${theme}`
}
at("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % 3]))
setTheme(localStorage.getItem("kvstore-theme") ?? "auto")

onEvent(event => {
  tree.apply(event)
  view?.apply(event)
})
onState(state => {
  const element = at("status")
  const text = {live: "Live", lost: "Reconnecting", idle: ""}[state]
  if (element.textContent === text) return
  element.textContent = text
  element.className = state
  say(text)
})

addEventListener("dragover", event => {
  event.preventDefault()
  document.body.classList.add("dragging")
})
addEventListener("dragleave", event => event.relatedTarget ?? document.body.classList.remove("dragging"))
addEventListener("drop", event => {
  event.preventDefault()
  document.body.classList.remove("dragging")
  const [file] = event.dataTransfer.files
  if (file) importFile(path.slice(0, path.lastIndexOf("/") + 1), file, page.setCurl)
})
// A page that the browser keeps to go back to would keep its connections.
addEventListener("pagehide", () => {
  view?.close()
  closeAll()
})
// The window that somebody looks at takes its stream back from another.
addEventListener("focus", () => watch(path).catch(() => {}))
addEventListener("pageshow", event => event.persisted && location.reload())
addEventListener("beforeunload", event => view?.isChanged() && event.preventDefault())
addEventListener("hashchange", () => {
  for (const dialog of document.querySelectorAll("dialog")) dialog.close() // it belongs to the view that is left
  route()
})
showToken()
route()
