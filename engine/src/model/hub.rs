//! A Hugging Face folder: its weights checked against its config, and the files around the weights.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;

use half::f16;
use serde_json::{Map, Value, json};

use super::bitsandbytes;
use super::config::LlamaConfig;
use super::safetensors::{Dtype, SafeFile, first_non_finite, first_non_finite_f16};
use crate::error::{Error, Result};
use crate::ops::quant::Nf4;
use crate::store::{Store, inside};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// More files than any sharded checkpoint has.
const MAX_SHARDS: usize = 1000;

/// The tensors of a folder, wherever they lie.
#[derive(Debug, Clone)]
pub struct Weights {
    folder: String,
    files: Vec<SafeFile>,
    /// Name as Hugging Face's Llama has it → file, name in that file.
    places: BTreeMap<String, (usize, String)>,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// [`Error::File`] where there are no such files, [`Error::Format`] where they or the index are damaged.
    pub async fn open(store: &Store, folder: &str) -> Result<Self> {
        let mut weights = Self { folder: folder.into(), files: Vec::new(), places: BTreeMap::new() };
        let single = inside(folder, SINGLE);
        let index = inside(folder, INDEX);
        if store.exists(&single).await {
            weights.add(SafeFile::open(store.open(&single).await?, &single)?)?;
        } else if store.exists(&index).await {
            weights.open_shards(store, &index).await?;
        } else {
            return Err(no_weights(store, folder).await);
        }
        Ok(weights)
    }

