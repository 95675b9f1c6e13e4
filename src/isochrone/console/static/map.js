// The map of sites: one canvas, drawn from one shared stream of frames. Names from data are only
// ever written as text.
import { arcBetween, at, fitTo, outline, pathOf, project } from "/console/projection.js";

const LOAD = [["idle", "--load-0"], ["under half", "--load-1"], ["busy", "--load-2"], ["full", "--load-3"], ["no replicas", "--load-none"]];
const HEALTH = { healthy: "--load-0", recovering: "--load-1", probing: "--load-2", suspect: "--load-2", ejected: "--load-3", draining: "--health-draining", down: "--health-down" };
const COMET_MS = 1500, RING_MS = 900, MOST_COMETS = 400, OF_A_FLOW = 6, TRAIL = 10, STALE_MS = 3500, RECENT_MS = 8000, MOST_LINKS = 40;
// Of many requests each is drawn more simply: parts of a tail, and shades of what fades.
const FEW = 60, MANY = 120, TRAIL_OF_MANY = 4, SHADES = 6;

export async function start(root) {
  if (root.dataset.started) return;
  root.dataset.started = "yes";
  const map = new Map_(root);
  window.isochroneMap = map; // for tests and for the curious
  const [world] = await Promise.all([fetch("/console/world.json").then((r) => r.json()), map.loadSites()]);
  map.setWorld(world);
  map.listen();
  // The address may name a site: it is there that one wants to look.
  const wanted = map.byName?.get(new URLSearchParams(location.search).get("site"));
  if (wanted !== undefined) map.choose(wanted, true);
}

class Map_ {
  constructor(root) {
    this.root = root;
    this.sites = []; this.state = []; this.flowsSeen = 0; this.frames = 0; this.frameAt = performance.now();
    this.comets = []; this.rings = []; this.recent = new Map(); this.arcs = new Map(); this.links = new Map();
    this.filter = { country: "", model: "", text: "" };
    this.allowed = null; // of a chosen policy: which sites may process, which may take requests in
    this.colourBy = "load"; this.hover = -1; this.selected = -1; this.view = null; this.drawn = 0;
    this.still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.build();
    this.readColours();
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    document.addEventListener("isochrone-theme", () => { this.readColours(); this.base = null; this.wake(); });
    document.addEventListener("visibilitychange", () => this.wake());
    this.timer = setInterval(() => this.everySecond(), 1000);
  }

