// Degrees to the plane by the Natural Earth projection (Patterson, Šavrič, Jenny), north up. The
// plane's unit is the radius of the globe; y grows downwards.
const RADIAN = Math.PI / 180;
const SOUTH_DEG = -57, NORTH_DEG = 83.7; // what is shown: all land but Antarctica
const STEPS = 32;

export function project(lon, lat) {
  const p = lat * RADIAN, p2 = p * p, p4 = p2 * p2;
  return [
    lon * RADIAN * (0.8707 - 0.131979 * p2 + p4 * (-0.013791 + p4 * (0.003971 * p2 - 0.001529 * p4))),
    -p * (1.007226 + p2 * (0.015085 + p4 * (-0.044475 + 0.028874 * p2 - 0.005916 * p4))),
  ];
}

export function pathOf(rings) {
  const path = new Path2D();
  for (const ring of rings) {
    for (let i = 0; i < ring.length; i += 2) {
      const [x, y] = project(ring[i], ring[i + 1]);
      if (i) path.lineTo(x, y); else path.moveTo(x, y);
    }
    path.closePath();
  }
  return path;
}

// The edge of the world as it is shown.
export function outline() {
  const path = new Path2D();
  let first = true;
  const to = (lon, lat) => { const [x, y] = project(lon, lat); if (first) path.moveTo(x, y); else path.lineTo(x, y); first = false; };
  for (let lat = SOUTH_DEG; lat <= NORTH_DEG; lat += 2) to(180, lat);
  to(180, NORTH_DEG); to(-180, NORTH_DEG);
  for (let lat = NORTH_DEG; lat >= SOUTH_DEG; lat -= 2) to(-180, lat);
  to(-180, SOUTH_DEG);
  path.closePath();
  return path;
}

// The whole world in a box of so many pixels: scale and where the middle of the plane lies.
export function fitTo(width, height) {
  const [right] = project(180, 0), [, top] = project(0, NORTH_DEG), [, bottom] = project(0, SOUTH_DEG);
  const k = Math.min(width / (2 * right), height / (bottom - top)) * 0.985;
  return { k, x: width / 2, y: height / 2 - ((top + bottom) / 2) * k };
}

// How far east the shown world reaches at a height of the plane, degree by degree from the north.
const RIM = Array.from({ length: Math.floor(NORTH_DEG - SOUTH_DEG) + 1 }, (_, i) => project(180, NORTH_DEG - i));

function isShown([x, y]) {
  const [, top] = RIM[0], [, bottom] = RIM.at(-1);
  if (y < top || y > bottom) return false;
  let low = 0, high = RIM.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (RIM[middle][1] <= y) low = middle; else high = middle; }
  const [[ax, ay], [bx, by]] = [RIM[low], RIM[high]];
  return Math.abs(x) <= ax + ((bx - ax) * (y - ay)) / (by - ay);
}

// The point at a place along points: 1.5 is halfway from the second to the third.
export function at(points, place) {
  const i = Math.min(Math.floor(place), points.length - 2), share = place - i, [ax, ay] = points[i], [bx, by] = points[i + 1];
  return [ax + (bx - ax) * share, ay + (by - ay) * share];
}

// A line from one place to another, bent northwards, as its parts that are on the map: where the
// short way crosses the antimeridian, it leaves on one side and comes back on the other. A part has
// the points of the whole line, between which places along it the part is, and its own points.
export function arcBetween(a, b) {
  const turn = b.lon - a.lon > 180 ? -360 : b.lon - a.lon < -180 ? 360 : 0;
  const lines = [bent(project(a.lon, a.lat), project(b.lon + turn, b.lat))];
  if (turn) lines.push(bent(project(a.lon - turn, a.lat), project(b.lon, b.lat)));
  return lines.flatMap(shownParts);
}

function shownParts(points) {
  const parts = [], last = points.length - 1, inside = points.map(isShown);
  // Where the edge is crossed after point i, to a thousandth of a step.
  const crossing = (i) => {
    let [low, high] = [0, 1];
    for (let n = 0; n < 10; n++) { const middle = (low + high) / 2; if (isShown(at(points, i + middle)) === inside[i]) low = middle; else high = middle; }
    return i + (low + high) / 2;
  };
  let begin = inside[0] ? 0 : null;
  const close = (end) => {
    const between = points.slice(Math.floor(begin) + 1, Math.ceil(end));
    parts.push({ points, begin, end, shown: [at(points, begin), ...between, at(points, end)] });
  };
  for (let i = 0; i < last; i++) {
    if (inside[i] === inside[i + 1]) continue;
    if (inside[i]) { close(crossing(i)); begin = null; } else begin = crossing(i);
  }
  if (begin !== null) close(last);
  return parts;
}

function bent([ax, ay], [bx, by]) {
  const far = Math.hypot(bx - ax, by - ay), lift = far * 0.22;
  // Across the line, on the side that is up.
  let [nx, ny] = far ? [-(by - ay) / far, (bx - ax) / far] : [0, -1];
  if (ny > 0) [nx, ny] = [-nx, -ny];
  const [cx, cy] = [(ax + bx) / 2 + nx * lift, (ay + by) / 2 + ny * lift];
  return Array.from({ length: STEPS + 1 }, (_, i) => {
    const t = i / STEPS, u = 1 - t;
    return [u * u * ax + 2 * u * t * cx + t * t * bx, u * u * ay + 2 * u * t * cy + t * t * by];
  });
}