    async fn open_shards(&mut self, store: &Store, index: &str) -> Result<()> {
        let bad = |reason: String| Error::format(index, reason);
        let map = object(&store.read_text(index).await?, index)?;
        let Some(Value::Object(map)) = map.get("weight_map") else {
            return Err(bad("`weight_map` is missing; it says in which file every tensor lies".into()));
        };
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, file) in map {
            let file = file.as_str().filter(|file| is_plain_file(file));
            let Some(file) = file else {
                return Err(bad(format!("tensor {name} lies in {}, which is no name of a .safetensors file of this folder", map[name])));
            };
            shards.entry(file).or_default().push(name);
        }
        if shards.is_empty() || shards.len() > MAX_SHARDS {
            return Err(bad(format!("lists {} files; between 1 and {MAX_SHARDS} make sense", shards.len())));
        }
        for (file, names) in shards {
            let path = inside(&self.folder, file);
            let shard = SafeFile::open(store.open(&path).await?, &path)?;
            if let Some(name) = names.iter().find(|name| shard.info(name).is_none()) {
                return Err(bad(format!("tensor {name} should lie in {file}, but is not there; are all files of one download?")));
            }
            self.add(shard)?;
        }
        Ok(())
    }

    fn add(&mut self, file: SafeFile) -> Result<()> {
        for stored in file.names() {
            let name = stored.replace("_orig_mod.", ""); // checkpoints of compiled PyTorch models
            if let Some((other, _)) = self.places.insert(name.clone(), (self.files.len(), stored.to_string())) {
                let other = self.files.get(other).map_or(file.path(), SafeFile::path);
                return Err(Error::format(file.path(), format!("tensor {name} lies in {other}, too")));
            }
        }
        self.files.push(file);
        Ok(())
    }

    /// Names of the tensors, sorted, without `_orig_mod.`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        let (file, stored) = self.places.get(name)?;
        self.files[*file].info(stored)
    }

    /// Holds the tensors against the config: none missing, none too many, shapes and types as needed.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Format`] naming the tensor.
    pub fn check(&self, config: &LlamaConfig) -> Result<()> {
        let mut extra: BTreeMap<&str, ()> = self.names().map(|name| (name, ())).collect();
        let mut missing = Vec::new();
        for (name, shape) in config.tensors() {
            extra.remove(name.as_str());
            let Some((dtype, found)) = self.info(&name) else {
                missing.push(name);
                continue;
            };
            let path = self.path_of(&name).to_string();
            if dtype == Dtype::U8
                && let Some(found) = bitsandbytes::shape(|name| self.file_of(name), &name)?
            {
                if found[..] != shape {
                    return Err(Error::Shape { path, name, expected: shape, found: found.to_vec() });
                }
                continue;
            }
            if found != shape {
                return Err(Error::Shape { path, name, expected: shape, found: found.to_vec() });
            }
            if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                let reason =
                    format!("tensor {name} is stored as {}; F32, F16 or BF16 is needed, so use the unquantised checkpoint", dtype.name());
                return Err(Error::format(path, reason));
            }
        }
        if !missing.is_empty() {
            let reason = format!(
                "{} missing: {}; is config.json of another model, or the download incomplete?",
                tensors(missing.len()),
                first(&missing)
            );
            return Err(Error::format(self.path(), reason));
        }
        // A tied head is the embedding once more; the rotary table of old versions follows from the config.
        let tied = config.tie_word_embeddings;
        let extra: Vec<&str> =
            extra.into_keys().filter(|name| !(name.ends_with("rotary_emb.inv_freq") || tied && *name == "lm_head.weight")).collect();
        let extra: Vec<&str> =
            extra.into_iter().filter(|name| bitsandbytes::owner(name).is_none_or(|owner| self.info(owner).is_none())).collect();
        if !extra.is_empty() {
            let reason = format!("{} too many: {}; is config.json of another model?", tensors(extra.len()), first(&extra));
            return Err(Error::format(self.path(), reason));
        }
        Ok(())
    }

    /// A whole tensor as f32.
    ///
    /// # Errors
    /// [`Error::Format`] where it is missing, not of fractions, or holds NaN or infinity.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let (file, stored) = self.find(name)?;
        finite(file, name, 0, file.read_f32(stored)?, first_non_finite)
    }

    /// Rows (first axis) of a tensor as f32.
    ///
    /// # Errors
    /// As [`Weights::read`], and for rows that it does not have.
    pub fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let (file, stored) = self.find(name)?;
        finite(file, name, rows.start * self.width(name), file.read_rows_f32(stored, rows)?, first_non_finite)
    }

    /// Rows of a tensor of F16 as they are stored.
    ///
    /// # Errors
    /// As [`Weights::read_rows`], and where it is stored as another type.
    pub fn read_rows_f16(&self, name: &str, rows: Range<usize>) -> Result<Vec<f16>> {
        let (file, stored) = self.find(name)?;
        finite(file, name, rows.start * self.width(name), file.read_rows_f16(stored, rows)?, first_non_finite_f16)
    }

    /// A matrix that bitsandbytes stored in 4 bits; none where it is stored otherwise.
    ///
    /// # Errors
    /// [`Error::Format`] where a part of it is damaged.
    pub fn read_nf4(&self, name: &str) -> Result<Option<Nf4>> {
        bitsandbytes::read(|name| self.file_of(name), name)
    }

    fn file_of(&self, name: &str) -> Option<&SafeFile> {
        self.places.get(name).map(|(file, _)| &self.files[*file])
    }

    /// Numbers of a row.
    fn width(&self, name: &str) -> usize {
        self.info(name).map_or(0, |(_, shape)| shape.iter().skip(1).product())
    }

    fn find(&self, name: &str) -> Result<(&SafeFile, &str)> {
        let place = self.places.get(name).ok_or_else(|| Error::format(self.path(), format!("there is no tensor {name}")))?;
        Ok((&self.files[place.0], &place.1))
    }

    fn path_of(&self, name: &str) -> &str {
        self.places.get(name).map_or(&self.folder, |(file, _)| self.files[*file].path())
    }

    /// The only file, or the folder.
    fn path(&self) -> &str {
        match self.files.as_slice() {
            [file] => file.path(),
            _ => &self.folder,
        }
    }
}

fn tensors(count: usize) -> String {
    if count == 1 { "1 tensor".into() } else { format!("{count} tensors") }
}

fn first(names: &[impl AsRef<str>]) -> String {
    let shown: Vec<&str> = names.iter().take(3).map(AsRef::as_ref).collect();
    format!("{}{}", shown.join(", "), if names.len() > 3 { ", …" } else { "" })
}

