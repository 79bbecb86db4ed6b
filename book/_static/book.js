// docutils calls the bibliography a list without list items; screen readers do better without the word.
document.addEventListener("DOMContentLoaded", () => {
  for (const list of document.querySelectorAll(".citation-list[role=list]")) list.removeAttribute("role");
});
