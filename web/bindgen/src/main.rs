//! `bindgen MODULE.wasm FOLDER`: writes the JavaScript around a module, and the module without what only it needed.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, folder] = arguments.as_slice() else {
        eprintln!("usage: bindgen MODULE.wasm FOLDER");
        return ExitCode::from(2);
    };
    let mut bindgen = wasm_bindgen_cli_support::Bindgen::new();
    let built = bindgen.input_path(module).web(true).and_then(|bindgen| {
        bindgen.typescript(false).omit_default_module_path(false).remove_name_section(true).remove_producers_section(true).generate(folder)
    });
    match built {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bindgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}
