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
pub struct Loaded(RefCell<Option<Kept>>);

/// A model, without adapters and with those that it had last; both share their weights.
#[derive(Debug, Clone)]
struct Kept {
    /// See [`key_of`].
    key: String,
    base: Llama,
    adapted: Option<(String, Llama)>,
}

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
    /// from its files; the shell then hears `why` the device was taken. Other adapters are put on the one that is here.
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
        let key = key_of(&format!("{} {}", request.model, compute.info.name), [&request.model], store).await?;
        // Room for a conversation that grows.
        let room = positions.next_power_of_two().max(POSITIONS).min(config.max_position_embeddings).max(positions);
        let fitting = |model: Llama| if model.positions() < positions { model.with_positions(room) } else { model };
        let known = self.0.borrow().clone().filter(|kept| kept.key == key);
        let mut kept = match known {
            Some(kept) => kept,
            None => {
                self.clear(); // before the next one takes its memory
                control.notice(why);
                Kept { key, base: load(store, &request.model, config, compute, room).await?, adapted: None }
            }
        };
        kept.base = fitting(kept.base);
        self.0.replace(Some(kept.clone())); // it stays where an adapter cannot be read
        if request.adapters.is_empty() {
            return Ok(kept.base);
        }
        let key = key_of(&format!("{:?}", request.adapters), request.adapters.iter().map(|adapter| &adapter.path), store).await?;
        let model = match kept.adapted.take().filter(|(known, _)| *known == key) {
            Some((_, model)) => fitting(model),
            None => {
                let adapter = Adapter::load_mix(store, &request.adapters, &request.model, control).await?;
                kept.base.clone().with_adapter(adapter.as_ref())?
            }
        };
        kept.adapted = Some((key, model.clone()));
        self.0.replace(Some(kept));
        Ok(model)
    }
}

/// What tells models or adapters from others: names, and what is in their folders.
async fn key_of(names: &str, folders: impl IntoIterator<Item = &String>, store: &Store) -> Result<String> {
    let mut key = names.to_string();
    for folder in folders {
        key += &hash_of(store, folder).await?;
    }
    Ok(key)
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
        assert!(loaded.is_empty() && loads(&request, &loaded, &store));
        assert!(!loads(&request, &loaded, &store) && !loaded.is_empty());
        let other = GenerateRequest { prompts: vec!["b".into()], max_new_tokens: 5, ..request.clone() };
        assert!(!loads(&other, &loaded, &store), "another text");
    }

    #[test]
    fn adapters_change_while_the_weights_stay() {
        let (store, loaded, request) = (tiny("tiny_llama"), Loaded::default(), request());
        let golden = Store::folder("../tests/golden");
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let bytes = block_on(golden.read(&format!("tiny_llama_lora/{file}"))).unwrap();
            block_on(store.write(&format!("a/{file}"), &bytes)).unwrap();
        }
        let config = block_on(hub::read_config(&store, "m")).unwrap();
        let (compute, _) = block_on(Compute::open(DeviceChoice::Cpu)).unwrap();
        let asked = block_on(Adapter::load(&store, "a")).unwrap().config;
        // What the model of a request has beside its weights, and what was said meanwhile.
        let given = |strengths: &[f64]| {
            let (control, _signals, events) = Control::connect();
            let adapters = strengths.iter().map(|strength| AdapterChoice { path: "a".into(), strength: *strength }).collect();
            let request = GenerateRequest { adapters, ..request.clone() };
            let model = block_on(loaded.model(&request, &config, &compute, "loads".into(), 9, &store, &control));
            let pairs = model.map(|model| block_on(Adapter::read(&model, &asked)).unwrap().pairs);
            (pairs, std::iter::from_fn(|| events.try_recv().ok()).map(|(_, event)| event).collect::<Vec<_>>())
        };
        let loads = [Event::Notice { warning: false, text: "loads".into() }];
        let (whole, said) = given(&[1.0]);
        let whole = whole.unwrap();
        assert!(!whole.is_empty() && said.contains(&loads[0]));
        for (strengths, expected) in [(&[][..], None), (&[1.0], Some(&whole)), (&[], None), (&[1.0], Some(&whole))] {
            let (pairs, said) = given(strengths);
            assert_eq!((pairs.unwrap(), said), (expected.cloned().unwrap_or_default(), Vec::new()), "{strengths:?}");
        }
        let (half, said) = given(&[0.5]);
        assert!(half.unwrap() != whole && !said.contains(&loads[0]));
        assert!(given(&[f64::NAN]).0.is_err());
        let (again, said) = given(&[1.0]);
        assert!(again.unwrap() == whole && !said.contains(&loads[0]));
        let text = block_on(store.read_text("a/adapter_config.json")).unwrap();
        let scaled = text.replacen("\"lora_alpha\": 8", "\"lora_alpha\": 2", 1);
        assert_ne!(scaled, text);
        block_on(store.write("a/adapter_config.json", scaled.as_bytes())).unwrap();
        let (changed, said) = given(&[1.0]);
        assert!(changed.unwrap() != whole && !said.contains(&loads[0]), "the adapter's configuration was replaced");
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
