//! Reasoned answers: rows as the reference's tokenizer makes them, rollouts that go on, a whole task on a tiny model.

use futures_lite::future::block_on;
use smolforge_engine::data::chat::{self, RowFormat};
use smolforge_engine::data::example::{Encoder, LossOn};
use smolforge_engine::store::Store;
use smolforge_engine::tasks::reason::learn::{Lesson, rows};
use smolforge_engine::tasks::reason::questions::Question;
use smolforge_engine::text::tokenizer::Tokenizer;

#[test]
fn rows_have_the_ids_and_masks_of_the_reference() {
    let data = Store::folder("../../shared/data"); // tests run in their package's folder
    let Ok(text) = block_on(data.read_text("unit-conversion/sft_tokenize_reference.json")) else {
        println!("skipped: no unit-conversion/sft_tokenize_reference.json in ../shared/data");
        return;
    };
    let tokenizer = block_on(Tokenizer::load(&data, "smollm2")).unwrap();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let encoder = Encoder { tokenizer: &tokenizer, template: None, stops: &[end], loss_on: LossOn::Completion, max_length: 128 };
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    for case in reference["cases"].as_array().unwrap() {
        let reasoning = case["answer"].as_str().unwrap().to_string();
        let lesson = if reasoning.starts_with("<answer>") { Lesson::Answers } else { Lesson::Reasoning };
        let text = case["question"].as_str().unwrap().to_string();
        let question = Question { text, answer: case["raw_answer"].as_f64().unwrap(), reasoning: Some(reasoning) };
        let file = chat::read(&rows(&[question], lesson, "f").unwrap(), &RowFormat::default());
        let document = encoder.encode(&file.examples[0]).unwrap().document;
        let numbers = |key: &str| case[key].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect::<Vec<_>>();
        let (ids, labels) = (numbers("input_ids"), numbers("labels"));
        let used = document.tokens.len();
        assert_eq!(document.tokens.iter().map(|id| i64::from(*id)).collect::<Vec<_>>(), ids[..used], "{case}");
        assert!(ids[used..].iter().all(|id| *id == i64::from(end)) && labels[used..].iter().all(|label| *label == -100));
        let learned: Vec<i64> = (0..used).map(|at| if document.is_target(at) { ids[at] } else { -100 }).collect();
        assert_eq!(learned, labels[..used], "{case}");
    }
}
