// Numbers under the pointer. The plots themselves need no script.
const tip = document.getElementById("tip");
const write = {
  plain: (y) => y.toFixed(y < 100 ? 4 : 1),
  scientific: (y) => y.toExponential(3),
  percent: (y) => (100 * y).toFixed(1) + " %",
  count: (y) => Math.round(y).toLocaleString("en"),
};
for (const figure of document.querySelectorAll("figure.plot")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const hide = () => { tip.hidden = true; cursor.style.visibility = "hidden"; };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * data.width - data.px[0]) / (data.px[1] - data.px[0]);
    if (share < -0.02 || share > 1.02) return hide();
    const step = data.x[0] + Math.min(1, Math.max(0, share)) * (data.x[1] - data.x[0]);
    tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: "Step " + Math.round(step).toLocaleString("en") }));
    for (const line of data.lines) {
      const [, y] = nearest(line.points, step);
      if (y === null) continue;
      const row = document.createElement("span");
      const name = document.createElement("span");
      const mark = Object.assign(document.createElement("i"), { className: "box" });
      mark.style.setProperty("--c", line.color);
      name.append(mark, line.name);
      row.append(name, write[data.format](y));
      tip.append(row);
    }
    const at = data.px[0] + (step - data.x[0]) / (data.x[1] - data.x[0]) * (data.px[1] - data.px[0]);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.style.visibility = "visible";
    tip.hidden = false;
    const right = event.clientX + 18 + tip.offsetWidth > innerWidth;
    tip.style.left = (right ? event.clientX - 14 - tip.offsetWidth : event.clientX + 18) + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
  });
}
function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? points[low - 1] : points[low];
}
