// In a page without a kernel: each figure's module, which stands inside it as text, with a plain object for its model.
for (const figure of document.querySelectorAll("figure.live:not([data-ready])")) {
  figure.dataset.ready = "";
  const source = figure.querySelector("script[type='text/plain']").textContent;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  import(address).then(({ default: widget }) => {
    const values = { state: JSON.parse(figure.dataset.state) };
    const model = { get: (name) => values[name], set: (name, value) => { values[name] = value; }, save_changes() {} };
    widget.render({ model, el: figure.querySelector(".live-still") });
  }, (error) => console.error(error));
}
