use super::*;
use crate::data::chat::{RowFormat, read};
use crate::text::template::tests::{date, golden, messages, tiny_tokenizer};
use crate::text::tokenizer::tests::{shared_data, shared_tokenizer};

const SOURCE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn template(source: &str, tokenizer: &Tokenizer) -> ChatTemplate {
    ChatTemplate::read(None, Some(source), tokenizer, date("2024-07-26")).unwrap().unwrap()
}

fn encoder<'a>(tokenizer: &'a Tokenizer, template: &'a ChatTemplate, loss_on: LossOn) -> Encoder<'a> {
    Encoder { tokenizer, template: Some(template), stops: &[2, 0], loss_on, max_length: 1000 }
}

fn row(text: &str) -> Example {
    read(text, &RowFormat::default()).examples.remove(0)
}

fn chat(pairs: &[(&str, &str)]) -> Example {
    let messages = pairs.iter().map(|(role, content)| Message::new(role, content)).collect();
    Example { place: 1.into(), task: None, content: Content::Chat { messages, tools: None } }
}

/// The texts of the runs of targets.
fn learned(tokenizer: &Tokenizer, document: &Document) -> Vec<String> {
    ranges(document).into_iter().map(|range| tokenizer.decode(&document.tokens[range], false)).collect()
}

fn ranges(document: &Document) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for index in (0..document.tokens.len()).filter(|index| document.is_target(*index)) {
        match ranges.last_mut() {
            Some(last) if last.end == index => last.end += 1,
            _ => ranges.push(index..index + 1),
        }
    }
    ranges
}

#[test]
fn ids_and_masks_are_those_of_transformers() {
    let (tokenizer, file) = (tiny_tokenizer(), golden("chat_golden.json"));
    let template = template(file.get_attr("template").unwrap().as_str().unwrap(), &tokenizer);
    for case in file.get_attr("cases").unwrap().try_iter().unwrap() {
        if case.get_attr("add_generation_prompt").unwrap().is_true() {
            continue;
        }
        let messages = messages(&case.get_attr("messages").unwrap());
        let example = Example { place: 1.into(), task: None, content: Content::Chat { messages, tools: None } };
        let encoded = encoder(&tokenizer, &template, LossOn::Assistant).encode(&example).unwrap();
        let numbers = |key: &str| case.get_attr(key).unwrap().try_iter().unwrap().map(|id| id.as_i64().unwrap() as u32).collect::<Vec<_>>();
        assert_eq!(encoded.document.tokens, numbers("ids"));
        assert_eq!(encoded.document.mask.iter().map(|target| u32::from(*target)).collect::<Vec<_>>(), numbers("assistant_mask"));
        assert_eq!(encoded.found, Some(Found::Marks));
    }
}

#[test]
fn published_models_learn_what_transformers_marks() {
    let families = [("smollm2", "SmolLM2-135M-Instruct", vec![2]), ("llama3.2", "Llama-3.2-1B-Instruct", vec![128_001, 128_008, 128_009])];
    for (family, model, stops) in families {
        let (Some(tokenizer), Some(path)) = (shared_tokenizer(family), shared_data(&format!("{family}/{model}/tokenizer_config.json")))
        else {
            continue;
        };
        let config = std::fs::read_to_string(path).unwrap();
        let mut compared = 0;
        for case in golden("chat_shared_golden.json").get_attr("conversations").unwrap().try_iter().unwrap() {
            let get = |key: &str| case.get_attr(key).ok().filter(|value| !value.is_undefined());
            let expected = get(family).unwrap();
            let day = get("date").map_or("2024-07-26".to_string(), |value| value.to_string());
            let template = ChatTemplate::read(Some(&config), None, &tokenizer, date(&day)).unwrap().unwrap();
            assert!(template.split_tokens(&tokenizer).is_empty());
            let content = Content::Chat { messages: messages(&get("messages").unwrap()), tools: get("tools") };
            let encoder =
                Encoder { tokenizer: &tokenizer, template: Some(&template), stops: &stops, loss_on: LossOn::Assistant, max_length: 1000 };
            let encoded = encoder.encode(&Example { place: 1.into(), task: None, content });
            let Some(ids) = expected.get_attr("ids").ok().filter(|ids| !ids.is_undefined()) else {
                assert!(encoded.is_err());
                continue;
            };
            let document = encoded.unwrap().document;
            if get("prompt").is_none() {
                assert_eq!(Value::from(document.tokens.clone()), ids);
            }
            let found: Vec<Vec<usize>> = ranges(&document).iter().map(|range| vec![range.start, range.end]).collect();
            assert_eq!(Value::from(found), expected.get_attr("replies").unwrap(), "{family}: {}", get("messages").unwrap());
            compared += 1;
        }
        assert!(compared >= 26, "{compared}");
    }
}

