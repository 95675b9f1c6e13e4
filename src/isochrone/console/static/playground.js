// A conversation with a model. The key stays in this page: it is sent with each message and kept
// nowhere. What models and people write is only ever written as text.
const LOOKS_MS = [300, 700, 1000, 1500, 2000, 3000, 4000, 6000], HANDED_OVER = "isochrone-key";
const IDEAS = ["Tell me a story about a dragon.", "Who lives in the forest?", "What did the fox say to the bear?"];

export function start(root) {
  if (root.dataset.started) return;
  root.dataset.started = "yes";
  new Playground(root, JSON.parse(root.dataset.setup));
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

class Playground {
  constructor(root, setup) {
    this.root = root; this.said = []; this.running = null;
    this.build(setup);
    // The page where a key was just made left it in this tab's store; it is taken out at once.
    this.key.value = sessionStorage.getItem(HANDED_OVER) ?? "";
    sessionStorage.removeItem(HANDED_OVER);
    (this.key.value ? this.text : this.key).focus();
  }

  build({ models, sites }) {
    const field = (label, control) => make("label", { class: "chat-field" }, make("span", {}, label), control);
    const choice = (options) => make("select", {}, ...options.map(([value, label]) => make("option", { value }, label)));
    this.key = make("input", { type: "password", autocomplete: "off", spellcheck: "false", placeholder: "iso_…", "aria-label": "Key" });
    this.model = choice(models.map((name) => [name, name]));
    this.site = choice(sites);
    this.most = make("input", { type: "number", min: "1", max: "100000", value: "200" });
    const key = field("Key", this.key);
    key.classList.add("is-wide");
    const bar = make("div", { class: "chat-bar" }, key, field("Model", this.model), field("Enter at", this.site), field("Most tokens", this.most));
    this.log = make("div", { class: "chat-log", role: "log", "aria-label": "Conversation", tabindex: "0" });
    this.text = make("textarea", { rows: "2", placeholder: "Say something", "aria-label": "Message" });
    this.button = make("button", { type: "submit", class: "chat-send" }, "Send");
    this.fresh = make("button", { type: "button", class: "chat-fresh" }, "New conversation");
    const form = make("form", { class: "chat-form" }, this.text, make("div", { class: "chat-acts" }, this.button, this.fresh));
    form.addEventListener("submit", (event) => { event.preventDefault(); this.running ? this.running.abort() : this.send(); });
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); if (!this.running) this.send(); }
    });
    this.fresh.addEventListener("click", () => { this.running?.abort(); this.said = []; this.greet(); this.text.focus(); });
    this.root.append(bar, this.log, form);
    this.greet();
  }

  greet() {
    const keys = make("a", { href: "/keys" }, "Make a key");
    const ideas = make("div", { class: "chat-ideas" }, ...IDEAS.map((idea) => {
      const button = make("button", { type: "button" }, idea);
      button.addEventListener("click", () => { this.text.value = idea; this.key.value ? this.send() : this.key.focus(); });
      return button;
    }));
    this.log.replaceChildren(make("div", { class: "chat-empty" },
      make("p", {}, "Every message goes to the site that answers soonest, among those that the key allows."),
      make("p", {}, keys, ", or paste one above. It stays in this page: a reload forgets it."), ideas));
  }

  async send() {
    const content = this.text.value.trim(), key = this.key.value.replace(/[^!-~]/g, ""); // what is pasted may hold what nobody sees
    if (!content) return this.text.focus();
    if (!key) { this.key.focus(); return this.key.classList.add("is-missing"); }
    this.key.classList.remove("is-missing");
    const said = this.said; // a new conversation begins another one
    if (!said.length) this.log.replaceChildren();
    said.push({ role: "user", content });
    this.log.append(make("div", { class: "chat-said is-mine" }, make("p", {}, content)));
    this.text.value = "";
    const answer = new Answer(this.log, this.site.selectedOptions[0].value);
    this.running = new AbortController();
    this.button.textContent = "Stop";
    try {
      const body = { model: this.model.value, messages: said, stream: true, stream_options: { include_usage: true } };
      if (Number(this.most.value) > 0) body.max_tokens = Number(this.most.value);
      await answer.ask(key, body, this.running.signal);
    } finally {
      this.running = null;
      this.button.textContent = "Send";
      // A question without an answer is not part of what is said next.
      if (answer.content) said.push({ role: "assistant", content: answer.content }); else said.pop();
    }
    this.text.focus();
  }
}

