// On a reader's first visit no mode is stored, which the theme would report as an error.
document.documentElement.dataset.mode ||= "auto";

// Folded parts are not printed; for it all are unfolded but those of code alone.
function printUnfolded() {
  const folds = [...document.querySelectorAll("details.fold:is(.fold-text, .solution, .answer):not([open])")];
  for (const fold of folds) fold.open = true;
  addEventListener("afterprint", () => { for (const fold of folds) fold.open = false; }, { once: true });
  print();
}

// What screen readers need and the theme leaves out.
document.addEventListener("DOMContentLoaded", () => {
  // docutils calls the bibliography a list, but its entries no list items
  for (const list of document.querySelectorAll(".citation-list[role=list]")) list.removeAttribute("role");
  // in the list of sources a package's modules stand beside its item, not in it
  for (const list of document.querySelectorAll("article ul > ul")) list.previousElementSibling.append(list);
  // the arrows that unfold the contents have no name
  for (const arrow of document.querySelectorAll(".bd-sidebar summary"))
    arrow.setAttribute("aria-label", "Pages under " + arrow.closest("li").querySelector("a").textContent.trim());
});
