//! `smolforge merge`: a model and its adapter as one model.

use smolforge_engine::protocol::{AdapterChoice, Command, ExportDtype};

use super::{adapter, choice, drive};

/// Write a model and its adapter as one Hugging Face folder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Hugging Face folder, run, or name on the hub of the model that the adapter was trained beside
    #[arg(long, value_name = "DIR|NAME")]
    model: String,

    /// Adapter's folder or run, with :STRENGTH for another one than 1; repeat for several
    #[arg(long, value_name = "DIR[:STRENGTH]", value_parser = adapter, required = true)]
    adapter: Vec<AdapterChoice>,

    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: String,

    /// Type of the stored numbers
    #[arg(long, value_parser = choice::<ExportDtype>(&["f16", "f32"]), default_value = "f16")]
    dtype: ExportDtype,
}

impl Args {
    /// Merges.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let Self { model, adapter: adapters, out, dtype } = self;
        drive(Command::Merge { model, adapters, out, dtype }, json, |_, _| Ok(()))
    }
}
