//! What ARCHITECTURE.md promises and a text search can see.

use std::fs;
use std::path::{Path, PathBuf};

/// Files of the repository below `folder` with one of the `endings`, as (path from the root, text).
fn files(folder: &str, endings: &[&str]) -> Vec<(String, String)> {
    let root = Path::new(".."); // tests run in their package's folder; env!() would name that of the first build
    let mut folders: Vec<PathBuf> = vec![root.join(folder)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_string_lossy().into_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} holds nothing");
    found
}

/// The part of a source file before its unit tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

#[track_caller]
fn only_in(folder: &str, needle: &str, allowed: &[&str]) {
    for (path, text) in files(folder, &[".rs"]) {
        if path.ends_with("/tests.rs") {
            continue; // unit tests of the module beside it
        }
        let permitted = allowed.iter().any(|place| path.replace('\\', "/").starts_with(place));
        assert!(permitted || !code(&text).contains(needle), "{path} says `{needle}`, which belongs to {allowed:?}");
    }
}

#[test]
fn platforms_differ_in_one_place() {
    let wasm = "target_arch = \"wasm32\"";
    only_in("engine", wasm, &["engine/src/platform/"]);
    only_in("app/src", wasm, &["app/src/main.rs", "app/src/files.rs"]);
    only_in("engine", "std::fs", &["engine/src/platform/"]);
    only_in("engine", "std::thread", &["engine/src/platform/"]);
    only_in("engine", "std::time::", &[]);
}

#[test]
fn backends_are_named_below_the_model_only() {
    for name in ["burn::backend", "burn_flex", "burn_cubecl"] {
        only_in("engine/src", name, &["engine/src/ops/"]);
    }
    only_in("engine/src", "wgpu::", &["engine/src/ops/", "engine/src/device.rs"]);
    only_in("engine/src", ".backward()", &["engine/src/train/gradients.rs"]);
}

#[test]
fn layers_do_not_look_up() {
    only_in("engine/src/model", "crate::train", &["nowhere"]);
    only_in("engine/src/data", "crate::model", &["nowhere"]);
    only_in("engine/src/text", "burn", &["nowhere"]);
    only_in("engine/src/tasks", "crate::engine", &["nowhere"]);
    only_in("app/src", "use egui", &["app/src/app.rs", "app/src/desktop.rs", "app/src/browser/", "app/src/theme.rs", "app/src/view/"]);
    only_in("app/src", "Color32::", &["app/src/theme.rs"]);
    let (_, protocol) = files("engine/src", &["protocol.rs"]).remove(0);
    assert!(!protocol.contains("use burn"));
}

#[test]
fn the_engine_has_no_window_and_no_flags() {
    for (path, text) in files("engine", &["Cargo.toml"]).into_iter().chain(files("shaders", &["Cargo.toml"])) {
        for banned in ["clap", "egui", "eframe", "tokio"] {
            assert!(!text.contains(banned), "{path} depends on {banned}");
        }
    }
    let (_, shaders) = files("shaders", &["Cargo.toml"]).remove(0);
    assert!(!shaders.contains("dependencies]"), "shaders depends on something");
}

#[test]
fn no_dev_dependencies_split_the_features_of_burn() {
    for folder in ["engine", "shaders", "app", "tests"] {
        let (path, text) = files(folder, &["Cargo.toml"]).remove(0);
        // egui_kittest adds a few crates and changes the features of none: `cargo tree -f '{p} {f}' -e normal,build,dev`.
        let text = if folder == "app" { text.replace("[dev-dependencies]\negui_kittest.workspace = true\n", "") } else { text };
        assert!(!text.contains("dev-dependencies]"), "{path}: cargo test would compile burn again");
    }
}

#[test]
fn files_stay_small_and_named_for_what_they_hold() {
    for folder in ["engine", "shaders", "app", "tests", "bench"] {
        for (path, text) in files(folder, &[".rs", ".wgsl", ".py", ".sh", ".md"]) {
            assert!(text.lines().count() <= 600, "{path} has {} lines", text.lines().count());
            let stem = Path::new(&path).file_stem().unwrap().to_string_lossy().into_owned();
            assert!(!["utils", "common", "helpers", "manager"].contains(&stem.as_str()), "{path}");
        }
    }
}
