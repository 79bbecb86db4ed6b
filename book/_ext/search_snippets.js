// Below each result of a search the section that fits best, and its words around what was asked for. The texts come with the
// page (search_texts.js), for a page that was opened from a disk may not read other files.
document.addEventListener("DOMContentLoaded", () => {
  const query = new URLSearchParams(location.search).get("q") || "";
  const words = query.toLowerCase().split(/[^\p{L}\p{N}]+/u).filter(Boolean);
  const stems = words.map((word) => word.slice(0, Math.max(4, word.length - 2)));
  const list = document.getElementById("search-results");
  if (!stems.length || !list) return;

  const escaped = stems.map((stem) => stem.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const any = new RegExp(`(${escaped.join("|")})`, "i");
  const found = (text) => stems.filter((stem) => text.toLowerCase().includes(stem)).length;

  function tell(item) {
    const link = item.querySelector(":scope > a");
    if (!link || item.querySelector(":scope > span, .context")) return;
    const [page, anchor] = link.getAttribute("href").split("#");
    const sections = SEARCH_TEXTS[page.replace(/\.html.*$/, "")] || [];
    const best = sections.find((section) => section.anchor === anchor)
      || sections.reduce((a, b) => (found(b.title + " " + b.text) > found(a.title + " " + a.text) ? b : a), sections[0]);
    if (!best) return;
    const start = Math.max(best.text.search(any) - 100, 0);
    const shown = (start ? "… " : "") + best.text.slice(start, start + 240) + (start + 240 < best.text.length ? " …" : "");
    const context = document.createElement("p");
    context.className = "context";
    if (best.anchor && best !== sections[0]) {
      const section = document.createElement("a");
      section.href = `${page}#${best.anchor}`;
      section.textContent = best.title;
      context.append(section, ": ");
    }
    for (const [place, part] of shown.split(any).entries()) {
      const piece = document.createElement(place % 2 ? "mark" : "span");
      piece.textContent = part;
      context.append(piece);
    }
    item.append(context);
  }

  const look = () => list.querySelectorAll("ul.search > li").forEach(tell);
  new MutationObserver(look).observe(list, { childList: true, subtree: true });
  look();
});
