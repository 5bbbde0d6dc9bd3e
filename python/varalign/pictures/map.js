// The map of a report page: images and captions as points; hover, search, colours, zoom. No library, no network.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const root = document.getElementById("map");
  const part = (name) => root.querySelector(`[name=${name}]`);
  const canvas = root.querySelector("canvas"), tip = root.querySelector(".tip");
  const [layout, colour, search] = ["layout", "colour", "search"].map(part);
  const pairs = data.texts.length;
  let view = { x: 0, y: 0, scale: 1 }, hovered = -1, drag = null;

  const option = (name, value) => Object.assign(document.createElement("option"), { textContent: name, value });
  Object.keys(data.layouts).forEach((name) => layout.append(option(name, name)));
  layout.selectedIndex = layout.length - 1;
  [["image or caption", "side"], ["rank", "rank"]].forEach(([name, value]) => colour.append(option(name, value)));
  if (data.wrong) colour.append(option("probability of a wrong pair", "wrong"));

  // Point p is image p for p < pairs, else caption p - pairs.
  const row = (p) => p % pairs, isImage = (p) => p < pairs;
  const partner = (p) => (isImage(p) ? p + pairs : p - pairs);
  const rank = (p) => data.rank[isImage(p) ? "i2t" : "t2i"][row(p)];
  const scale = (share) => `hsl(${Math.round(215 - 215 * share)} 75% 45%)`; // blue to red
  const shade = (p) => {
    if (colour.value === "rank") return rank(p) < 1 ? "#bbb" : scale(Math.min(1, Math.log10(rank(p)) / 3));
    if (colour.value === "wrong") return scale(data.wrong[row(p)]);
    return data.colours[isImage(p) ? "image" : "text"];
  };
  const matches = (p) => {
    const words = search.value.trim().toLowerCase();
    return !words || data.texts[row(p)].toLowerCase().includes(words) || data.names[row(p)].toLowerCase().includes(words);
  };

  const place = (p) => {
    const [x, y] = data.layouts[layout.value][p];
    const half = Math.min(canvas.clientWidth, canvas.clientHeight) / 2 - 14;
    return [
      canvas.clientWidth / 2 + (x - view.x) * half * view.scale,
      canvas.clientHeight / 2 - (y - view.y) * half * view.scale,
    ];
  };
  const dot = (context, p, radius) => {
    const [x, y] = place(p);
    context.fillStyle = shade(p);
    context.beginPath();
    if (isImage(p)) context.rect(x - radius, y - radius, 2 * radius, 2 * radius);
    else context.arc(x, y, radius * 1.15, 0, 7);
    context.fill();
  };
  const draw = () => {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (let p = 0; p < 2 * pairs; p++) {
      context.globalAlpha = matches(p) ? 0.75 : 0.07;
      dot(context, p, 2.6);
    }
    context.globalAlpha = 1;
    if (hovered < 0) return;
    context.strokeStyle = "#22262e";
    context.beginPath();
    context.moveTo(...place(hovered));
    context.lineTo(...place(partner(hovered)));
    context.stroke();
    [hovered, partner(hovered)].forEach((p) => dot(context, p, 5));
  };

  const line = (text) => Object.assign(document.createElement("div"), { textContent: text, dir: "auto" });
  const show = () => {
    tip.replaceChildren();
    if (hovered < 0) {
      tip.append(line("Squares are images, circles are captions. Move over a point to see its pair."));
      return;
    }
    const at = row(hovered), texts = document.createElement("div");
    if (data.thumbnails[at]) {
      tip.append(Object.assign(document.createElement("img"), { src: data.thumbnails[at], alt: data.names[at] }));
    }
    const place = (found) => (found < 1 ? "–" : found.toLocaleString("en"));
    texts.append(
      line(data.texts[at]),
      line(data.names[at]),
      line(`the image finds a caption of its own at place ${place(data.rank.i2t[at])}`),
      line(`the caption finds its image at place ${place(data.rank.t2i[at])}`),
    );
    if (data.wrong) texts.append(line(`probability of a wrong pair ${data.wrong[at].toFixed(2)}`));
    tip.append(texts);
  };
  const nearest = (x, y) => {
    let best = -1, least = 18 * 18;
    for (let p = 0; p < 2 * pairs; p++) {
      if (!matches(p)) continue;
      const [px, py] = place(p), distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [p, distance];
    }
    return best;
  };

  const refresh = () => { draw(); show(); };
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.offsetX, y: event.offsetY };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      const half = (Math.min(canvas.clientWidth, canvas.clientHeight) / 2 - 14) * view.scale;
      view.x -= (event.offsetX - drag.x) / half;
      view.y += (event.offsetY - drag.y) / half;
      drag = { x: event.offsetX, y: event.offsetY };
    } else {
      const found = nearest(event.offsetX, event.offsetY);
      if (found === hovered) return;
      hovered = found;
    }
    refresh();
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    view.scale = Math.min(60, Math.max(1, view.scale * Math.exp(-event.deltaY / 400)));
    if (view.scale === 1) view.x = view.y = 0;
    refresh();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { view = { x: 0, y: 0, scale: 1 }; refresh(); });
  [layout, colour].forEach((control) => control.addEventListener("change", refresh));
  search.addEventListener("input", () => { hovered = -1; refresh(); });
  window.addEventListener("resize", draw);
  refresh();
})();
