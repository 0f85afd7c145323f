//! Hugging Face's `tokenizer.json`, read by the `tokenizers` crate.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::pipeline::{EncodeOptions, Override, PipelineModel, PipelineToken, PipelineTokenizer};

use crate::error::{Error, Result};
use crate::store::Store;

/// Names under which tokenizers know the end of a document, most telling first.
const END_OF_TEXT: [&str; 8] = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>", "<|eot_id|>", "<eos>", "<|end|>", "[EOS]"];

/// No vocabulary has this many entries; larger ids are damage.
const MOST_IDS: u32 = 1 << 24;

/// A vocabulary and the rules that turn text into its ids and back. Clones share it.
#[derive(Clone)]
pub struct Tokenizer {
    pipeline: PipelineTokenizer,
    begin: Option<u32>,
    inner: Arc<Inner>,
}

struct Inner {
    json: Vec<u8>,
    hash: String,
    ids: HashMap<String, u32>,
    added: BTreeMap<u32, String>,
    /// Those of the added tokens that are no text.
    special: BTreeSet<u32>,
    vocab_size: usize,
    end_of_text: Option<u32>,
    /// What the tokens stand for, by their ids.
    bytes: Vec<Box<[u8]>>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("hash", &self.inner.hash).field("vocab_size", &self.inner.vocab_size).finish()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the one in a folder.
    ///
    /// # Errors
    /// [`Error::File`] where there is none, [`Error::Tokenizer`] where it cannot be used.
    pub async fn load(store: &Store, path: &str) -> Result<Self> {
        let inside = format!("{}/tokenizer.json", path.trim_end_matches('/'));
        let name = if store.is_folder(path).await { inside } else { path.to_string() };
        let blob = store.read(&name).await?;
        Self::from_json(&blob, &name)
    }

    /// Reads the bytes of a `tokenizer.json`; `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for other JSON, unknown components, or ids that do not fit together.
    pub fn from_json(json: &[u8], name: &str) -> Result<Self> {
        let bad = |why: &dyn fmt::Display| Error::Tokenizer(format!("{name}: {why}; is this a Hugging Face tokenizer.json?"));
        let mut value: Value = serde_json::from_slice(json).map_err(|e| bad(&e))?;
        let ids = vocabulary(&value).ok_or_else(|| bad(&"it holds no vocabulary"))?;
        let added = added_tokens(&value).map_err(|why| bad(&why))?;
        let highest = ids.values().chain(added.keys()).copied().max().ok_or_else(|| bad(&"its vocabulary is empty"))?;
        if highest >= MOST_IDS {
            return Err(bad(&format!("id {highest} is larger than any vocabulary's")));
        }
        let is_special = |row: &&Value| row["special"] == Value::Bool(true);
        let rows = value["added_tokens"].as_array().into_iter().flatten();
        let special = rows.filter(is_special).filter_map(|row| u32::try_from(row["id"].as_u64()?).ok()).collect();
        tokenizers::canonicalize_value(&mut value).map_err(|e| bad(&e))?;
        check_merges(&value, &ids).map_err(|why| bad(&why))?;
        complete_bytes(&mut value, &added, highest + 1);
        let pipeline = tokenizers::from_json(&value.to_string()).map_err(|e| bad(&e))?;
        drop(value);

        // The crate numbers added tokens itself; a file with gaps would get other ids than it declares.
        let known = pipeline.get_added_vocabulary();
        for (id, text) in &added {
            let found = known.token_to_id(text).or_else(|| ids.get(text).copied());
            if found != Some(*id) {
                return Err(bad(&format!("added token {text:?} declares id {id}, which does not follow the vocabulary")));
            }
        }
        let end_of_text = END_OF_TEXT.iter().find_map(|name| added.iter().find(|(_, text)| text == name).map(|(id, _)| *id));
        let inner = Inner {
            json: json.to_vec(),
            hash: blake3::hash(json).to_hex()[..16].to_string(),
            bytes: bytes_by_id(&pipeline, &added, highest),
            ids,
            added,
            special,
            vocab_size: highest as usize + 1,
            end_of_text,
        };
        let mut tokenizer = Self { pipeline, begin: None, inner: Arc::new(inner) };
        let [with, without] = [tokenizer.encode_prompt("a"), tokenizer.encode("a")];
        tokenizer.begin = with.first().copied().filter(|first| with.len() > without.len() && without.first() != Some(first));
        Ok(tokenizer)
    }