fn finite<T: Display>(file: &SafeFile, name: &str, offset: usize, values: Vec<T>, first: fn(&[T]) -> Option<usize>) -> Result<Vec<T>> {
    match first(&values) {
        None => Ok(values),
        Some(index) => {
            let reason = format!("tensor {name} holds {} (number {}); this checkpoint is broken", values[index], offset + index);
            Err(Error::format(file.path(), reason))
        }
    }
}

/// A name without any way out of its folder.
fn is_plain_file(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0']) && name.len() < 256
}

async fn no_weights(store: &Store, folder: &str) -> Error {
    let entries = store.list(folder).await.unwrap_or_default();
    let name = |entry: &crate::store::Entry| entry.name.rsplit('/').next().unwrap_or_default().to_string();
    let pickle = entries.iter().map(name).find(|name| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end)));
    let reason = match pickle {
        Some(pickle) => format!(
            "holds {pickle}, a Python pickle, which may run any program and is never read; get the model.safetensors of this model, or save it with `save_pretrained(…, safe_serialization=True)`"
        ),
        None if entries.is_empty() => "no such folder, or nothing in it; name a Hugging Face model folder".into(),
        None => format!("holds neither {SINGLE} nor {INDEX}; name a Hugging Face model folder"),
    };
    Error::File { path: folder.into(), reason }
}

fn object(text: &str, path: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::format(path, "a JSON object is needed here")),
        Err(e) => Err(Error::format(path, format!("not valid JSON: {e}"))),
    }
}

/// A shape by its name, or from a `config.json`.
///
/// # Errors
/// [`Error::Config`] with the nearest name; what is wrong with the file.
pub async fn shape(store: &Store, preset: &str) -> Result<LlamaConfig> {
    match preset.ends_with(".json") {
        true => LlamaConfig::from_hf_json(&store.read_text(preset).await?, preset),
        false => LlamaConfig::preset(preset),
    }
}

/// Reads `config.json` of a folder; the end-of-text ids of `generation_config.json` count, too.
///
/// # Errors
/// [`Error::File`] where it is missing, [`Error::Format`] where it cannot be used.
pub async fn read_config(store: &Store, folder: &str) -> Result<LlamaConfig> {
    let path = inside(folder, "config.json");
    if !store.exists(&path).await {
        let within = inside(folder, "model");
        return Err(if store.exists(&inside(&within, "config.json")).await {
            Error::File { path, reason: format!("no such file; {within} holds a model") }
        } else if store.exists(folder).await {
            Error::File { path, reason: "no such file; a Hugging Face model folder holds a config.json".into() }
        } else {
            Error::File { path: folder.into(), reason: "no such file or folder, and no name on the hub (OWNER/NAME)".into() }
        });
    }
    let text = store.read_text(&path).await?;
    let mut config = LlamaConfig::from_hf_json(&text, &path)?;
    let path = inside(folder, "generation_config.json");
    if store.exists(&path).await {
        let generation = object(&store.read_text(&path).await?, &path)?;
        // The same rules as in config.json: read the ids through it.
        let mut probe = object(&text, &path)?;
        probe.insert("eos_token_id".into(), generation.get("eos_token_id").cloned().unwrap_or(Value::Null));
        for id in LlamaConfig::from_hf_json(&Value::Object(probe).to_string(), &path)?.eos_token_id {
            if !config.eos_token_id.contains(&id) {
                config.eos_token_id.push(id);
            }
        }
    }
    Ok(config)
}

/// The name or path that the `config.json` of a folder gives as its model's own.
pub async fn written_name(store: &Store, folder: &str) -> Option<String> {
    let config = object(&store.read_text(&inside(folder, "config.json")).await.ok()?, "").ok()?;
    config.get("_name_or_path")?.as_str().filter(|name| !name.is_empty()).map(ToString::to_string)
}

