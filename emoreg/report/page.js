"use strict";
(() => {
  const PRINTED = { width: 680, height: 340 }; // CSS pixels: an A4 page without its margins, and two figures on it
  const HEIGHT = 450; // of a figure that names none
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const plots = [];

  /** The template of a figure in the colours that the page has now: what a figure sets itself stays. */
  const themed = (template, printed) => {
    const style = getComputedStyle(document.documentElement);
    const color = (name, onPaper) => printed ? onPaper : style.getPropertyValue(`--${name}`).trim();
    const [ink, line, grid, paper] = [color("ink", "#000"), color("soft", "#444"), color("grid", "#ddd"), color("paper", "#fff")];
    const given = template?.layout ?? {};
    const axis = (name) => ({ ...given[name], gridcolor: grid, zerolinecolor: grid, linecolor: line, tickcolor: line });
    return {
      ...template,
      layout: {
        ...given,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { ...given.font, color: ink },
        xaxis: axis("xaxis"),
        yaxis: axis("yaxis"),
        hoverlabel: { ...given.hoverlabel, bgcolor: paper, bordercolor: line, font: { color: ink } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink },
      },
    };
  };

  const draw = async (figure) => {
    const box = figure.querySelector(".plot");
    const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
    const { width, height, title, template, ...rest } = layout; // the page has the title, and gives the width
    await Plotly.newPlot(box, data, { ...rest, height: height ?? HEIGHT, autosize: true, template: themed(template, false) }, {
      responsive: true,
      displaylogo: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d"],
      toImageButtonOptions: { filename: figure.id, scale: 2 },
    });
    plots.push({ box, template, height });
  };

  const restyle = (printed) => plots.forEach(({ box, template, height }) => Plotly.relayout(box, {
    template: themed(template, printed),
    height: height ?? (printed ? PRINTED.height : HEIGHT),
    ...(printed ? { width: PRINTED.width } : { width: null, autosize: true }),
  }));

  dark.addEventListener("change", () => restyle(false));

  addEventListener("beforeprint", () => { restyle(true); });
  addEventListener("afterprint", () => { restyle(false); });

  (async () => {
    for (const figure of document.querySelectorAll("figure")) await draw(figure);
    document.documentElement.dataset.drawn = plots.length;
  })();
})();