    /// Ids of a text, nothing added before or after it. Special tokens spelled out in the text are
    /// matched as `tokenizer.json` says. Bytes for which there is no token are dropped, as in Python.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        self.encode_into(text, false, &mut tokens);
        self.known(&tokens)
    }

    /// Ids of a text with what the tokenizer's post-processor adds, e.g. Llama's `<|begin_of_text|>`.
    pub fn encode_prompt(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 3 + 2);
        self.encode_into(text, true, &mut tokens);
        self.known(&tokens)
    }

    /// Without the stand-ins for bytes that the vocabulary lacks, see [`complete_bytes`].
    fn known(&self, tokens: &[PipelineToken]) -> Vec<u32> {
        let limit = self.inner.vocab_size as u32;
        tokens.iter().map(|token| token.id()).filter(|id| *id < limit).collect()
    }

    fn encode_into(&self, text: &str, add_special_tokens: bool, tokens: &mut Vec<PipelineToken>) {
        // A file may carry the truncation and padding of some training script: content is never cut here.
        let options = EncodeOptions { add_special_tokens, encode_special_tokens: false, padding: Override::Off, truncation: Override::Off };
        let before = tokens.len();
        if self.pipeline.encode_into(text, &options, tokens).is_ok() {
            return;
        }
        // A backtracking pattern of an unusual pre-tokenizer gave up on a long text: halves are easier.
        tokens.truncate(before);
        let middle = (text.len() / 2..text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len());
        if middle > 0 && middle < text.len() {
            self.encode_into(&text[..middle], add_special_tokens, tokens);
            self.encode_into(&text[middle..], false, tokens);
        }
    }

    /// Text of ids; invalid UTF-8 becomes U+FFFD, unknown ids nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.pipeline.decode(ids, skip_special).unwrap_or_default()
    }

    /// The bytes that a token stands for within a text (part of a character, maybe); none for unknown ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.inner.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// Whether a token is no text: the end of one, or a mark of a template.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special.contains(&id) || Some(id) == self.inner.end_of_text
    }

    /// Highest id + 1, added tokens included: a model's vocabulary must be at least as large.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The id that is put before every text, e.g. Llama's 128000.
    pub fn begin(&self) -> Option<u32> {
        self.begin
    }

    /// The token that ends a document: `<|endoftext|>`, `<|end_of_text|>`, `</s>`, …
    pub fn end_of_text(&self) -> Option<u32> {
        self.inner.end_of_text
    }

    /// Id of a token as `tokenizer.json` spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        let added = self.inner.added.iter().find(|(_, text)| *text == token).map(|(id, _)| *id);
        added.or_else(|| self.inner.ids.get(token).copied())
    }

    /// First 16 hex digits of the file's BLAKE3 hash.
    pub fn hash(&self) -> &str {
        &self.inner.hash
    }

    /// The file as it was read, for an export.
    pub fn json(&self) -> &[u8] {
        &self.inner.json
    }

    /// The pieces that the pre-tokenizer makes of a text; merges never cross them.
    pub(crate) fn pieces<'a>(&self, text: &'a str) -> Result<Vec<&'a str>> {
        use tokenizers::pipeline::{PreTokenizer, PreTokenizerScratch};
        let mut spans = Vec::new();
        let pre_tokenizer = self.pipeline.get_pre_tokenizer();
        pre_tokenizer
            .pre_tokenize(text, &mut PreTokenizerScratch::default(), &mut spans)
            .map_err(|e| Error::Tokenizer(format!("cannot split text into words: {e}")))?;
        Ok(spans.into_iter().filter_map(|span| text.get(span.range())).collect())
    }
}

