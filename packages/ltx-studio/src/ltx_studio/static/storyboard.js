// A storyboard: the scenes of a long clip as cards, in order.

const number = (value, least) => Math.max(least, Number(value) || least);

export class Storyboard {
  // `pictures` lists the attached pictures as {name, label}; `changed` is called after each edit.
  constructor(place, template, pictures, changed) {
    Object.assign(this, { place, template, pictures, changed });
  }

  get cards() { return [...this.place.children]; }

  add(scene = {}) {
    const card = this.template.content.firstElementChild.cloneNode(true);
    const field = name => card.querySelector(`[name="${name}"]`);
    field("prompt").value = scene.prompt ?? "";
    field("seconds").value = scene.seconds ?? 3;
    card.dataset.image = scene.keyframes?.[0]?.image ?? "";
    card.querySelector(".earlier").addEventListener("click", () => this.move(card, -1));
    card.querySelector(".later").addEventListener("click", () => this.move(card, 1));
    card.querySelector(".remove").addEventListener("click", () => { card.remove(); this.refresh(); });
    field("image").addEventListener("change", event => { card.dataset.image = event.target.value; this.refresh(); });
    this.place.append(card);
    this.refresh();
    return card;
  }

  move(card, by) {
    const other = by < 0 ? card.previousElementSibling : card.nextElementSibling;
    if (other) by < 0 ? other.before(card) : other.after(card);
    card.querySelector(by < 0 ? ".earlier" : ".later").focus();
    this.refresh();
  }

  refresh() {
    const pictures = this.pictures();
    this.cards.forEach((card, index) => {
      card.querySelector("legend").textContent = `Scene ${index + 1}`;
      card.querySelector(".earlier").disabled = index === 0;
      card.querySelector(".later").disabled = index === this.cards.length - 1;
      const select = card.querySelector('[name="image"]');
      select.replaceChildren(new Option("none", ""), ...pictures.map(one => new Option(one.label, one.name)));
      select.value = pictures.some(one => one.name === card.dataset.image) ? card.dataset.image : "";
    });
    this.changed();
  }

  // The pictures that scenes show, which then are none of the whole clip.
  get used() { return this.cards.map(card => card.querySelector('[name="image"]').value).filter(Boolean); }

  get scenes() {
    return this.cards.map(card => {
      const value = name => card.querySelector(`[name="${name}"]`).value;
      const scene = { prompt: value("prompt").trim(), seconds: number(value("seconds"), 0.1) };
      if (value("image")) scene.keyframes = [{ image: value("image") }];
      return scene;
    });
  }

  set scenes(scenes) {
    this.place.replaceChildren();
    for (const scene of scenes) this.add(scene);
    if (!scenes.length) this.refresh();
  }
}
