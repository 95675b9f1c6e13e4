// Applies the chosen colours before anything is drawn: dark, light, or what the system says.
(function () {
  const found = document.cookie.match(/(?:^|; )isochrone-theme=(dark|light)/);
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = found ? found[1] : system;
})();
