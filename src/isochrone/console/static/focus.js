// Keyboard focus stays within an open dialog, goes back to what opened it when it is closed, and stays
// where it is when a list is drawn anew.
(() => {
  const CONTROLS = "a[href], button, input, select, textarea, [tabindex]";
  const NAMED = "a[href], button, input, select, textarea"; // a larger part would hold a page of text
  const DIALOG = ".q-dialog[role]";
  let opener = null; // what had focus last outside of any dialog or menu
  let name = "", nth = 0; // how it is called, and which one of this name it is
  let left = false; // it lost focus while it was there
  const open = () => [...document.querySelectorAll(DIALOG)].filter((each) => each.querySelector(".iso-dialog")).at(-1);
  const usable = (dialog) => [...dialog.querySelectorAll(CONTROLS)].filter(
    (each) => each.tabIndex >= 0 && !each.disabled && each.getClientRects().length && each.closest(".iso-dialog"));

  addEventListener("focusin", (event) => {
    // A button that was clicked hands its focus to a part of itself.
    if (event.target.closest(".q-dialog, .q-menu")) return;
    opener = event.target.closest("button") ?? event.target;
    name = opener.matches(NAMED) ? nameOf(opener) : "";
    nth = name ? alike().indexOf(opener) : 0;
    left = false;
  });

  addEventListener("focusout", (event) => queueMicrotask(() => {
    if (event.target.isConnected) left = true;
  }));

  const nameOf = (element) => (element.getAttribute("aria-label") ?? element.textContent).trim();
  const alike = () => [...document.getElementsByTagName(opener.tagName)].filter((each) => nameOf(each) === name);

  // A table may have drawn its rows anew meanwhile: then the one of the same name.
  const back = () => !opener || opener.isConnected || !name ? opener : alike()[Math.max(nth, 0)] ?? alike()[0];

  addEventListener("keydown", (event) => {
    const dialog = event.key === "Tab" && open();
    if (!dialog) return;
    const controls = usable(dialog), first = controls[0], last = controls.at(-1), at = document.activeElement;
    if (!first) return;
    const inside = controls.includes(at);
    if (event.shiftKey ? at === first || !inside : at === last || !inside) {
      event.preventDefault();
      (event.shiftKey ? last : first).focus();
    }
  }, true);

  addEventListener("DOMContentLoaded", () => {
    let was = false;
    new MutationObserver(() => {
      const is = Boolean(open());
      const lost = opener && !opener.isConnected && !left && document.activeElement === document.body;
      if (!is && (was || lost)) back()?.focus({ preventScroll: true });
      was = is;
    }).observe(document.body, { childList: true, subtree: true });
  });
})();