/// The bytes that every token up to the `highest` id stands for; none where no token has an id.
fn bytes_by_id(pipeline: &PipelineTokenizer, added: &BTreeMap<u32, String>, highest: u32) -> Vec<Box<[u8]>> {
    let byte_level = matches!(pipeline.get_model(), PipelineModel::BPE(bpe) if bpe.is_byte_level());
    let byte_of: HashMap<char, u8> = byte_alphabet().into_iter().zip(0..=255).collect();
    let bytes = |id: u32| {
        if let Some(text) = added.get(&id) {
            return text.clone().into_bytes();
        }
        let Some(token) = pipeline.decode_tokens(&[id], false).pop() else { return Vec::new() };
        if byte_level {
            return token.chars().filter_map(|c| byte_of.get(&c).copied()).collect();
        }
        let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => vec![byte],
            None => token.replace('▁', " ").into_bytes(),
        }
    };
    (0..=highest).map(|id| bytes(id).into()).collect()
}

/// Token → id; a Unigram model lists `[token, score]` pairs in the order of their ids.
fn vocabulary(value: &Value) -> Option<HashMap<String, u32>> {
    match value.get("model")?.get("vocab")? {
        Value::Object(map) => map.iter().map(|(token, id)| Some((token.clone(), u32::try_from(id.as_u64()?).ok()?))).collect(),
        Value::Array(rows) => rows.iter().zip(0u32..).map(|(row, id)| Some((row.get(0)?.as_str()?.to_string(), id))).collect(),
        _ => None,
    }
}

fn added_tokens(value: &Value) -> Result<BTreeMap<u32, String>, String> {
    let rows = value.get("added_tokens").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut tokens = BTreeMap::new();
    for row in rows {
        let id = row.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        let text = row.get("content").and_then(Value::as_str);
        let (Some(id), Some(text)) = (id, text) else { return Err(format!("added token {row} lacks an id or content")) };
        if let Some(other) = tokens.insert(id, text.to_string()) {
            return Err(format!("added tokens {other:?} and {text:?} share the id {id}"));
        }
    }
    Ok(tokens)
}

/// Every merge must join two tokens into a third; the crate counts on it.
fn check_merges(value: &Value, ids: &HashMap<String, u32>) -> Result<(), String> {
    let model = &value["model"];
    let (Some(merges), None | Some("")) = (model["merges"].as_array(), model["continuing_subword_prefix"].as_str()) else { return Ok(()) };
    for merge in merges {
        let (Some(left), Some(right)) = (merge[0].as_str(), merge[1].as_str()) else { return Err(format!("merge {merge} is not a pair")) };
        if !ids.contains_key(&format!("{left}{right}")) {
            return Err(format!("merge {merge} makes a token that the vocabulary lacks"));
        }
    }
    Ok(())
}

/// Gives ids behind all others to bytes that a byte-level vocabulary lacks (SmolLM2's has 235 of 256).
///
/// `tokenizers` 1.0.0-rc.3 refuses such a vocabulary, Python's drops the bytes; [`Tokenizer::known`]
/// drops them here. One difference remains: Python merges tokens across a dropped byte when both stand
/// in one word, which takes a control character between two punctuation marks.
fn complete_bytes(value: &mut Value, added: &BTreeMap<u32, String>, first: u32) {
    let model = &mut value["model"];
    if model["byte_level"].as_bool() != Some(true) {
        return;
    }
    let Some(vocabulary) = model["vocab"].as_object_mut() else { return };
    let missing: Vec<String> = byte_alphabet().into_iter().map(String::from).filter(|token| !vocabulary.contains_key(token)).collect();
    if missing.is_empty() {
        return;
    }
    // Added tokens are numbered behind the vocabulary, so those outside it enter it first.
    for (id, text) in added {
        vocabulary.entry(text.clone()).or_insert_with(|| Value::from(*id));
    }
    for (token, id) in missing.into_iter().zip(first..) {
        vocabulary.insert(token, Value::from(id));
    }
}