#[test]
fn a_turn_is_learned_up_to_its_end_token() {
    let tokenizer = tiny_tokenizer();
    let template = template(SOURCE, &tokenizer);
    let example = chat(&[("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four 🦀")]);
    let texts = |loss_on| learned(&tokenizer, &encoder(&tokenizer, &template, loss_on).encode(&example).unwrap().document);
    assert_eq!(texts(LossOn::Assistant), ["two<|im_end|>", "four 🦀<|im_end|>"]);
    assert_eq!(texts(LossOn::Completion), ["four 🦀<|im_end|>"]);
    assert_eq!(texts(LossOn::All).len(), 1);
    // An end token within a reply does not end it.
    let example = chat(&[("user", "one"), ("assistant", "a<|im_end|>b")]);
    let encoded = encoder(&tokenizer, &template, LossOn::Assistant).encode(&example).unwrap();
    assert_eq!(learned(&tokenizer, &encoded.document), ["a<|im_end|>b<|im_end|>"]);
    // Where the model stops at nothing that the template writes, the whole of it is learned.
    let deaf = Encoder { stops: &[500], ..encoder(&tokenizer, &template, LossOn::Assistant) };
    assert_eq!(learned(&tokenizer, &deaf.encode(&example).unwrap().document), ["a<|im_end|>b<|im_end|>\n"]);
}

#[test]
fn marks_that_leave_the_end_token_out_get_it() {
    let tokenizer = tiny_tokenizer();
    let source = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}";
    let template = template(source, &tokenizer);
    for (reply, text) in [("b", "b<|im_end|>"), ("b🦀", "b🦀<|im_end|>"), ("", "<|im_end|>")] {
        let encoded = encoder(&tokenizer, &template, LossOn::Assistant).encode(&chat(&[("user", "a"), ("assistant", reply)])).unwrap();
        assert_eq!(encoded.found, Some(Found::Marks));
        assert_eq!(learned(&tokenizer, &encoded.document), [text]);
    }
}

