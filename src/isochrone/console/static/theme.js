// Applies the chosen colours before anything is drawn: dark, light, or what the system says.
(function () {
  const found = document.cookie.match(/(?:^|; )isochrone-theme=(dark|light)/);
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = found ? found[1] : system;
})();

// A table that is wider than its place scrolls, and so has to be reachable by keyboard.
addEventListener("DOMContentLoaded", () => {
  let due = false;
  const look = () => {
    due = false;
    for (const middle of document.querySelectorAll(".q-table__middle")) {
      if (middle.scrollWidth > middle.clientWidth) middle.tabIndex = 0;
      else middle.removeAttribute("tabindex");
    }
  };
  const soon = () => { if (!due) { due = true; requestAnimationFrame(look); } };
  new MutationObserver(soon).observe(document.body, { childList: true, subtree: true });
  addEventListener("resize", soon);
});