/// The printable character that byte-level vocabularies write for every byte: itself where it is a
/// visible Latin-1 character, else the next one from U+0100 on.
pub(crate) fn byte_alphabet() -> Vec<char> {
    let mut next = 0x100u32;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).expect("U+0100 to U+0143 are characters")
            }
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use futures_lite::future::block_on;

    /// The folder with the reference data, if this machine has it.
    pub(crate) fn shared_data(path: &str) -> Option<String> {
        let path = format!("../../shared/data/{path}"); // tests run in their package's folder
        if std::path::Path::new(&path).exists() {
            return Some(path);
        }
        println!("skipped: no {path}");
        None
    }

    pub(crate) fn shared_tokenizer(family: &str) -> Option<Tokenizer> {
        let path = shared_data(&format!("{family}/tokenizer.json"))?;
        Some(block_on(Tokenizer::load(&Store::folder("."), &path)).unwrap())
    }

    #[track_caller]
    fn reference_encodings_hold(family: &str) {
        let Some(tokenizer) = shared_tokenizer(family) else { return };
        let path = shared_data(&format!("{family}/tokenizer_reference_encodings.json")).unwrap();
        let cases: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let cases = cases["cases"].as_array().unwrap();
        assert!(cases.len() >= 20);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(tokenizer.encode_prompt(text), ids, "{text:?}");
            assert_eq!(tokenizer.decode(&ids, false), case["decoded"].as_str().unwrap(), "{text:?}");
            assert_eq!(tokenizer.decode(&ids, true), case["decoded_skip_special"].as_str().unwrap(), "{text:?}");
            let content = tokenizer.encode(text);
            assert!(ids.ends_with(&content));
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).copied().collect();
            assert_eq!(String::from_utf8_lossy(&bytes), case["decoded"].as_str().unwrap(), "{text:?}");
        }
    }

    #[test]
    fn smollm2_equals_python() {
        reference_encodings_hold("smollm2");
    }

    #[test]
    fn llama_equals_python() {
        reference_encodings_hold("llama3.2");
    }

    #[test]
    fn sizes_and_names_are_the_files() {
        if let Some(tokenizer) = shared_tokenizer("smollm2") {
            assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text()), (49_152, Some(0)));
            assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2));
            assert_eq!(tokenizer.token_id("Ġthe"), tokenizer.encode(" the").first().copied());
            // There is no token for byte 0x04: it is dropped, as in Python.
            assert_eq!(tokenizer.encode("a\u{4}b"), tokenizer.encode("a").into_iter().chain(tokenizer.encode("b")).collect::<Vec<_>>());
        }
        if let Some(tokenizer) = shared_tokenizer("llama3.2") {
            assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text()), (128_256, Some(128_001)));
            assert_eq!(tokenizer.encode("a").len() + 1, tokenizer.encode_prompt("a").len());
        }
    }

    #[test]
    fn a_mebibyte_of_one_character_encodes() {
        let units = ["a", "^", " ", "_", "\n", "7", "語", "e\u{301}", "\u{200b}", "😀", "<|im_", "ab", " \n"];
        for family in ["smollm2", "llama3.2"] {
            let Some(tokenizer) = shared_tokenizer(family) else { continue };
            for unit in units {
                let text = unit.repeat((1 << 20) / unit.len());
                let start = std::time::Instant::now();
                let ids = tokenizer.encode(&text);
                println!("{family} {unit:?}: {} tokens in {:.2} s", ids.len(), start.elapsed().as_secs_f64());
                assert_eq!(tokenizer.decode(&ids, false), text);
            }
        }
    }

    #[test]
    fn other_files_are_refused_in_one_line() {
        let cases: [&[u8]; 9] = [
            br#"{"model":{"type":"BPE","vocab":{"aa":0,"bb":1},"merges":["aa bb"]}}"#,
            br#"{"model":{"type":"BPE","vocab":{"a":4294967295},"merges":[]}}"#,
            b"",
            b"{",
            b"[]",
            b"{\"model\": {}}",
            b"{\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": []}}",
            b"{\"model\": {\"type\": \"Magic\", \"vocab\": {\"a\": 0}}}",
            b"{\"version\":\"1.0\",\"added_tokens\":[{\"id\":9,\"content\":\"x\",\"special\":true}],\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}",
        ];
        for json in cases {
            let error = Tokenizer::from_json(json, "t.json").expect_err("not a tokenizer").to_string();
            assert!(error.starts_with("t.json: ") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn byte_alphabet_is_gpt2s() {
        let alphabet = byte_alphabet();
        assert_eq!((alphabet[b' ' as usize], alphabet[b'\n' as usize], alphabet[0xad]), ('Ġ', 'Ċ', 'Ń'));
        assert_eq!(alphabet.iter().collect::<std::collections::HashSet<_>>().len(), 256);
    }
}
