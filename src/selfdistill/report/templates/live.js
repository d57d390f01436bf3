// Asks the server for the page every few seconds, and puts its new content in place of the old.
{
  let tag = "";
  let last = document.querySelector("main").innerHTML;
  const told = (sentence) => {
    const line = document.querySelector(".live .state");
    if (line) line.textContent = sentence;
  };
  const replace = (main) => {
    const summaries = (root) => [...root.querySelectorAll("details > summary")];
    const open = new Set(summaries(document).filter((one) => one.parentElement.open).map((one) => one.textContent));
    const { scrollX, scrollY } = window;
    hideTip();
    document.querySelector("main").replaceWith(main);
    for (const one of summaries(main)) if (open.has(one.textContent)) one.parentElement.open = true;
    wire(main);
    window.scrollTo(scrollX, scrollY);
  };
  const ask = async () => {
    // A reader who marks text or moves among tokens keeps them until done.
    const busy = !document.getSelection().isCollapsed || document.activeElement.closest(".t, .canvas svg");
    try {
      const answer = busy ? null : await fetch(location.pathname, { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
      if (answer && answer.status === 200) {
        tag = answer.headers.get("ETag");
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const main = page.querySelector("main");
        if (main.innerHTML !== last) {
          last = main.innerHTML;
          document.title = page.title;
          replace(main);
        }
        told("");
      } else if (answer && answer.status !== 304) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        told(`Not updated: ${(page.querySelector(".lead") || page.body).textContent.trim()}`);
        tag = "";
      }
    } catch {
      told("Not updated: the server does not answer.");
      tag = "";
    }
    const line = document.querySelector(".live[data-every]");
    if (line) setTimeout(ask, 1000 * line.dataset.every);
  };
  const line = document.querySelector(".live[data-every]");
  if (line) setTimeout(ask, 1000 * line.dataset.every);
}