#[test]
fn turns_of_weight_0_are_left_out() {
    let tokenizer = tiny_tokenizer();
    let template = template(SOURCE, &tokenizer);
    let mut example = chat(&[("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]);
    let Content::Chat { messages, .. } = &mut example.content else { panic!() };
    messages[3].learn = false;
    let texts = |loss_on| learned(&tokenizer, &encoder(&tokenizer, &template, loss_on).encode(&example).unwrap().document);
    assert_eq!(texts(LossOn::Assistant), ["two<|im_end|>"]);
    assert_eq!(texts(LossOn::Completion), Vec::<String>::new());
}

#[test]
fn a_token_across_the_border_is_learned() {
    // " b" is one token, and the reply begins within it.
    let tokenizer = tiny_tokenizer();
    let template = template("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} {% endif %}", &tokenizer);
    let encoded = encoder(&tokenizer, &template, LossOn::Assistant).encode(&chat(&[("user", "a"), ("assistant", " the")])).unwrap();
    assert_eq!(learned(&tokenizer, &encoded.document), [" the"]);
}

#[test]
fn completions_follow_the_ids_of_their_prompts() {
    let tokenizer = tiny_tokenizer();
    let plain = |loss_on| Encoder { tokenizer: &tokenizer, template: None, stops: &[0, 2], loss_on, max_length: 1000 };
    let example = row(r#"{"prompt":"What is 2 + 3? ","completion":"5"}"#);
    let document = plain(LossOn::Completion).encode(&example).unwrap().document;
    let prompt = tokenizer.encode_prompt("What is 2 + 3? ");
    assert_eq!(document.tokens, [prompt.clone(), tokenizer.encode("5"), vec![0]].concat());
    assert_eq!(ranges(&document), [Range { start: prompt.len(), end: document.tokens.len() }]);
    assert_eq!(ranges(&plain(LossOn::All).encode(&example).unwrap().document), [Range { start: 0, end: document.tokens.len() }]);
    // A completion that spells its end out has it once.
    let example = row(r#"{"prompt":"a","completion":"b<|im_end|>"}"#);
    assert_eq!(plain(LossOn::Assistant).encode(&example).unwrap().document.tokens, tokenizer.encode("ab<|im_end|>"));
    let text = plain(LossOn::Assistant).encode(&row(r#"{"text":"a"}"#)).unwrap();
    assert_eq!((text.document.tokens, text.document.mask, text.found), ([tokenizer.encode("a"), vec![0]].concat(), vec![true; 2], None));
    let error = plain(LossOn::All).encode(&chat(&[("user", "a"), ("assistant", "b")])).unwrap_err().to_string();
    assert!(error.contains("no chat template"), "{error}");
}

#[test]
fn the_first_token_of_a_text_occurs_once() {
    let Some(tokenizer) = shared_tokenizer("llama3.2") else { return };
    let encoder = Encoder { tokenizer: &tokenizer, template: None, stops: &[128_009], loss_on: LossOn::Assistant, max_length: 1000 };
    assert_eq!(tokenizer.begin(), Some(128_000));
    for text in ["a", "<|begin_of_text|>a"] {
        let example = Example { place: 1.into(), task: None, content: Content::Text(text.into()) };
        assert_eq!(encoder.encode(&example).unwrap().document.tokens, [128_000, 64, 128_009]);
        let content = Content::Completion { prompt: text.into(), completion: "a".into() };
        assert_eq!(encoder.encode(&Example { place: 1.into(), task: None, content }).unwrap().document.tokens, [128_000, 64, 64, 128_009]);
    }
}

#[test]
fn what_is_cut_off_is_counted() {
    let tokenizer = tiny_tokenizer();
    let template = template(SOURCE, &tokenizer);
    let example = chat(&[("user", "one"), ("assistant", "two")]);
    let whole = encoder(&tokenizer, &template, LossOn::Assistant).encode(&example).unwrap();
    let targets = ranges(&whole.document)[0].clone();
    for max_length in [0, 1, 2, targets.start, targets.start + 1, targets.end, whole.document.tokens.len(), 64, 65, 1000] {
        let cut = Encoder { max_length, ..encoder(&tokenizer, &template, LossOn::Assistant) }.encode(&example).unwrap();
        let kept = max_length.min(whole.document.tokens.len());
        assert_eq!(cut.document.tokens, whole.document.tokens[..kept]);
        assert_eq!(cut.document.mask, whole.document.mask[..kept]);
        assert_eq!(cut.lost_tokens, whole.document.tokens.len() - kept);
        assert_eq!(cut.lost_targets, targets.len() - targets.len().min(kept.saturating_sub(targets.start)));
    }
}

#[test]
fn bytes_without_a_token_are_passed_over() {
    let Some(tokenizer) = shared_tokenizer("smollm2") else { return };
    let template = template(SOURCE, &tokenizer);
    let example = chat(&[("user", "\u{4}one\u{6}"), ("assistant", "\u{4}two\u{4}\u{13}"), ("user", "x"), ("assistant", "\u{4}")]);
    let encoded = encoder(&tokenizer, &template, LossOn::Assistant).encode(&example).unwrap();
    assert_eq!(learned(&tokenizer, &encoded.document), ["two<|im_end|>", "<|im_end|>"]);
    assert!(places(&tokenizer, "a\u{4}", &tokenizer.encode("a")).is_some());
}

#[test]
fn tokenizers_that_change_texts_find_replies_as_well() {
    let mut json: serde_json::Value = serde_json::from_slice(tiny_tokenizer().json()).unwrap();
    json["normalizer"] = serde_json::json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "Replace", "pattern": {"String": "ab"}, "content": "x"}]});
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "lower").unwrap();
    let template = template(SOURCE, &tokenizer);
    let example = chat(&[("user", "ONE ab"), ("assistant", "TWO ab 🦀"), ("user", "Three"), ("assistant", "ab")]);
    let encoded = encoder(&tokenizer, &template, LossOn::Assistant).encode(&example).unwrap();
    assert!(places(&tokenizer, "ONE", &tokenizer.encode("ONE")).is_none());
    assert_eq!(learned(&tokenizer, &encoded.document), ["two x 🦀<|im_end|>", "x<|im_end|>"]);
}

#[test]
fn pieces_show_every_byte() {
    let tokenizer = tiny_tokenizer();
    let template = template(SOURCE, &tokenizer);
    let encoder = encoder(&tokenizer, &template, LossOn::Assistant);
    let document = encoder.encode(&chat(&[("user", "é"), ("assistant", "🦀")])).unwrap().document;
    let pieces = encoder.pieces(&document);
    assert_eq!(pieces.iter().map(|piece| piece.id).collect::<Vec<_>>(), document.tokens);
    assert_eq!(pieces[0], Piece { text: "<|im_start|>".into(), id: 1, is_target: false });
    let learned: String = pieces.iter().filter(|piece| piece.is_target).map(|piece| piece.text.as_str()).collect();
    assert_eq!(learned, "<0xF0><0x9F><0xA6><0x80><|im_end|>");
    assert_eq!(shown("日".as_bytes()), "日");
}
