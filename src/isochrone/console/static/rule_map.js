// A small still map of what a policy allows: each site by what it may do, and ways from an ingress.
import { arcBetween, fitTo, outline, pathOf, project } from "/console/projection.js";

const BOTH = 3, PROCESS = 1, ENTER = 2;

export async function start(root) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  root.append(canvas);
  const [world, sites] = await Promise.all(
    ["/console/world.json", "/live/sites"].map((path) => fetch(path).then((r) => r.json())));
  const land = world.countries.map((country) => pathOf(country.rings)), edge = outline();
  const places = new Map(sites.sites.map((site) => [site.name, site]));
  const credit = document.createElement("span");
  credit.className = "map-credit";
  credit.textContent = world.attribution;
  root.append(credit);

  root.draw = () => {
    const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
    const ratio = Math.min(devicePixelRatio || 1, 2), width = root.clientWidth, height = root.clientHeight;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const c = canvas.getContext("2d"), view = fitTo(width, height);
    c.setTransform(view.k * ratio, 0, 0, view.k * ratio, view.x * ratio, view.y * ratio);
    c.fillStyle = colour("--map-sea"); c.fill(edge);
    c.fillStyle = colour("--map-land"); c.strokeStyle = colour("--map-border"); c.lineWidth = 0.6 / view.k;
    for (const path of land) { c.fill(path); c.stroke(path); }
    const said = root.trial;
    if (!said) return;
    const line = (to, tone, dash) => {
      const from = places.get(said.ingress), end = places.get(to);
      if (!from || !end || from === end) return;
      c.strokeStyle = tone; c.lineWidth = 1.6 / view.k; c.setLineDash(dash.map((each) => each / view.k));
      for (const { shown } of arcBetween(from, end)) {
        c.beginPath(); shown.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y))); c.stroke();
      }
      c.setLineDash([]);
    };
    for (const name of said.refused) line(name, colour("--bad"), [3, 4]);
    for (const name of said.open) line(name, colour("--arc"), []);
    const tones = { [BOTH]: "--load-0", [PROCESS]: "--load-1", [ENTER]: "--load-2", 0: "--load-none" };
    const size = (places.size > 200 ? 3 : 6) / view.k;
    // Sites that may do nothing are drawn first, so that they hide none that may.
    for (const [name, may] of Object.entries(said.sites).sort((a, b) => a[1] - b[1])) {
      const place = places.get(name);
      if (!place) continue;
      const [x, y] = project(place.lon, place.lat);
      c.beginPath(); c.arc(x, y, may ? size : size * 0.75, 0, 7);
      c.fillStyle = colour(tones[may]); c.fill();
      c.strokeStyle = colour("--site-edge"); c.lineWidth = 1 / view.k; c.stroke();
      if (name === said.ingress) { c.beginPath(); c.arc(x, y, size * 1.7, 0, 7); c.strokeStyle = colour("--text"); c.lineWidth = 1.5 / view.k; c.stroke(); }
    }
    canvas.setAttribute("aria-label", said.text);
  };
  new ResizeObserver(root.draw).observe(root);
  document.addEventListener("isochrone-theme", root.draw);
  root.draw();
}
