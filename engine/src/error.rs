//! Every way a job can fail. A message is one line: what is wrong, with the numbers, and what to do next.

/// Shorthand used throughout the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong and what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A value in the configuration or on the command line cannot be used.
    #[error("{0}")]
    Config(String),

    /// A file or folder could not be read or written.
    #[error("{path}: {reason}")]
    File {
        /// The file as the user named it.
        path: String,
        /// What the system said, and the remedy where one is known.
        reason: String,
    },

    /// The disk or the browser's quota is full; what was saved before is intact.
    #[error("{path}: no space left{}; what was saved before is intact; free some space and try again", after(*.written))]
    DiskFull {
        /// The file that was being written.
        path: String,
        /// Bytes written before the error.
        written: u64,
    },

    /// A file does not hold what its name promises.
    #[error("{path}: {reason}")]
    Format {
        /// The file as the user named it.
        path: String,
        /// Which rule of the format is broken.
        reason: String,
    },

    /// A tensor in a checkpoint does not fit the model.
    #[error("{path}: tensor {name}: expected shape {expected:?}, found {found:?}; does config.json belong to these weights?")]
    Shape {
        /// The file as the user named it.
        path: String,
        /// Tensor name as in the checkpoint.
        name: String,
        /// Shape that config.json asks for.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },

    /// Text or rows that cannot be trained on.
    #[error("{0}")]
    Data(String),

    /// The tokenizer cannot be read, trained or used with this model.
    #[error("{0}")]
    Tokenizer(String),

    /// A run cannot be resumed as asked.
    #[error("{0}")]
    Resume(String),

    /// No adapter as asked, or the adapter cannot do what is needed.
    #[error("{0}")]
    Device(String),

    /// More memory is needed than the device grants.
    #[error(
        "out of memory on {device}: {detail}; try a smaller --batch-size (raise --accumulation to keep the tokens per step), a shorter --sequence-length, a smaller model or another --device"
    )]
    OutOfMemory {
        /// Adapter name.
        device: String,
        /// What could not be allocated.
        detail: String,
    },

    /// Training produced NaN or infinity several times in a row.
    #[error(
        "step {step}: {count} updates in a row had a non-finite loss or gradient (last sources: {sources}); {checkpoint}; try a lower --lr, a longer --warmup-steps, or --precision f32"
    )]
    NonFinite {
        /// Step at which the run stopped.
        step: u32,
        /// Skipped updates in a row.
        count: u32,
        /// Sources of the last batch.
        sources: String,
        /// Which checkpoint is left.
        checkpoint: String,
    },

    /// The prompt leaves no room in the model's context.
    #[error("the prompt has {prompt} tokens, which leaves too little of the model's context of {context}; shorten the prompt")]
    Context {
        /// Tokens in the prompt.
        prompt: usize,
        /// Context of the model in tokens.
        context: usize,
    },

    /// A defect of smolforge itself, caught before it could do harm.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

fn after(written: u64) -> String {
    if written > 0 { format!(" after {written} bytes") } else { String::new() }
}

impl Error {
    /// An I/O error with the file it concerns; full disks are told apart.
    pub fn file(path: impl Into<String>, error: &std::io::Error) -> Self {
        let path = path.into();
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => "no such file or folder".to_string(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_string(),
            std::io::ErrorKind::StorageFull => return Error::DiskFull { path, written: 0 },
            _ => error.to_string(),
        };
        Error::File { path, reason }
    }

    /// Whether a file is not what it should be, and not merely out of reach.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Format { .. } | Self::Shape { .. } | Self::Tokenizer(_) => true,
            Self::File { reason, .. } => self.is_missing() || reason.starts_with("holds neither"),
            _ => false,
        }
    }

    /// Whether a file or folder does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::File { reason, .. } if reason.starts_with("no such file"))
    }

    /// A file that breaks a rule of its format.
    pub fn format(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Format { path: path.into(), reason: reason.into() }
    }
}

/// The likeliest of the known names for a mistyped one.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
