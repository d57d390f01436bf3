// Requests the page from the server every few seconds, and replaces the content that has changed.
{
  let tag = "";
  let last = document.querySelector("main").innerHTML;
  const report = (message) => {
    const line = document.querySelector(".live .state");
    if (line) line.textContent = message;
  };
  const replace = (main) => {
    const summaries = (root) => [...root.querySelectorAll("details > summary")];
    const open = new Set(summaries(document).filter((summary) => summary.parentElement.open).map((summary) => summary.textContent));
    const { scrollX, scrollY } = window;
    hideTip();
    document.querySelector("main").replaceWith(main);
    for (const summary of summaries(main)) if (open.has(summary.textContent)) summary.parentElement.open = true;
    wire(main);
    window.scrollTo(scrollX, scrollY);
  };
  const ask = async () => {
    // No update while the reader has selected text or moves among tokens: it would be lost.
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
        report("");
      } else if (answer && answer.status !== 304) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        report(`Not updated: ${(page.querySelector(".lead") || page.body).textContent.trim()}`);
        tag = "";
      }
    } catch {
      report("Not updated: the server does not answer.");
      tag = "";
    }
    const line = document.querySelector(".live[data-every]");
    if (line) setTimeout(ask, 1000 * line.dataset.every);
  };
  const line = document.querySelector(".live[data-every]");
  if (line) setTimeout(ask, 1000 * line.dataset.every);
}