/// Writes what lies around the weights: `config.json`, `generation_config.json` and, with a tokenizer,
/// `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, so that transformers'
/// `AutoModelForCausalLM` and `AutoTokenizer` load the folder as it is.
///
/// `dtype` is torch's name of the stored type, e.g. `float16`.
///
/// # Errors
/// [`Error::Tokenizer`] for a tokenizer that is no JSON; [`Error::DiskFull`] or [`Error::File`].
pub async fn write_config_files(
    store: &Store,
    folder: &str,
    config: &LlamaConfig,
    dtype: &str,
    tokenizer_json: Option<&[u8]>,
) -> Result<()> {
    if let Some(tokenizer) = tokenizer_json {
        let parsed: Value = serde_json::from_slice(tokenizer)
            .map_err(|e| Error::Tokenizer(format!("{folder}: the tokenizer to be saved is not valid JSON: {e}")))?;
        let special = special_tokens(&parsed, config);
        store.write(&inside(folder, "tokenizer.json"), tokenizer).await?;
        let text = format!("{:#}\n", tokenizer_config(&parsed, &special, config));
        store.write(&inside(folder, "tokenizer_config.json"), text.as_bytes()).await?;
        let text = format!("{:#}\n", Value::Object(special));
        store.write(&inside(folder, "special_tokens_map.json"), text.as_bytes()).await?;
    }
    store.write(&inside(folder, "generation_config.json"), config.generation_config_json().as_bytes()).await?;
    store.write(&inside(folder, "config.json"), config.to_hf_json(dtype).as_bytes()).await
}

/// `bos_token`, `eos_token` and `pad_token` as far as the config names them and the tokenizer knows them.
fn special_tokens(tokenizer: &Value, config: &LlamaConfig) -> Map<String, Value> {
    let ids = [("bos_token", config.bos_token_id), ("eos_token", config.eos_token_id.first().copied()), ("pad_token", config.pad_token_id)];
    let known = ids.into_iter().filter_map(|(key, id)| Some((key.to_string(), json!(token(tokenizer, id?)?))));
    known.collect()
}

/// The text of a token id.
fn token(tokenizer: &Value, id: u32) -> Option<&str> {
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let added = added.filter(|token| token["id"].as_u64() == Some(u64::from(id))).find_map(|token| token["content"].as_str());
    let vocabulary = || {
        let mut entries = tokenizer["model"]["vocab"].as_object()?.iter();
        entries.find(|(_, value)| value.as_u64() == Some(u64::from(id))).map(|(text, _)| text.as_str())
    };
    added.or_else(vocabulary)
}

