// In a page without a kernel: each figure's module, which stands inside it as text, with a plain object for its model. What
// all of them draw with stands in the first figure of a page of the book, in each figure of a notebook.
for (const figure of document.querySelectorAll("figure.live:not([data-ready])")) {
  figure.dataset.ready = "";
  const drawing = figure.querySelector(".live-drawing") ?? document.querySelector(".live-drawing");
  const parts = [drawing.textContent, figure.querySelector(".live-module").textContent];
  const address = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
  import(address).then(({ default: widget }) => {
    const values = { state: JSON.parse(figure.dataset.state) };
    const model = { get: (name) => values[name], set: (name, value) => { values[name] = value; }, save_changes() {} };
    widget.render({ model, el: figure.querySelector(".live-still") });
  }, (error) => console.error(error));
}
