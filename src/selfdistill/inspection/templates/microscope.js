// The microscope decodes only the selected completion. Text is inserted with textContent, never as HTML.
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const pick = Object.fromEntries(["completion", "signal", "beside", "scale", "outcome", "sort", "search"].map((id) => [id, document.getElementById(id)]));
  const panes = [document.getElementById("left"), document.getElementById("right")];
  const detail = document.getElementById("detail");
  const first = detail.firstElementChild;
  const options = [...pick.completion.options];
  let current = null;
  let index = 0;
  let pinned = -1;

  const half = (bits) => {
    const sign = bits & 0x8000 ? -1 : 1;
    const power = (bits >> 10) & 31;
    const rest = bits & 1023;
    if (power === 31) return rest ? NaN : sign * Infinity;
    return sign * (power ? 2 ** (power - 15) * (1 + rest / 1024) : 2 ** -24 * rest);
  };
  // inspection/page.py documents the layout.
  const bytesOf = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const Id = data.wide ? Uint32Array : Uint16Array;
  const decode = (index) => {
    const text = atob(document.getElementById(`block-${index}`).textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
    const count = data.lengths[index];
    let at = 0;
    const take = (Kind, length) => {
      const size = Kind.BYTES_PER_ELEMENT * length;
      const part = new Kind(bytes.slice(at, at + size).buffer);
      at += size;
      return part;
    };
    const columns = data.columns.map(() => Float32Array.from(take(Uint16Array, count), half));
    const pieces = take(Id, count);
    const ids = data.sides.map(() => take(Id, count * data.alternatives));
    const chances = data.sides.map(() => Float32Array.from(take(Uint16Array, count * data.alternatives), half));
    return { count, columns, pieces, ids, chances, classes: take(Uint8Array, count) };
  };

  // The text of a completion: only the ids of its pieces are decoded, a whole group of four base64 signs at a time.
  const textOf = (index) => {
    const count = data.lengths[index];
    const from = 2 * count * data.columns.length;
    const to = from + Id.BYTES_PER_ELEMENT * count;
    const start = Math.floor(from / 3);
    const part = document.getElementById(`block-${index}`).textContent.slice(4 * start, 4 * Math.ceil(to / 3));
    const ids = new Id(bytesOf(part).slice(from - 3 * start, to - 3 * start).buffer);
    return Array.from(ids, (id) => data.pieces[id][0] + data.pieces[id][1]).join("");
  };

  const signed = (value) => {
    if (Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    const text = size !== 0 && size < 0.001 ? size.toExponential(1) : size.toFixed(3);
    return (value > 0 ? "+" : value < 0 ? "−" : "") + text;
  };
  const make = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };

  // The sum of the numbers that are known; NaN if none is.
  const sum = (values) => {
    const known = values.filter((value) => !Number.isNaN(value));
    return known.length ? known.reduce((a, b) => a + b, 0) : NaN;
  };
  const paint = (pane, shade) => {
    const { name } = data.shades[shade];
    const limit = data.shades[shade][pick.scale.value];
    const values = current.columns[shade];
    const block = pane.querySelector(".tokens");
    const all = document.createDocumentFragment();
    // The words of the environment stand before the first token of the next turn, below the sum of the turn before.
    const said = data.texts[index].said || {};
    let turn = 1;
    let begin = 0;
    for (let n = 0; n < current.count; n += 1) {
      const [before, body, unseen] = data.pieces[current.pieces[n]];
      if (before) all.append(before);
      const value = values[n];
      const strength = Math.round(100 * Math.min(1, Math.abs(value) / limit));
      const token = make("span", body, `t${value > 0 ? " p" : value < 0 ? " n" : ""}${unseen ? " unseen" : ""}`);
      if (said[n] !== undefined) {
        token.dataset.said = `turn ${turn}: Σ ${signed(sum(values.slice(begin, n)))}\n${said[n]}\n`;
        turn += 1;
        begin = n;
      }
      if (strength) token.style.setProperty("--a", strength);
      all.append(token);
    }
    block.replaceChildren(all);
    block.dataset.shade = shade;
    const whole = sum(values);
    const last = turn > 1 ? `, turn ${turn}: Σ ${signed(sum(values.slice(begin)))}` : "";
    pane.querySelector(".shade").textContent = name;
    pane.querySelector(".total").textContent = Number.isNaN(whole) ? "no numbers for this completion" : `Σ ${signed(whole)}${last}`;
    const ends = pane.querySelectorAll(".scale i");
    ends[0].textContent = `−${limit}`;
    ends[2].textContent = `+${limit}`;
    pane.querySelector(".scale").setAttribute("aria-label", `Colour scale of ${name}: blue is negative, plain is zero, orange is positive; full colour at ${limit}`);
  };

  const rows = (head, lines) => {
    const table = make("table");
    const top = make("tr");
    top.append(...head.map((word) => make(word ? "th" : "td", word.replaceAll("_", "_\u200b"))));
    table.append(top, ...lines.map(([name, ...cells]) => {
      const line = make("tr");
      // Long names of contexts break at their underscores.
      line.append(make("th", name.replaceAll("_", "_\u200b")), ...cells.map((word) => make("td", word)));
      return line;
    }));
    return table;
  };
  const describe = (n) => {
    const value = (name) => { const at = data.columns.indexOf(name); return at < 0 ? NaN : current.columns[at][n]; };
    const student = value("logprob student");
    const head = make("h3", JSON.stringify(data.pieces[current.pieces[n]][1]));
    const position = make("p", `token ${n + 1} of ${current.count}, ${data.classes[current.classes[n]]}`, "note");
    const contexts = data.contexts.map((name) => {
      const gain = name === "student" ? NaN : value(`u ${name}`);
      const logprob = name === "student" ? student : student + gain;
      return [name, signed(logprob), signed(gain), signed(value(`entropy ${name}`)).replace("+", "")];
    });
    const parts = [head, position, rows(["", "log-prob", "u", "entropy"], contexts)];
    // A teacher with weights of its own has a column of pMI and one of drift.
    const teachers = data.columns.filter((name) => name.startsWith("pmi ")).map((name) => name.slice(4));
    if (teachers.length) parts.push(rows(["", "pmi", "drift"], teachers.map((name) => [name, signed(value(`pmi ${name}`)), signed(value(`drift ${name}`))])));
    if (data.methods.length) parts.push(rows(["", "credit"], data.methods.map((name) => [name, signed(value(`credit ${name}`))])));
    data.sides.forEach((side, s) => {
      const list = Array.from({ length: data.alternatives }, (_, k) => {
        const at = n * data.alternatives + k;
        const chance = Math.exp(current.chances[s][at]);
        return Number.isNaN(chance) ? null : [JSON.stringify(data.words[current.ids[s][at]]), chance < 0.0005 ? "<0.1%" : `${(100 * chance).toFixed(1)}%`];
      }).filter(Boolean);
      parts.push(rows([`likeliest: ${side}`, ""], list.length ? list : [["not shown", ""]]));
    });
    detail.replaceChildren(...parts);
  };
  for (const pane of panes) {
    const block = pane.querySelector(".tokens");
    block.describe = (token) => {
      const n = Array.prototype.indexOf.call(block.children, token);
      describe(n);
      for (const other of panes) {
        for (const twin of other.querySelectorAll(".twin")) twin.classList.remove("twin");
        if (other !== pane && !other.hidden) other.querySelector(".tokens").children[n].classList.add("twin");
      }
      const shade = Number(block.dataset.shade);
      return [`${data.shades[shade].name} ${signed(current.columns[shade][n])}`];
    };
  }

  const repaint = () => {
    paint(panes[0], Number(pick.signal.value));
    panes[1].hidden = pick.beside.value === "";
    document.getElementById("panes").classList.toggle("two", !panes[1].hidden);
    if (panes[1].hidden) panes[1].querySelector(".tokens").replaceChildren();
    else paint(panes[1], Number(pick.beside.value));
    document.getElementById("tip").hidden = true;
    pin(pinned);
  };
  // A link to a token counts from one, as the page does: #completion=12&token=40.
  const link = (n) => history.replaceState(null, "", `#completion=${index + 1}${n < 0 ? "" : `&token=${n + 1}`}`);
  const pin = (n) => {
    pinned = n;
    for (const pane of panes) {
      for (const old of pane.querySelectorAll(".pinned")) old.classList.remove("pinned");
      const token = pane.querySelector(".tokens").children[n];
      if (token) token.classList.add("pinned");
    }
    if (n >= 0) describe(n);
  };
  for (const pane of panes) {
    const block = pane.querySelector(".tokens");
    block.addEventListener("click", (event) => {
      const token = event.target.closest(".t");
      if (!token) return;
      pin(Array.prototype.indexOf.call(block.children, token));
      link(pinned);
    });
    // The panel goes back to the token that was picked.
    block.addEventListener("pointerleave", () => { if (pinned >= 0) describe(pinned); });
  }

  const show = (to) => {
    index = to;
    pick.completion.value = String(to);
    current = decode(to);
    const { prompt, feedback } = data.texts[to];
    document.getElementById("prompt").textContent = prompt;
    const feedbackLine = document.getElementById("feedback");
    feedbackLine.textContent = feedback ? `Feedback: ${feedback}` : "";
    feedbackLine.hidden = !feedback;
    detail.replaceChildren(first);
    pinned = -1;
    repaint();
    for (const pane of panes) pane.querySelector(".tokens").scrollTop = 0;
  };

  let texts = null;
  const matching = () => {
    const words = pick.search.value.trim().toLowerCase();
    if (words && !texts) {
      texts = data.texts.map(({ prompt, feedback }, n) => [data.names[n], prompt, feedback, textOf(n)].join("\n").toLowerCase());
    }
    const matches = options.map((_, n) => n).filter((n) => (
      (!pick.outcome.value || data.outcomes[n] === pick.outcome.value) && (!words || texts[n].includes(words))
    ));
    const { sums } = data.shades[pick.signal.value];
    const size = {
      sum: (n) => (sums[n] === null ? -Infinity : Math.abs(sums[n])),
      reward: (n) => (data.rewards[n] === null ? -Infinity : data.rewards[n]),
      length: (n) => data.lengths[n],
    }[pick.sort.value];
    return size ? matches.sort((a, b) => (size(b) === size(a) ? a - b : size(b) - size(a))) : matches;
  };
  // Keeps the completion that is shown if the list still has it.
  const list = () => {
    const matches = matching();
    pick.completion.replaceChildren(...matches.map((n) => options[n]));
    document.getElementById("count").textContent = `${matches.length} of ${options.length} completions`;
    for (const id of ["previous", "next"]) document.getElementById(id).disabled = matches.length < 2;
    pick.completion.disabled = !matches.length;
    if (matches.includes(index)) pick.completion.value = String(index);
    else if (matches.length) { show(matches[0]); link(-1); }
  };
  const step = (by) => {
    const count = pick.completion.options.length;
    if (!count) return;
    show(Number(pick.completion.options[(pick.completion.selectedIndex + by + count) % count].value));
    link(-1);
  };
  const follow = () => {
    const wish = new URLSearchParams(location.hash.slice(1));
    const target = document.getElementById(location.hash.slice(1));
    const fold = target && target.closest("details");
    if (fold && !fold.open) { fold.open = true; target.scrollIntoView(); }
    const to = Number(wish.get("completion")) - 1;
    if (!Number.isInteger(to) || !options[to]) return;
    if (![...pick.completion.options].includes(options[to])) {
      for (const id of ["outcome", "search"]) pick[id].value = "";
      list();
    }
    show(to);
    const n = Number(wish.get("token")) - 1;
    if (!Number.isInteger(n) || n < 0 || n >= current.count) return;
    pin(n);
    panes[0].querySelector(".tokens").children[n].scrollIntoView({ block: "center" });
  };
  pick.completion.addEventListener("change", () => { show(Number(pick.completion.value)); link(-1); });
  pick.signal.addEventListener("change", () => { if (pick.sort.value === "sum") list(); repaint(); });
  pick.beside.addEventListener("change", repaint);
  pick.scale.addEventListener("change", repaint);
  pick.outcome.addEventListener("change", list);
  pick.sort.addEventListener("change", () => { list(); if (pick.completion.options.length) { show(Number(pick.completion.options[0].value)); link(-1); } });
  pick.search.addEventListener("input", list);
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  window.addEventListener("hashchange", follow);
  // Browsers put back what was picked before a reload only after this script has run.
  for (const id of ["beside", "outcome", "sort", "search"]) pick[id].value = "";
  pick.scale.value = "limit";
  pick.signal.value = String(Math.max(0, data.shades.findIndex(({ name }) => name.startsWith("u "))));
  show(0);
  follow();
}
