"use strict";
// Hover and keyboard only: the page is complete without it. Text is inserted with textContent, never as HTML.
const SVG = "http://www.w3.org/2000/svg";

const tip = document.getElementById("tip");
const hideTip = () => { tip.hidden = true; };
const showTip = (token) => {
  const head = document.createElement("b");
  head.textContent = JSON.stringify(token.textContent);
  const lines = [];
  // A block may describe its tokens itself, as in the page of inspect.
  const { describe } = token.parentElement;
  if (describe) lines.push(...describe(token));
  if (token.dataset.u) lines.push(`u ${token.dataset.u} nats`);
  if (token.dataset.p) lines.push(`log-prob ${token.dataset.p}`);
  tip.replaceChildren(head, ...lines.map((text) => {
    const line = document.createElement("div");
    line.textContent = text;
    return line;
  }));
  tip.hidden = false;
  const box = token.getClientRects()[0] || token.getBoundingClientRect();
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(6, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 6))}px`;
  tip.style.top = `${above > 6 ? above : box.bottom + 8}px`;
};
// Adds hover and keyboard to the charts and the tokens below an element.
const wire = (root) => {
  for (const canvas of root.querySelectorAll(".canvas")) {
    const svg = canvas.querySelector("svg");
    const readout = canvas.querySelector(".readout");
    const rule = svg.querySelector(".rule");
    const spots = svg.querySelector(".spots");
    const columns = JSON.parse(canvas.querySelector("script").textContent);
    const width = svg.viewBox.baseVal.width;
    let current = -1;

    const hide = () => {
      current = -1;
      readout.hidden = true;
      rule.setAttribute("visibility", "hidden");
      spots.replaceChildren();
    };
    const show = (index) => {
      if (index === current) return;
      current = index;
      const column = columns[index];
      rule.setAttribute("x1", column.x);
      rule.setAttribute("x2", column.x);
      rule.setAttribute("visibility", "visible");
      spots.replaceChildren(...column.rows.map(([, , y, tone]) => {
        const spot = document.createElementNS(SVG, "circle");
        spot.setAttribute("cx", column.x);
        spot.setAttribute("cy", y);
        spot.setAttribute("r", "3.6");
        spot.setAttribute("class", `tone-${tone}`);
        return spot;
      }));
      const head = document.createElement("b");
      head.textContent = `${svg.dataset.x} ${column.step}`;
      readout.replaceChildren(head, ...column.rows.map(([label, value]) => {
        const line = document.createElement("div");
        line.textContent = `${label} ${value}`;
        return line;
      }));
      readout.hidden = false;
      // Beside the rule, on the side with more room, so that it never covers the value it reads.
      const box = svg.getBoundingClientRect();
      const x = (column.x / width) * box.width;
      const left = x > box.width / 2 ? x - readout.offsetWidth - 10 : x + 10;
      readout.style.left = `${Math.max(0, Math.min(left, box.width - readout.offsetWidth))}px`;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * width;
      let nearest = 0;
      columns.forEach((column, index) => {
        if (Math.abs(column.x - x) < Math.abs(columns[nearest].x - x)) nearest = index;
      });
      show(nearest);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const last = columns.length - 1;
      const target = { ArrowRight: Math.min(current + 1, last), ArrowLeft: Math.max(current - 1, 0), Home: 0, End: last }[event.key];
      if (event.key === "Escape") hide();
      if (target === undefined) return;
      event.preventDefault();
      show(target);
    });
  }

  for (const block of root.querySelectorAll(".tokens")) {
    block.addEventListener("pointerover", (event) => {
      const token = event.target.closest(".t");
      if (token) showTip(token); else hideTip();
    });
    block.addEventListener("pointerleave", hideTip);
    block.addEventListener("focusout", (event) => {
      hideTip();
      if (event.target !== block) event.target.removeAttribute("aria-describedby");
    });
    block.addEventListener("keydown", (event) => {
      const tokens = block.children;
      const index = [...tokens].indexOf(document.activeElement);
      const target = {
        ArrowRight: Math.min(index + 1, tokens.length - 1), ArrowLeft: Math.max(index - 1, 0), Home: 0, End: tokens.length - 1,
      }[event.key];
      if (event.key === "Escape") block.focus();
      if (target === undefined || !tokens.length) return;
      event.preventDefault();
      const token = tokens[target];
      token.tabIndex = -1;
      token.setAttribute("aria-describedby", "tip");
      token.focus();
      token.scrollIntoView({ block: "nearest" });
      showTip(token);
    });
  }
};
document.addEventListener("scroll", () => {
  const token = document.activeElement.closest(".t");
  if (token && !tip.hidden) showTip(token); else hideTip();
}, { passive: true });
wire(document);
