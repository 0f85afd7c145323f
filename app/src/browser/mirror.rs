//! The page for screen readers: what the canvas shows, once more as elements that nobody sees. Begun when somebody
//! presses the hidden button that says so, because it costs a little time in every frame.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use egui::accesskit::{Action, ActionRequest, Node, NodeId, Role, Toggled, TreeId};
use egui::{Context, Event, FullOutput, Plugin, RawInput};
use wasm_bindgen::prelude::Closure;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{Document, Element};

/// A widget as a screen reader knows it.
#[derive(Debug, Clone, PartialEq)]
struct Widget {
    role: &'static str,
    name: String,
    /// Attributes of ARIA with their values.
    states: Vec<(&'static str, String)>,
    style: String,
}

/// Keeps the elements like the widgets.
#[derive(Debug, Default)]
pub struct Mirror {
    shown: BTreeMap<NodeId, Widget>,
    clicked: Arc<Mutex<Vec<NodeId>>>,
}

/// Makes the hidden button begin it.
pub fn offer(ctx: &Context, document: &Document) -> Result<(), JsValue> {
    let Some(button) = document.get_element_by_id("describe") else { return Ok(()) };
    let (ctx, hidden) = (ctx.clone(), button.clone());
    let on_click = Closure::<dyn FnMut()>::new(move || {
        hidden.remove();
        ctx.add_plugin(Mirror::default());
        ctx.enable_accesskit();
        ctx.request_repaint();
    });
    button.add_event_listener_with_callback("click", on_click.as_ref().unchecked_ref())?;
    on_click.forget(); // as long as the page
    Ok(())
}

impl Plugin for Mirror {
    fn debug_name(&self) -> &'static str {
        "mirror for screen readers"
    }

    fn input_hook(&mut self, _ctx: &Context, input: &mut RawInput) {
        let clicked = std::mem::take(&mut *self.clicked.lock().unwrap_or_else(PoisonError::into_inner));
        input.events.extend(clicked.into_iter().map(|target_node| {
            Event::AccessKitActionRequest(ActionRequest { action: Action::Click, target_tree: TreeId::ROOT, target_node, data: None })
        }));
    }

    fn output_hook(&mut self, ctx: &Context, output: &mut FullOutput) {
        let Some(update) = output.platform_output.accesskit_update.take() else { return };
        let zoom = f64::from(ctx.zoom_factor());
        let now: BTreeMap<NodeId, Widget> =
            update.nodes.iter().filter_map(|(id, node)| Some((*id, widget(node, &update.nodes, zoom)?))).collect();
        if now != self.shown {
            let _ = self.show(ctx, &now); // without a document there is nobody to tell
            self.shown = now;
        }
    }
}

impl Mirror {
    fn show(&self, ctx: &Context, now: &BTreeMap<NodeId, Widget>) -> Option<()> {
        let document = web_sys::window()?.document()?;
        let mirror = document.get_element_by_id("mirror")?;
        let name = |id: &NodeId| format!("node-{}", id.0);
        for id in self.shown.keys().filter(|id| !now.contains_key(id)) {
            document.get_element_by_id(&name(id))?.remove();
        }
        for (id, widget) in now {
            match self.shown.get(id) {
                Some(before) if before == widget => {}
                Some(before) if before.role == widget.role => describe(&document.get_element_by_id(&name(id))?, widget).ok()?,
                known => {
                    if known.is_some() {
                        document.get_element_by_id(&name(id))?.remove();
                    }
                    let element = self.element(ctx, &document, *id).ok()?;
                    element.set_id(&name(id));
                    describe(&element, widget).ok()?;
                    mirror.append_child(&element).ok()?;
                }
            }
        }
        Some(())
    }

    fn element(&self, ctx: &Context, document: &Document, id: NodeId) -> Result<Element, JsValue> {
        let element = document.create_element("div")?;
        let (clicked, ctx) = (self.clicked.clone(), ctx.clone());
        let on_click = Closure::<dyn FnMut()>::new(move || {
            clicked.lock().unwrap_or_else(PoisonError::into_inner).push(id);
            ctx.request_repaint();
        });
        element.add_event_listener_with_callback("click", &on_click.into_js_value().unchecked_into())?;
        Ok(element)
    }
}

fn describe(element: &Element, widget: &Widget) -> Result<(), JsValue> {
    if widget.role == "text" {
        element.set_text_content(Some(&widget.name));
    } else {
        element.set_attribute("role", widget.role)?;
        element.set_attribute("aria-label", &widget.name)?;
    }
    for (state, value) in &widget.states {
        element.set_attribute(state, value)?;
    }
    element.set_attribute("style", &widget.style)
}

/// What a node is for people who do not see it; `None` for what only holds others.
fn widget(node: &Node, all: &[(NodeId, Node)], zoom: f64) -> Option<Widget> {
    let role = match node.role() {
        Role::Button | Role::DefaultButton | Role::DisclosureTriangle => "button",
        Role::CheckBox => "checkbox",
        Role::RadioButton => "radio",
        Role::ComboBox => "combobox",
        Role::Link => "link",
        Role::Slider => "slider",
        Role::SpinButton => "spinbutton",
        Role::TextInput | Role::MultilineTextInput => "textbox",
        Role::ProgressIndicator => "progressbar",
        Role::Label => "text",
        _ => return None,
    };
    let text = |text: Option<&str>| text.unwrap_or_default().to_string();
    let beside = || node.labelled_by().iter().find_map(|id| all.iter().find(|(known, _)| known == id)?.1.value());
    let name = match role {
        "text" => text(node.value().or(node.label())),
        _ => text(node.label().filter(|label| !label.is_empty()).or_else(beside)),
    };
    let mut states = vec![("aria-disabled", node.is_disabled().to_string())];
    if let Some(toggled) = node.toggled() {
        let state = if matches!(role, "checkbox" | "radio") { "aria-checked" } else { "aria-pressed" };
        states.push((state, (toggled == Toggled::True).to_string()));
    }
    for (state, number) in
        [("aria-valuenow", node.numeric_value()), ("aria-valuemin", node.min_numeric_value()), ("aria-valuemax", node.max_numeric_value())]
    {
        states.extend(number.map(|number| (state, number.to_string())));
    }
    states.extend(node.value().filter(|_| role != "text").map(|value| ("aria-valuetext", value.to_string())));
    let rect = node.bounds()?;
    let [x, y, width, height] = [rect.x0, rect.y0, rect.x1 - rect.x0, rect.y1 - rect.y0].map(|side| (side * zoom).round());
    Some(Widget { role, name, states, style: format!("left:{x}px;top:{y}px;width:{width}px;height:{height}px") })
}
