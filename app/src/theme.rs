//! Colours and distances: the only place that knows them.

use egui::{Color32, FontDefinitions, FontFamily, Style, TextStyle, Theme, Visuals};

/// Space between groups of things.
pub const GAP: f32 = 10.0;

/// Space between a line and what begins below it.
pub const EDGE: f32 = 4.0;

/// Colours that differ in hue and in lightness (Okabe & Ito 2008), so that everybody tells them apart.
const SERIES: [[u8; 3]; 7] = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [213, 94, 0], [86, 180, 233], [240, 228, 66]];

/// The colour of the n-th source, run or curve.
pub fn series(n: usize) -> Color32 {
    let [r, g, b] = SERIES[n % SERIES.len()];
    Color32::from_rgb(r, g, b)
}

/// For what deserves attention.
pub fn warning(dark: bool) -> Color32 {
    if dark { Color32::from_rgb(255, 190, 80) } else { Color32::from_rgb(150, 85, 0) }
}

/// For what did not work.
pub fn error(dark: bool) -> Color32 {
    if dark { Color32::from_rgb(255, 120, 110) } else { Color32::from_rgb(175, 25, 25) }
}

/// For what works.
pub fn good(dark: bool) -> Color32 {
    if dark { Color32::from_rgb(110, 210, 130) } else { Color32::from_rgb(20, 110, 50) }
}

/// Behind a token: none for what was certain, the stronger the less likely it was.
pub fn doubt(visuals: &Visuals, probability: f64) -> Color32 {
    let surprise = (-probability.clamp(1e-6, 1.0).ln() / 6.0).clamp(0.0, 1.0) as f32;
    let [r, g, b] = SERIES[4];
    Color32::from_rgb(r, g, b).gamma_multiply(surprise * if visuals.dark_mode { 0.75 } else { 0.6 })
}

/// Behind a token that is learned; neighbours differ a little.
pub fn learned(visuals: &Visuals, odd: bool) -> Color32 {
    let strength = match (visuals.dark_mode, odd) {
        (true, false) => 0.45,
        (true, true) => 0.62,
        (false, false) => 0.32,
        (false, true) => 0.5,
    };
    series(2).gamma_multiply(strength)
}

/// Behind a token that is only read.
pub fn read(visuals: &Visuals, odd: bool) -> Color32 {
    if odd { visuals.text_color().gamma_multiply(0.1) } else { Color32::TRANSPARENT }
}

/// A bar with words on it, in the colour of the n-th curve.
pub fn bar(visuals: &Visuals, n: usize) -> Color32 {
    series(n).gamma_multiply(if visuals.dark_mode { 0.6 } else { 0.4 })
}

/// A bar of what is more than there may be.
pub fn too_long(visuals: &Visuals) -> Color32 {
    error(visuals.dark_mode).gamma_multiply(if visuals.dark_mode { 0.6 } else { 0.5 })
}

/// What a bar would fill if it were whole.
pub fn track(visuals: &Visuals) -> Color32 {
    visuals.text_color().gamma_multiply(0.1)
}

/// Behind a row of a list.
pub fn row(visuals: &Visuals, selected: bool, hovered: bool) -> Color32 {
    match (selected, hovered) {
        (true, _) => visuals.selection.bg_fill.gamma_multiply(0.45),
        (false, true) => visuals.widgets.hovered.weak_bg_fill.gamma_multiply(0.6),
        (false, false) => Color32::TRANSPARENT,
    }
}

/// Lines behind curves.
pub fn grid(visuals: &Visuals) -> Color32 {
    visuals.text_color().gamma_multiply(0.35)
}

/// Text of readable size and some air around things, in both themes.
pub fn apply(ctx: &egui::Context) {
    let mut fonts = FontDefinitions::default();
    // Arrows and triangles of labels; other scripts come from the platform.
    fonts.families.entry(FontFamily::Proportional).or_default().push("Hack".into());
    ctx.set_fonts(fonts);
    let change = |style: &mut Style| {
        for (name, size) in [(TextStyle::Body, 14.0), (TextStyle::Button, 14.0), (TextStyle::Monospace, 13.0), (TextStyle::Small, 11.5)] {
            if let Some(font) = style.text_styles.get_mut(&name) {
                font.size = size;
            }
        }
        style.spacing.item_spacing = egui::vec2(8.0, 6.0);
        style.spacing.button_padding = egui::vec2(8.0, 4.0);
        style.interaction.tooltip_delay = 0.3;
    };
    for (theme, ink) in [(Theme::Light, 40), (Theme::Dark, 200)] {
        ctx.style_mut_of(theme, change);
        ctx.style_mut_of(theme, |style| {
            style.visuals.widgets.noninteractive.fg_stroke.color = Color32::from_gray(ink);
            style.visuals.weak_text_alpha = 0.7;
            if theme == Theme::Light {
                // Fields and plots are white, what is around them is not.
                style.visuals.panel_fill = Color32::from_gray(240);
                style.visuals.extreme_bg_color = Color32::WHITE;
            }
        });
    }
}