class Answer {
  constructor(log, site) {
    this.log = log; this.site = site; this.content = ""; this.usage = null;
    this.text = make("p", {}, "…");
    this.facts = make("div", { class: "chat-facts" });
    this.box = make("div", { class: "chat-said" }, this.text, this.facts);
    log.append(this.box);
    this.follow(true);
  }

  // Stay at the end, unless somebody reads further up.
  follow(always = false) {
    const { log } = this;
    if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 120) log.scrollTop = log.scrollHeight;
  }

  fact(name, value, tone = "") {
    const found = [...this.facts.children].find((each) => each.dataset.name === name);
    const fact = make("span", { class: `chat-fact ${tone}`, "data-name": name }, make("b", {}, value), ` ${name}`);
    found ? found.replaceWith(fact) : this.facts.append(fact);
    this.follow();
  }

  fail(message) {
    this.box.classList.add("is-bad");
    this.facts.before(make("p", { class: "chat-problem", role: "alert" }, message));
    if (!this.content) this.text.remove();
    this.follow();
  }

  async ask(key, body, signal) {
    const began = performance.now();
    let reply = null;
    try {
      reply = await fetch(`/playground/chat?site=${encodeURIComponent(this.site)}`, {
        method: "POST", signal, body: JSON.stringify(body),
        headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      });
      if (!reply.ok) this.refused(reply, await reply.text());
      else await this.read(reply, began);
    } catch (error) {
      if (error.name === "AbortError") this.fact("", "stopped"); else this.fail(`The answer broke off: ${error.message}`);
    }
    // Of a request without a valid key nobody's books say anything.
    this.close(reply?.status === 401 ? null : reply?.headers.get("x-isochrone-request"));
  }

  refused(reply, text) {
    let message = `The gateway answered ${reply.status}.`;
    try { message = JSON.parse(text).error.message; } catch { /* not in the usual shape: the status says it */ }
    const reason = reply.headers.get("x-isochrone-reason");
    this.fail(reason ? `${message} (${reason})` : message);
  }

  async read(reply, began) {
    const site = reply.headers.get("x-isochrone-site"), country = reply.headers.get("x-isochrone-country");
    if (site) this.fact(country ? named(country) : "", site, "is-place");
    const lines = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", done = false;
    for (;;) {
      const { value, done: over } = await lines.read();
      if (over) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const line of parts) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") { done = true; continue; }
        this.take(JSON.parse(data), began);
      }
    }
    if (!done) throw new Error("its end is missing");
  }

  take(event, began) {
    if (event.error) throw new Error(event.error.message);
    if (event.usage) {
      this.usage = event.usage;
      this.fact("tokens in and out", `${event.usage.prompt_tokens} + ${event.usage.completion_tokens}`);
    }
    const piece = event.choices?.[0]?.delta?.content;
    if (!piece) return;
    if (!this.content) this.fact("to the first token", duration(performance.now() - began));
    this.content += piece;
    this.text.textContent = this.content;
    this.follow();
  }

  close(id) {
    if (!this.content && this.text.isConnected) this.text.textContent = this.box.classList.contains("is-bad") ? "" : "(nothing)";
    if (!id) return;
    this.facts.append(make("a", { href: `/explain?id=${encodeURIComponent(id)}`, target: "_blank", rel: "noopener", "data-name": "why" }, "Why there?"));
    this.box.dataset.request = id;
    this.book(id);
  }

  // What it cost is known a moment after its end.
  async book(id) {
    for (const wait of LOOKS_MS) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      if (!this.box.isConnected) return;
      const reply = await fetch(`/playground/requests/${encodeURIComponent(id)}`).catch(() => null);
      if (reply?.status === 401) return;
      if (reply?.status !== 200) continue;
      const { timings, tokens, price } = await reply.json();
      if (timings.first_byte_ms !== null) this.fact("to the first token", duration(timings.first_byte_ms));
      const input = tokens.input_uncached + tokens.input_cached;
      this.fact("tokens in and out", `${input} + ${tokens.output}`);
      if (price) this.fact(price.currency, price.amount, "is-price");
      this.box.dataset.booked = "yes";
      this.facts.append(this.facts.querySelector("[data-name=why]"));
      return;
    }
    this.fact("", "not in this organisation's books yet");
  }
}

function named(country) {
  try { return new Intl.DisplayNames(["en"], { type: "region" }).of(country); } catch { return country; }
}

function duration(ms) {
  return ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
