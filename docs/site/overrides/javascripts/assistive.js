// What the theme does not say to assistive software.
const say = () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const part of document.querySelectorAll("nav[aria-labelledby^='__nav']")) {  // else several have one name
    part.setAttribute("aria-label", `${document.getElementById(part.getAttribute("aria-labelledby")).textContent.trim()} pages`);
    part.removeAttribute("aria-labelledby");
  }
  for (const buttons of document.querySelectorAll(".md-code__nav")) buttons.setAttribute("role", "presentation");
  for (const wide of document.querySelectorAll(".md-typeset__scrollwrap, .highlight code")) wide.tabIndex = 0;
  for (const head of document.querySelectorAll("th:empty")) head.replaceWith(document.createElement("td"));
};
say();
new MutationObserver(say).observe(document.querySelector(".md-container"), { childList: true, subtree: true });