fn tokenizer_config(tokenizer: &Value, special: &Map<String, Value>, config: &LlamaConfig) -> Value {
    let mut decoder = Map::new();
    for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let Some(id) = token["id"].as_u64() else { continue };
        let flag = |key: &str| token[key].as_bool().unwrap_or(false);
        let entry = json!({
            "content": token["content"],
            "lstrip": flag("lstrip"),
            "normalized": flag("normalized"),
            "rstrip": flag("rstrip"),
            "single_word": flag("single_word"),
            "special": flag("special"),
        });
        decoder.insert(id.to_string(), entry);
    }
    let mut settings = special.clone();
    settings.insert("added_tokens_decoder".into(), Value::Object(decoder));
    settings.insert("clean_up_tokenization_spaces".into(), json!(false));
    settings.insert("model_max_length".into(), json!(config.max_position_embeddings));
    settings.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    Value::Object(settings)
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::super::safetensors::SafeWriter;
    use super::*;

    fn tiny() -> LlamaConfig {
        LlamaConfig {
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 4,
            ..LlamaConfig::preset("nano").unwrap().with_vocab(10)
        }
    }

    type List = Vec<(String, Dtype, Vec<usize>)>;

    fn list(config: &LlamaConfig) -> List {
        config.tensors().into_iter().map(|(name, shape)| (name, Dtype::F32, shape)).collect()
    }

    fn write(store: &Store, path: &str, tensors: &List) {
        let mut writer = block_on(SafeWriter::create(store, path, tensors, &[])).unwrap();
        for (name, dtype, shape) in tensors {
            let count = shape.iter().product::<usize>();
            writer.write_bytes(name, &vec![0; count * dtype.size_bytes()]).unwrap();
        }
        block_on(writer.finish()).unwrap();
    }

    #[track_caller]
    fn check_of(change: impl FnOnce(&mut List)) -> Result<()> {
        let (store, mut tensors) = (Store::memory(), list(&tiny()));
        change(&mut tensors);
        write(&store, "m/model.safetensors", &tensors);
        block_on(Weights::open(&store, "m/")).unwrap().check(&tiny())
    }

    #[track_caller]
    fn refused(result: Result<impl Sized>, expect: &str) {
        let message = result.map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(expect) && !message.contains('\n'), "{message}");
    }

    #[test]
    fn a_checkpoint_that_fits_passes() {
        check_of(|_| ()).unwrap();
        check_of(|list| list.iter_mut().for_each(|tensor| tensor.1 = Dtype::BF16)).unwrap();
        check_of(|list| list.iter_mut().for_each(|tensor| tensor.0.insert_str(0, "_orig_mod."))).unwrap();
        check_of(|list| list.push(("lm_head.weight".into(), Dtype::F32, vec![10, 8]))).unwrap();
        check_of(|list| list.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), Dtype::F32, vec![2]))).unwrap();
    }

    #[test]
    fn a_checkpoint_that_does_not_fit_is_refused_by_tensor() {
        refused(check_of(|list| drop(list.remove(3))), "1 tensor missing: model.layers.0.self_attn.k_proj.weight;");
        refused(check_of(|list| list.truncate(2)), "9 tensors missing");
        refused(check_of(|list| list.push(("model.layers.1.bias".into(), Dtype::F32, vec![1]))), "1 tensor too many: model.layers.1.bias;");
        refused(check_of(|list| list[2].2 = vec![4, 16]), "q_proj.weight: expected shape [8, 8], found [4, 16]");
        refused(check_of(|list| list[2].1 = Dtype::I8), "q_proj.weight is stored as I8");
        let (untied, store) = (LlamaConfig { tie_word_embeddings: false, ..tiny() }, Store::memory());
        write(&store, "m/model.safetensors", &list(&tiny()));
        refused(block_on(Weights::open(&store, "m")).unwrap().check(&untied), "lm_head.weight");
    }

    fn sharded(index: &str) -> Result<Weights> {
        let store = Store::memory();
        let tensors = list(&tiny());
        write(&store, "m/a-1.safetensors", &tensors[..5].to_vec());
        write(&store, "m/a-2.safetensors", &tensors[5..].to_vec());
        block_on(store.write("m/model.safetensors.index.json", index.as_bytes())).unwrap();
        block_on(Weights::open(&store, "m"))
    }

    fn weight_map(second: &str) -> String {
        let place = |i: usize| if i < 5 { "a-1.safetensors" } else { second };
        let map: Map<String, Value> = list(&tiny()).iter().enumerate().map(|(i, (name, ..))| (name.clone(), json!(place(i)))).collect();
        json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string()
    }

    #[test]
    fn shards_are_one_checkpoint() {
        let weights = sharded(&weight_map("a-2.safetensors")).unwrap();
        weights.check(&tiny()).unwrap();
        assert_eq!(weights.read("model.norm.weight").unwrap(), [0.0; 8]);
        assert_eq!(weights.read_rows("model.embed_tokens.weight", 2..4).unwrap().len(), 16);
        refused(weights.read("nothing"), "there is no tensor nothing");
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        refused(sharded(&weight_map("../../etc/a.safetensors")), "no name of a .safetensors file");
        refused(sharded(&weight_map("sub\\a.safetensors")), "no name of a .safetensors file");
        refused(sharded(&weight_map("/a-2.safetensors")), "no name of a .safetensors file");
        refused(sharded(&weight_map("model.bin")), "no name of a .safetensors file");
        refused(sharded(&weight_map("a-1.safetensors")), "is not there");
        refused(sharded(&weight_map("gone.safetensors")), "no such file");
        refused(sharded("{}"), "`weight_map` is missing");
        refused(sharded(r#"{"weight_map":{}}"#), "lists 0 files");
        refused(sharded(r#"{"weight_map":{"a":7}}"#), "lies in 7");
        refused(sharded("{"), "not valid JSON");
    }

    #[test]
    fn the_same_tensor_twice_is_refused() {
        let (store, mut tensors) = (Store::memory(), list(&tiny()));
        let twin = (format!("_orig_mod.{}", tensors[0].0), Dtype::F32, tensors[0].2.clone());
        tensors.push(twin);
        write(&store, "m/model.safetensors", &tensors);
        refused(block_on(Weights::open(&store, "m")), "lies in m/model.safetensors, too");
    }

    #[test]
    fn pickles_are_never_read() {
        let store = Store::memory();
        refused(block_on(Weights::open(&store, "m")), "no such folder");
        block_on(store.write("m/config.json", b"{}")).unwrap();
        refused(block_on(Weights::open(&store, "m")), "holds neither model.safetensors");
        block_on(store.write("m/pytorch_model.bin", b"x")).unwrap();
        refused(block_on(Weights::open(&store, "m")), "pytorch_model.bin, a Python pickle");
    }

    #[test]
    fn broken_numbers_are_refused_with_their_tensor() {
        let store = Store::memory();
        let tensors = vec![("w".to_string(), Dtype::F32, vec![2, 2])];
        let mut writer = block_on(SafeWriter::create(&store, "m/model.safetensors", &tensors, &[])).unwrap();
        writer.write_bytes("w", bytemuck::cast_slice(&[0.0f32, 1.0, f32::NAN, 2.0])).unwrap();
        block_on(writer.finish()).unwrap();
        let weights = block_on(Weights::open(&store, "m")).unwrap();
        refused(weights.read("w"), "tensor w holds NaN (number 2)");
        refused(weights.read_rows("w", 1..2), "tensor w holds NaN (number 2)");
        assert_eq!(weights.read_rows("w", 0..1).unwrap(), [0.0, 1.0]);
    }

    const TOKENIZER: &str = r#"{"added_tokens":[{"id":0,"content":"<|endoftext|>","special":true}],"model":{"vocab":{"a":1,"</s>":2}}}"#;

    #[test]
    fn written_folder_reads_back_with_all_end_ids() {
        let store = Store::memory();
        let config = LlamaConfig { eos_token_id: vec![0, 2], pad_token_id: Some(2), ..tiny() };
        block_on(write_config_files(&store, "m", &config, "float16", Some(TOKENIZER.as_bytes()))).unwrap();
        assert_eq!(block_on(read_config(&store, "m")).unwrap(), config);
        let text = block_on(store.read_text("m/special_tokens_map.json")).unwrap();
        let special: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(special, json!({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "</s>"}));
        assert_eq!(block_on(store.read_text("m/tokenizer.json")).unwrap(), TOKENIZER);
        block_on(store.write("m/generation_config.json", br#"{"eos_token_id":[2, 5]}"#)).unwrap();
        assert_eq!(block_on(read_config(&store, "m")).unwrap().eos_token_id, [0, 2, 5]);
    }

    #[test]
    fn broken_config_files_are_one_line() {
        let store = Store::memory();
        refused(block_on(read_config(&store, "m")), "m: no such file or folder, and no name on the hub (OWNER/NAME)");
        block_on(store.write("demo/rows.jsonl", b"")).unwrap();
        refused(block_on(read_config(&store, "demo")), "demo/config.json: no such file; a Hugging Face");
        block_on(store.write("demo/model/config.json", b"{}")).unwrap();
        refused(block_on(read_config(&store, "demo")), "demo/config.json: no such file; demo/model holds a model");
        block_on(write_config_files(&store, "m", &tiny(), "float32", None)).unwrap();
        for (text, expect) in [("{", "not valid JSON"), ("[]", "object"), (r#"{"eos_token_id":[77]}"#, "holds 77")] {
            block_on(store.write("m/generation_config.json", text.as_bytes())).unwrap();
            refused(block_on(read_config(&store, "m")), expect);
        }
        refused(block_on(write_config_files(&store, "m", &tiny(), "float32", Some(b"no"))), "not valid JSON");
    }
}