  // --- what is around the canvas
  build() {
    const make = (tag, attributes = {}, ...children) => {
      const element = document.createElement(tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      element.append(...children);
      return element;
    };
    this.make = make;
    const choice = (label, name) => {
      const select = make("select", { "aria-label": label });
      select.addEventListener("change", () => { this.filter[name] = select.value; this.changed(); });
      return select;
    };
    this.countries = choice("Country", "country");
    this.models = choice("Model", "model");
    this.policies = make("select", { "aria-label": "Policy" }, make("option", { value: "" }, "All policies"),
      ...(this.root.policies ?? []).map(([id, name]) => make("option", { value: id }, name)));
    this.policies.addEventListener("change", () => {
      if (!this.policies.value) this.allow(null);
      else this.root.dispatchEvent(new CustomEvent("policy", { detail: this.policies.value }));
    });
    this.search = make("input", { type: "search", placeholder: "Find a site", "aria-label": "Find a site", "aria-controls": "map-found", autocomplete: "off" });
    this.search.addEventListener("input", () => { this.filter.text = this.search.value.trim().toLowerCase(); this.changed(); });
    this.found = make("ul", { id: "map-found", class: "map-found", hidden: "" });
    this.search.addEventListener("keydown", (event) => { if (event.key === "ArrowDown") { event.preventDefault(); this.found.querySelector("button")?.focus(); } });
    const by = choice("Colour", "none");
    by.append(make("option", { value: "load" }, "Colour: load"), make("option", { value: "health" }, "Colour: health"));
    by.onchange = () => { this.colourBy = by.value; this.legend(); this.wake(); };
    this.live = make("span", { class: "map-live", role: "status" }, "connecting");
    const button = (label, title, act) => { const b = make("button", { type: "button", "aria-label": title, title }, label); b.onclick = act; return b; };
    this.canvas = make("canvas", { tabindex: "0", role: "img", "aria-label": "Map of the sites. Arrow keys move it, plus and minus zoom; the field Find a site lists them.", "aria-describedby": "map-sum" });
    this.sum = make("p", { id: "map-sum", class: "map-sum" });
    this.tip = make("div", { class: "map-tip", hidden: "" });
    this.key = make("div", { class: "map-key" });
    this.credit = make("div", { class: "map-credit" });
    const zoom = make("div", { class: "map-zoom" },
      button("+", "Zoom in", () => this.zoom(1.6)), button("−", "Zoom out", () => this.zoom(1 / 1.6)), button("⤢", "Whole world", () => this.reset()));
    this.root.append(
      make("div", { class: "map-bar" }, make("div", { class: "map-search" }, this.search, this.found), this.countries, this.models, this.policies, by, this.live),
      make("div", { class: "map-stage" }, this.canvas, this.tip, zoom, this.key, this.credit), this.sum);
    this.pointer();
    this.canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
      if (step) { event.preventDefault(); this.move(...step); }
      else if (event.key === "+" || event.key === "=") this.zoom(1.4);
      else if (event.key === "-") this.zoom(1 / 1.4);
      else if (event.key === "0") this.reset();
    });
    this.legend();
  }

  legend() {
    const entries = this.colourBy === "load" ? LOAD : Object.entries(HEALTH).filter(([name]) => !["probing", "recovering"].includes(name));
    this.key.replaceChildren(...entries.map(([name, colour]) => {
      const dot = this.make("i"); dot.style.background = `var(${colour})`;
      return this.make("span", {}, dot, name);
    }), this.make("span", { class: "map-arcs" }, this.make("i", { class: "map-comet" }), "requests, ingress to site"));
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    this.colour = (name) => (this.known[name] ??= style.getPropertyValue(name).trim() || "#888");
    this.known = {};
  }

  // --- data
  async loadSites() {
    const answer = await fetch("/live/sites");
    if (answer.status === 401) { this.toSignIn(); return; }
    if (!answer.ok) { this.say("control does not answer", "bad"); return; }
    const { v, sites } = await answer.json();
    this.version = v;
    this.sites = sites.map((site) => ({ ...site, at: project(site.lon, site.lat) }));
    this.byName = new Map(this.sites.map((site, number) => [site.name, number]));
    this.arcs.clear(); this.recent.clear(); this.comets = []; this.selected = this.hover = -1;
    const options = (select, name, values) => select.replaceChildren(this.make("option", { value: "" }, name), ...values.map((value) => this.make("option", { value }, value)));
    const names = new Intl.DisplayNames(["en"], { type: "region" });
    const countries = [...new Set(this.sites.map((site) => site.country).filter(Boolean))].sort();
    options(this.countries, "All countries", []);
    this.countries.append(...countries.map((code) => this.make("option", { value: code }, `${code} · ${names.of(code) ?? code}`)));
    options(this.models, "All models", [...new Set(this.sites.flatMap((site) => site.models))].sort());
    this.changed();
  }

  setWorld(world) {
    this.credit.textContent = world.attribution;
    this.land = world.countries.map((country) => ({ iso2: country.iso2, path: pathOf(country.rings) }));
    this.globe = outline();
    this.resize();
  }

  listen() {
    const source = new EventSource("/live/frames");
    source.onmessage = (event) => this.frame(JSON.parse(event.data));
    source.addEventListener("trouble", (event) => this.say(JSON.parse(event.data).detail, "bad"));
    source.addEventListener("over", () => this.toSignIn());
    source.onerror = () => {
      this.say("connection lost", "bad");
      // It was refused, and is not asked for again: the answer for the sites says whether the session is over.
      if (source.readyState === EventSource.CLOSED) this.loadSites().catch(() => {});
    };
    this.source = source;
    addEventListener("pagehide", () => source.close());
  }

  // A map is read and nothing is written in it: whoever is signed out is led to the form, and back to here.
  toSignIn() {
    this.source?.close();
    location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  }

  frame(frame) {
    this.frames += 1; this.frameAt = performance.now();
    this.root.classList.remove("is-stale");
    if (frame.v !== this.version && !this.loading) {
      this.loading = this.loadSites().finally(() => { this.loading = null; });
      return;
    }
    this.state = frame.sites;
    const now = performance.now();
    let sum = 0;
    for (const [ingress, site, model, outcome, requests] of frame.flows) {
      if (!this.sites[ingress] || (this.filter.model && model !== this.filter.model)) continue;
      if (!this.shown(ingress) && !(site >= 0 && this.shown(site))) continue;
      sum += requests;
      const count = Math.min(requests, OF_A_FLOW);
      if (site < 0 || site === ingress) {
        for (let i = 0; i < count && this.rings.length < MOST_COMETS; i++)
          this.rings.push({ at: this.sites[ingress].at, bad: outcome !== "finished", from: now + (i / count) * 1000 });
        continue;
      }
      this.recent.set(`${ingress}>${site}`, { ingress, site, until: now + RECENT_MS, requests });
      for (let i = 0; i < count && this.comets.length < MOST_COMETS; i++)
        this.comets.push({ ingress, site, bad: outcome !== "finished", from: now + (i / count) * 1000 });
    }
    this.flowsSeen += sum;
    this.say(sum ? `live · ${sum} request${sum === 1 ? "" : "s"}/s` : "live", "good");
    this.summary();
    this.wake();
  }

  everySecond() {
    if (!this.root.isConnected) { clearInterval(this.timer); this.source?.close(); return; }
    if (this.recent.size && performance.now() - this.frameAt > 1500) this.wake(); // they fade also when no frame comes
    if (this.frames && performance.now() - this.frameAt > STALE_MS) {
      this.root.classList.add("is-stale");
      this.say(`no news for ${Math.round((performance.now() - this.frameAt) / 1000)} s`, "bad");
    }
    this.perSecond = this.drawn - (this.drawnBefore ?? 0); this.drawnBefore = this.drawn;
  }

  say(text, tone) { this.live.textContent = text; this.live.dataset.tone = tone; }

  summary() {
    let ready = 0, running = 0, slots = 0, waiting = 0, shown = 0;
    this.state.forEach((state, number) => {
      if (!this.shown(number)) return;
      shown += 1; ready += state[0] === "healthy"; slots += state[2]; running += state[3]; waiting += state[4];
    });
    const rule = this.allowed ? ` Under this policy ${this.allowed.processes.size} may process and ${this.allowed.enters.size} may take requests in.` : "";
    this.sum.textContent = `${shown} of ${this.sites.length} sites shown, ${ready} healthy; ${running} of ${slots} slots in use, ${waiting} requests waiting.${rule}`;
  }

  shown(number) {
    const site = this.sites[number], { country, model, text } = this.filter;
    if (this.allowed && !this.allowed.processes.has(site.name)) return false;
    return (!country || site.country === country) && (!model || site.models.includes(model)) &&
      (!text || site.name.toLowerCase().includes(text) || (site.operator ?? "").toLowerCase().includes(text));
  }

  // What the chosen policy allows; null for all. A late answer of another choice is passed over.
  allow(found) {
    if (found && found.policy !== this.policies.value) return;
    this.allowed = found && { processes: new Set(found.processes), enters: new Set(found.enters) };
    this.changed();
  }

  changed() {
    this.base = null;
    this.recent.clear(); this.comets = []; this.rings = [];
    const matches = this.filter.text ? this.sites.map((_, n) => n).filter((n) => this.shown(n)).slice(0, 12) : [];
    this.found.hidden = !this.filter.text;
    this.found.replaceChildren(...(matches.length ? matches.map((number) => {
      const site = this.sites[number];
      const button = this.make("button", { type: "button" }, `${site.name} · ${site.country ?? "–"}`);
      button.onclick = () => { this.search.value = this.filter.text = ""; this.changed(); this.choose(number, true); };
      return this.make("li", {}, button);
    }) : [this.make("li", { class: "map-none" }, "No such site")]));
    if (this.filter.country && this.view) this.showCountry();
    this.summary();
    this.wake();
  }

  choose(number, goThere = false) {
    this.selected = number;
    // Among few sites it is seen where it is, and so are the ends of its links.
    this.centred = goThere && this.sites.length >= FEW ? number : -1;
    this.centre();
    this.root.dispatchEvent(new CustomEvent("site", { detail: this.sites[number].name }));
    this.loadLinks(number);
    this.wake();
  }

  // In the middle, also when the panel of the site has taken its room.
  centre() {
    if (!this.view || !(this.centred >= 0)) return;
    const [x, y] = this.sites[this.centred].at, k = Math.max(this.view.k, this.home.k * 4);
    this.view = { k, x: this.width / 2 - x * k, y: this.height / 2 - y * k };
    this.base = null;
  }

  async loadLinks(number) {
    const name = this.sites[number].name;
    if (this.links.has(name)) return;
    this.links.set(name, []);
    const answer = await fetch(`/live/links/${encodeURIComponent(name)}`);
    if (!answer.ok) { this.links.delete(name); return; }
    const found = (await answer.json()).filter(([peer]) => this.byName.has(peer));
    found.sort((a, b) => a[1] - b[1]);
    this.links.set(name, found.slice(0, MOST_LINKS));
    this.wake();
  }

  // --- moving about
  resize() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width || !box.height) return;
    this.ratio = Math.min(devicePixelRatio || 1, 2);
    this.width = box.width; this.height = box.height;
    this.canvas.width = Math.round(box.width * this.ratio); this.canvas.height = Math.round(box.height * this.ratio);
    const whole = !this.view || this.view.k === this.home.k;
    this.home = fitTo(box.width, box.height);
    if (whole) this.view = { ...this.home };
    this.centre();
    this.base = null;
    this.wake();
  }

  reset() { this.view = { ...this.home }; this.base = null; this.wake(); }
  move(dx, dy) { this.centred = -1; this.view.x += dx; this.view.y += dy; this.base = null; this.wake(); }
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const k = Math.min(Math.max(this.view.k * factor, this.home.k * 0.8), this.home.k * 60), by = k / this.view.k;
    this.view = { k, x: x - (x - this.view.x) * by, y: y - (y - this.view.y) * by };
    this.base = null; this.wake();
  }

  showCountry() {
    const points = this.sites.filter((_, n) => this.shown(n)).map((site) => site.at);
    if (!points.length) return;
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const k = Math.min(this.width / (right - left + 0.25), this.height / (bottom - top + 0.2), this.home.k * 12);
    this.view = { k, x: this.width / 2 - ((left + right) / 2) * k, y: this.height / 2 - ((top + bottom) / 2) * k };
    this.base = null;
  }

  pointer() {
    const held = new Map();
    let travelled = 0, spread = 0;
    const place = (event) => { const box = this.canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    this.canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(Math.exp(-event.deltaY * 0.0016), ...place(event)); }, { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => { this.canvas.setPointerCapture(event.pointerId); held.set(event.pointerId, place(event)); travelled = 0; spread = 0; });
    this.canvas.addEventListener("pointermove", (event) => {
      const here = place(event), before = held.get(event.pointerId);
      if (!before) { this.point(here); return; }
      held.set(event.pointerId, here);
      if (held.size === 2) {
        const [a, b] = [...held.values()], now = Math.hypot(a[0] - b[0], a[1] - b[1]);
        if (spread) this.zoom(now / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
        spread = now; travelled = 99;
      } else {
        travelled += Math.hypot(here[0] - before[0], here[1] - before[1]);
        if (travelled > 4) this.move(here[0] - before[0], here[1] - before[1]);
      }
    });
    const release = (event) => {
      const was = held.delete(event.pointerId);
      if (was && event.type === "pointerup" && travelled <= 4) { this.point(place(event)); if (this.hover >= 0) this.choose(this.hover); }
    };
    this.canvas.addEventListener("pointerup", release);
    this.canvas.addEventListener("pointercancel", release);
    this.canvas.addEventListener("pointerleave", () => { this.hover = -1; this.tip.hidden = true; this.wake(); });
  }

  point([x, y]) {
    let best = -1, nearest = 14;
    for (let number = 0; number < this.sites.length; number++) {
      if (!this.shown(number)) continue;
      const [sx, sy] = this.onScreen(this.sites[number].at), distance = Math.hypot(sx - x, sy - y) - this.radius(number);
      if (distance < nearest) { nearest = distance; best = number; }
    }
    if (best !== this.hover) {
      this.hover = best;
      clearTimeout(this.resting);
      if (best >= 0) this.resting = setTimeout(() => this.loadLinks(best), 150);
      this.wake();
    }
    this.canvas.style.cursor = best >= 0 ? "pointer" : "grab";
    this.showTip(x, y);
  }

  showTip(x, y) {
    const site = this.sites[this.hover];
    this.tip.hidden = !site;
    if (!site) return;
    const [health, ready, slots, running, waiting, held] = this.state[this.hover] ?? ["unknown", 0, 0, 0, 0];
    const line = (text) => this.make("div", {}, text);
    const name = this.make("strong", {}, site.name);
    this.tip.replaceChildren(name, line(`${site.country ?? "no country"}${site.operator ? " · " + site.operator : ""}`),
      line(`${health} · ${running} of ${slots} slots in use · ${waiting} waiting`),
      ...(held == null ? [] : [line(`${held.toLocaleString("en").replaceAll(",", "\u202f")} tokens in KV caches in use`)]),
      line(`${ready} ready replica${ready === 1 ? "" : "s"} · ${site.models.join(", ") || "no models"}`));
    const left = Math.min(x + 16, this.width - this.tip.offsetWidth - 8), top = y + 18 + this.tip.offsetHeight > this.height ? y - this.tip.offsetHeight - 12 : y + 18;
    this.tip.style.transform = `translate(${Math.max(left, 4)}px, ${Math.max(top, 4)}px)`;
  }

  // --- drawing
  onScreen([x, y]) { return [x * this.view.k + this.view.x, y * this.view.k + this.view.y]; }

  radius(number) {
    const slots = this.state[number]?.[2] || this.sites[number].gpus || 0, few = this.sites.length < FEW;
    const zoomed = Math.min(Math.sqrt(this.view.k / this.home.k), 2.2);
    return (Math.min(Math.sqrt(slots) * 1.5, 12) + (few ? 4.5 : 2)) * zoomed;
  }

  siteColour(number) {
    const state = this.state[number];
    if (!state) return "--load-none";
    if (this.colourBy === "health") return HEALTH[state[0]] ?? "--load-none";
    if (state[0] === "down") return "--health-down";
    if (!state[2]) return "--load-none";
    const load = (state[3] + state[4]) / state[2];
    return load <= 0 ? "--load-0" : load < 0.5 ? "--load-1" : load < 0.9 ? "--load-2" : "--load-3";
  }

  // What stands still is drawn anew once something changed; what moves is drawn above it.
  wake() { this.ground = null; this.next(); }
  next() { if (!this.asked && !document.hidden) { this.asked = true; requestAnimationFrame((now) => { this.asked = false; this.draw(now); }); } }

  drawBase() {
    const base = (this.base = document.createElement("canvas"));
    base.width = this.canvas.width; base.height = this.canvas.height;
    const c = base.getContext("2d", { alpha: false }), { k, x, y } = this.view;
    c.fillStyle = this.colour("--map-sea"); c.fillRect(0, 0, base.width, base.height);
    c.setTransform(this.ratio * k, 0, 0, this.ratio * k, this.ratio * x, this.ratio * y);
    c.lineWidth = 0.7 / k; c.lineJoin = "round"; c.strokeStyle = this.colour("--map-border");
    for (const { iso2, path } of this.land) {
      c.fillStyle = this.colour(this.filter.country && iso2 === this.filter.country ? "--map-chosen" : "--map-land");
      c.fill(path); c.stroke(path);
    }
    c.lineWidth = 1 / k; c.strokeStyle = this.colour("--map-edge"); c.stroke(this.globe);
  }

  arc(ingress, site) {
    const key = `${ingress}>${site}`;
    let arc = this.arcs.get(key);
    if (!arc) this.arcs.set(key, (arc = arcBetween(this.sites[ingress], this.sites[site])));
    return arc;
  }

  // Land, links, sites and where requests went lately: all that stands still for a second.
  drawGround(now) {
    const ground = (this.ground = this.groundKept ??= document.createElement("canvas"));
    if (ground.width !== this.canvas.width) ground.width = this.canvas.width;
    if (ground.height !== this.canvas.height) ground.height = this.canvas.height;
    if (!this.base) this.drawBase();
    const c = ground.getContext("2d", { alpha: false });
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.drawImage(this.base, 0, 0);
    c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    this.drawRecent(c, now);
    this.drawLinks(c);
    this.drawSites(c);
  }

  draw(now) {
    if (!this.view || !this.land) return;
    this.drawn += 1;
    if (!this.ground) this.drawGround(now);
    const c = this.canvas.getContext("2d", { alpha: false });
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.drawImage(this.ground, 0, 0);
    c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    this.drawRings(c, now);
    this.drawComets(c, now);
    if (this.comets.length || this.rings.length) this.next();
  }

  trace(c, points) {
    const { k, x, y } = this.view;
    c.moveTo(points[0][0] * k + x, points[0][1] * k + y);
    for (let i = 1; i < points.length; i++) c.lineTo(points[i][0] * k + x, points[i][1] * k + y);
  }

  // Where requests went lately, the fainter the longer ago.
  drawRecent(c, now) {
    const shades = Array.from({ length: SHADES }, () => []);
    for (const [key, each] of this.recent) {
      const left = (each.until - now) / RECENT_MS;
      if (left <= 0) this.recent.delete(key);
      else shades[Math.min(Math.floor(left * SHADES), SHADES - 1)].push(each);
    }
    c.strokeStyle = this.colour("--arc"); c.lineWidth = 1;
    const faint = 0.32 / Math.max(1, Math.sqrt(this.recent.size / 40)); // many together are as dark as one alone
    shades.forEach((shade, i) => {
      c.globalAlpha = (faint * (i + 1)) / SHADES;
      c.beginPath();
      for (const each of shade) for (const { shown } of this.arc(each.ingress, each.site)) this.trace(c, shown);
      c.stroke();
    });
    c.globalAlpha = 1;
  }

  drawLinks(c) {
    const number = this.hover >= 0 ? this.hover : this.selected;
    if (number < 0) return;
    c.font = "600 11px " + getComputedStyle(this.root).fontFamily; c.textBaseline = "middle";
    for (const [peer, rtt] of this.links.get(this.sites[number].name) ?? []) {
      const other = this.byName.get(peer);
      if (!this.shown(other)) continue;
      c.beginPath(); c.setLineDash([4, 4]); c.lineWidth = 1.2; c.strokeStyle = this.colour("--link");
      for (const { shown } of this.arc(number, other)) this.trace(c, shown);
      c.stroke(); c.setLineDash([]);
      const [x, y] = this.onScreen(this.sites[other].at), text = `${rtt < 10 ? rtt.toFixed(1) : Math.round(rtt)} ms`, wide = c.measureText(text).width;
      c.fillStyle = this.colour("--raised"); c.globalAlpha = 0.88; c.fillRect(x - wide / 2 - 4, y - 27, wide + 8, 16); c.globalAlpha = 1;
      c.fillStyle = this.colour("--text"); c.fillText(text, x - wide / 2, y - 19);
    }
  }

  drawSites(c) {
    const groups = new Map(), few = this.sites.length < FEW || this.view.k > this.home.k * 9;
    for (let number = 0; number < this.sites.length; number++) {
      const [x, y] = this.onScreen(this.sites[number].at);
      if (x < -30 || y < -30 || x > this.width + 30 || y > this.height + 30) continue;
      const name = this.shown(number) ? this.siteColour(number) : "faint";
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push([x, y, this.radius(number), number]);
    }
    const order = ["faint", "--load-none", "--health-down", "--load-0", "--load-1", "--load-2", "--load-3", "--health-draining"];
    for (const name of order) {
      const group = groups.get(name);
      if (!group) continue;
      c.beginPath();
      for (const [x, y, r] of group) { c.moveTo(x + r, y); c.arc(x, y, r, 0, 7); }
      c.fillStyle = this.colour(name === "faint" ? "--load-none" : name);
      c.globalAlpha = name === "faint" ? 0.12 : 0.85; c.fill();
      c.globalAlpha = name === "faint" ? 0.12 : 1; c.lineWidth = 1; c.strokeStyle = this.colour("--site-edge"); c.stroke();
    }
    c.globalAlpha = 1;
    for (const number of [this.selected, this.hover]) {
      if (number < 0) continue;
      const [x, y] = this.onScreen(this.sites[number].at);
      c.beginPath(); c.arc(x, y, this.radius(number) + 4, 0, 7); c.lineWidth = 2; c.strokeStyle = this.colour("--focus"); c.stroke();
    }
    if (few) {
      c.font = "600 12px " + getComputedStyle(this.root).fontFamily; c.textBaseline = "middle"; c.lineWidth = 3; c.strokeStyle = this.colour("--map-sea");
      const taken = [];
      for (const [, group] of groups) for (const [x, y, r, number] of group) {
        if (!this.shown(number)) continue;
        const wide = c.measureText(this.sites[number].name).width;
        const left = x + r + 8 + wide > this.width ? x - r - 5 - wide : x + r + 5;
        const box = [left - 5, y - 8, left + wide + 3, y + 8];
        if (taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
        taken.push(box);
        c.strokeText(this.sites[number].name, left, y); c.fillStyle = this.colour("--text"); c.fillText(this.sites[number].name, left, y);
      }
    }
  }

  drawComets(c, now) {
    const trail = this.comets.length > MANY ? TRAIL_OF_MANY : TRAIL;
    const layers = Array.from({ length: trail }, () => ({ good: [], bad: [] })), heads = { good: [], bad: [] };
    this.comets = this.comets.filter((comet) => {
      const t = (now - comet.from) / COMET_MS;
      if (t > 1.3 || this.still) return false;
      if (t < 0) return true;
      const tone = comet.bad ? "bad" : "good";
      for (const { points, begin, end } of this.arc(comet.ingress, comet.site)) {
        const last = points.length - 1, head = t * last;
        for (let i = 0; i < trail; i++) {
          const from = (t - (0.3 * (i + 1)) / trail) * last, to = Math.min((t - (0.3 * i) / trail) * last, end);
          if (to > begin && from < end) layers[i][tone].push([points, Math.max(from, begin), to]);
        }
        if (t < 1 && head >= begin && head <= end) heads[tone].push(at(points, head));
      }
      return true;
    });
    layers.forEach((layer, i) => {
      c.globalAlpha = 0.9 * (1 - i / trail); c.lineWidth = 2.4 * (1 - (0.6 * i) / trail);
      for (const tone of ["good", "bad"]) {
        if (!layer[tone].length) continue;
        c.beginPath();
        for (const [points, from, to] of layer[tone]) {
          const [ax, ay] = this.onScreen(at(points, from)), [bx, by] = this.onScreen(at(points, to));
          c.moveTo(ax, ay); c.lineTo(bx, by);
        }
        c.strokeStyle = this.colour(tone === "good" ? "--comet" : "--load-3"); c.stroke();
      }
    });
    c.globalAlpha = 1;
    for (const tone of ["good", "bad"]) {
      c.beginPath();
      for (const point of heads[tone]) { const [x, y] = this.onScreen(point); c.moveTo(x + 2.4, y); c.arc(x, y, 2.4, 0, 7); }
      c.fillStyle = this.colour(tone === "good" ? "--comet-head" : "--load-3"); c.fill();
    }
  }

  // A ring around a site is a request that was served where it entered, or nowhere.
  drawRings(c, now) {
    const shades = new Map();
    this.rings = this.rings.filter((ring) => {
      const t = (now - ring.from) / RING_MS;
      if (t > 1) return false;
      if (t < 0) return true;
      const shade = Math.min(Math.floor(t * SHADES), SHADES - 1) * 2 + (ring.bad ? 1 : 0);
      if (!shades.has(shade)) shades.set(shade, []);
      shades.get(shade).push([...this.onScreen(ring.at), 6 + (this.still ? 6 : 16 * t)]);
      return true;
    });
    c.lineWidth = 2;
    for (const [shade, rings] of shades) {
      c.globalAlpha = 0.7 * (1 - Math.floor(shade / 2) / SHADES);
      c.strokeStyle = this.colour(shade % 2 ? "--load-3" : "--comet");
      c.beginPath();
      for (const [x, y, r] of rings) { c.moveTo(x + r, y); c.arc(x, y, r, 0, 7); }
      c.stroke();
    }
    c.globalAlpha = 1;
  }
}
