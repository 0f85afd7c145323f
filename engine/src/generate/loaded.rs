//! The model of the last text, kept for the next one.

use std::cell::RefCell;

use super::load;
use crate::control::Control;
use crate::device::Compute;
use crate::error::Result;
use crate::model::{Adapter, Llama, LlamaConfig};
use crate::protocol::GenerateRequest;
use crate::store::Store;

/// Positions that a loaded model has at least, where its context allows.
const POSITIONS: usize = 4096;

/// Pieces of a file of weights that are looked at, and bytes of each.
const LOOKS: u64 = 256;
const LOOK_BYTES: u64 = 4096;

/// The model of the last text, for the next one.
#[derive(Debug, Default)]
pub struct Loaded(RefCell<Option<(String, Llama)>>);

impl Loaded {
    /// Forgets it: something else wants the memory.
    pub fn clear(&self) {
        self.0.take();
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// The model of a request for sequences of up to `positions` tokens: the one that is here, if it is the same, else
    /// from its files; the shell then hears `why` the device was taken.
    ///
    /// # Errors
    /// What is wrong with the files or the device.
    pub async fn model(
        &self,
        request: &GenerateRequest,
        config: &LlamaConfig,
        compute: &Compute,
        why: String,
        positions: usize,
        store: &Store,
        control: &Control,
    ) -> Result<Llama> {
        let key = key_of(request, compute, store).await?;
        // Room for a conversation that grows.
        let room = positions.next_power_of_two().max(POSITIONS).min(config.max_position_embeddings).max(positions);
        let known = self.0.borrow().as_ref().filter(|(known, _)| *known == key).map(|(_, model)| model.clone());
        let model = match known {
            Some(model) if model.positions() >= positions => return Ok(model),
            Some(model) => model.with_positions(room),
            None => {
                self.clear(); // before the next one takes its memory
                control.notice(why);
                let model = load(store, &request.model, config, compute, room).await?;
                model.with_adapter(Adapter::load_mix(store, &request.adapters, &request.model, control).await?.as_ref())?
            }
        };
        self.0.replace(Some((key, model.clone())));
        Ok(model)
    }
}

/// What tells a model and its adapters from others: names, and what is in their folders.
async fn key_of(request: &GenerateRequest, compute: &Compute, store: &Store) -> Result<String> {
    let mut hashes = String::new();
    for folder in std::iter::once(&request.model).chain(request.adapters.iter().map(|adapter| &adapter.path)) {
        hashes += &hash_of(store, folder).await?;
    }
    Ok(format!("{} {:?} {} {hashes}", request.model, request.adapters, compute.info.name))
}

/// Hash of the configurations in a folder and of some bytes of its weights: another one after any training.
///
/// # Errors
/// [`Error::File`](crate::error::Error::File).
pub async fn hash_of(store: &Store, folder: &str) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for entry in store.list(folder.trim_end_matches('/')).await.unwrap_or_default().into_iter().filter(|entry| !entry.folder) {
        let name = entry.name.rsplit('/').next().unwrap_or_default();
        let is_whole = name == "config.json" || name == "adapter_config.json" || name.ends_with(".index.json");
        if !is_whole && !name.ends_with(".safetensors") {
            continue;
        }
        let blob = store.open(&entry.name).await?;
        let size = blob.size_bytes();
        hasher.update(name.as_bytes()).update(&size.to_le_bytes());
        let (step, length) = if is_whole { (size.max(1), size) } else { ((size / LOOKS).max(1), LOOK_BYTES) };
        let mut at = 0;
        while at < size {
            hasher.update(&blob.read(at..at + length)?);
            at += step;
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::generate;
    use crate::model::hub;
    use crate::protocol::{AdapterChoice, DeviceChoice, Event};

    /// A model of the golden files in memory, with a tokenizer.
    pub(crate) fn tiny(folder: &str) -> Store {
        let (store, golden) = (Store::memory(), Store::folder("../tests/golden"));
        let files = block_on(golden.list(folder)).unwrap().into_iter().map(|entry| entry.name);
        for name in files.chain(["tiny_llama/tokenizer.json".into()]) {
            let file = name.rsplit('/').next().unwrap();
            block_on(store.write(&format!("m/{file}"), &block_on(golden.read(&name)).unwrap())).unwrap();
        }
        store
    }

    pub(crate) fn request() -> GenerateRequest {
        let device = DeviceChoice::Cpu;
        GenerateRequest { model: "m".into(), prompts: vec!["a b".into()], device, max_new_tokens: 2, ..GenerateRequest::default() }
    }

    /// Whether a text has to load its model, which is when it tells why it takes the device.
    #[track_caller]
    fn loads(request: &GenerateRequest, loaded: &Loaded, store: &Store) -> bool {
        let (control, _signals, events) = Control::connect();
        block_on(generate::run(request, loaded, store, &control)).unwrap();
        std::iter::from_fn(|| events.try_recv().ok()).any(|(_, event)| matches!(event, Event::Notice { .. }))
    }

    /// Changes a bit of a weight: the file keeps its size.
    fn change(store: &Store, path: &str) {
        let mut bytes = block_on(store.read(path)).unwrap().to_vec();
        let place = bytes.len() / 8 * 7;
        bytes[place] ^= 1;
        block_on(store.write(path, &bytes)).unwrap();
    }

    #[test]
    fn the_same_model_is_loaded_once_and_another_one_anew() {
        let (store, loaded, request) = (tiny("tiny_llama"), Loaded::default(), request());
        let golden = Store::folder("../tests/golden");
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let bytes = block_on(golden.read(&format!("tiny_llama_lora/{file}"))).unwrap();
            block_on(store.write(&format!("a/{file}"), &bytes)).unwrap();
        }
        assert!(loaded.is_empty() && loads(&request, &loaded, &store));
        assert!(!loads(&request, &loaded, &store) && !loaded.is_empty());
        let other = GenerateRequest { prompts: vec!["b".into()], max_new_tokens: 5, ..request.clone() };
        assert!(!loads(&other, &loaded, &store), "another text");
        let adapted = |strength| {
            let adapters = vec![AdapterChoice { path: "a".into(), strength }];
            GenerateRequest { adapters, ..request.clone() }
        };
        assert!(loads(&adapted(1.0), &loaded, &store) && !loads(&adapted(1.0), &loaded, &store));
        assert!(loads(&adapted(0.5), &loaded, &store));
        let text = block_on(store.read_text("a/adapter_config.json")).unwrap();
        block_on(store.write("a/adapter_config.json", text.replacen("\"lora_dropout\": 0", "\"lora_dropout\": 1", 1).as_bytes())).unwrap();
        assert!(loads(&adapted(0.5), &loaded, &store), "the adapter's configuration was replaced");
        assert!(loads(&request, &loaded, &store));
    }

    #[test]
    fn files_that_are_replaced_in_place_are_noticed() {
        for folder in ["tiny_llama", "tiny_llama_sharded"] {
            let (store, loaded, request) = (tiny(folder), Loaded::default(), request());
            assert!(loads(&request, &loaded, &store) && !loads(&request, &loaded, &store));
            let shard = block_on(store.list("m")).unwrap().into_iter().rfind(|entry| entry.name.ends_with(".safetensors")).unwrap();
            change(&store, &shard.name);
            assert!(loads(&request, &loaded, &store), "{}", shard.name);
            let text = block_on(store.read_text("m/config.json")).unwrap();
            let theta = text.replacen("\"rope_theta\": 1", "\"rope_theta\": 2", 1);
            assert_ne!(theta, text);
            block_on(store.write("m/config.json", theta.as_bytes())).unwrap();
            assert!(loads(&request, &loaded, &store), "{folder}: config.json");
        }
    }

    #[test]
    fn a_conversation_that_grows_gets_positions_and_keeps_its_weights() {
        let (store, loaded, request) = (tiny("tiny_llama"), Loaded::default(), request());
        let config = LlamaConfig { max_position_embeddings: 20_000, ..block_on(hub::read_config(&store, "m")).unwrap() };
        let (compute, _) = block_on(Compute::open(DeviceChoice::Cpu)).unwrap();
        let (control, _signals, events) = Control::connect();
        let positions = |needed| {
            let model = block_on(loaded.model(&request, &config, &compute, "loads".into(), needed, &store, &control)).unwrap();
            (model.positions(), std::iter::from_fn(|| events.try_recv().ok()).count())
        };
        assert_eq!(positions(10), (4096, 1));
        assert_eq!(positions(4096), (4096, 0));
        assert_eq!(positions(4097), (8192, 0));
        assert_eq!(positions(8000), (8192, 0));
        assert_eq!(positions(19_000), (20_000, 0));
        assert_eq!(positions(3), (20_000, 0));
    }
}
