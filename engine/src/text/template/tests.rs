use super::*;
use crate::text::tokenizer::tests::shared_data;
use serde_json::{Value as Json, json};

/// FNV-1a, 64 bits.
fn hash(text: &str) -> String {
    let value = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |value, byte| (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{value:016x}")
}

/// A golden file; keys keep their order.
pub(crate) fn golden(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(format!("../tests/golden/{name}")).unwrap()).unwrap()
}

pub(crate) fn tiny_tokenizer() -> Tokenizer {
    Tokenizer::from_json(&std::fs::read("../tests/golden/tokenizer/tokenizer.json").unwrap(), "tiny").unwrap()
}

pub(crate) fn date(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

fn read(config: &Json) -> Result<Option<ChatTemplate>> {
    ChatTemplate::read(Some(&config.to_string()), None, &tiny_tokenizer(), date("2024-07-06"))
}

fn template(source: &str) -> ChatTemplate {
    read(&json!({ "chat_template": source, "bos_token": "<s>", "eos_token": {"content": "</s>"} })).unwrap().unwrap()
}

/// Messages of a golden file as they stand there.
pub(crate) fn messages(list: &Value) -> Vec<Message> {
    let field = |message: &Value, key: &str| message.get_attr(key).ok().and_then(|value| value.as_str().map(str::to_string));
    let message = |message: Value| {
        let names = message.try_iter().unwrap().map(|key| key.to_string()).filter(|key| key != "role" && key != "content");
        let other = names.map(|key| (key.clone(), message.get_attr(&key).unwrap())).collect();
        Message { role: field(&message, "role").unwrap(), content: field(&message, "content"), learn: true, other }
    };
    list.try_iter().unwrap().map(message).collect()
}

fn turns(pairs: &[(&str, &str)]) -> Vec<Message> {
    pairs.iter().map(|(role, content)| Message::new(role, content)).collect()
}

/// What the assistant is found to say.
fn said(template: &ChatTemplate, messages: &[Message]) -> (Found, Vec<String>) {
    let rendered = template.spans(messages, None).unwrap();
    (rendered.found, rendered.replies.iter().map(|reply| rendered.text[reply.bytes.clone()].to_string()).collect())
}

#[test]
fn texts_are_those_of_transformers() {
    let file = golden("chat_golden.json");
    let chat = template(file.get_attr("template").unwrap().as_str().unwrap());
    assert!(chat.is_marked() && !chat.is_plain() && !chat.is_missing() && !chat.asks_for_date());
    for case in file.get_attr("cases").unwrap().try_iter().unwrap() {
        let prompt = case.get_attr("add_generation_prompt").unwrap().is_true();
        let messages = messages(&case.get_attr("messages").unwrap());
        assert_eq!(chat.render(&messages, None, prompt).unwrap(), case.get_attr("text").unwrap().as_str().unwrap());
    }
}

#[test]
fn published_templates_render_as_in_transformers() {
    for (family, model) in [("smollm2", "SmolLM2-135M-Instruct"), ("llama3.2", "Llama-3.2-1B-Instruct")] {
        let Some(path) = shared_data(&format!("{family}/{model}/tokenizer_config.json")) else { continue };
        let config = std::fs::read_to_string(path).unwrap();
        let (mut rendered, mut refused) = (0, 0);
        for case in golden("chat_shared_golden.json").get_attr("conversations").unwrap().try_iter().unwrap() {
            let get = |key: &str| case.get_attr(key).ok().filter(|value| !value.is_undefined());
            let day = get("date").map_or("2024-07-26".to_string(), |value| value.to_string());
            let chat = ChatTemplate::read(Some(&config), None, &tiny_tokenizer(), date(&day)).unwrap().unwrap();
            assert_eq!(chat.asks_for_date(), family == "llama3.2");
            let messages = messages(&get("messages").unwrap());
            let text = chat.render(&messages, get("tools").as_ref(), get("prompt").is_some_and(|prompt| prompt.is_true()));
            match get(family).unwrap().get_attr("hash").unwrap().as_str() {
                Some(expected) => assert_eq!(hash(text.as_ref().unwrap()), expected, "{text:?}"),
                None => assert!(text.is_err(), "{text:?}"),
            }
            *if text.is_ok() { &mut rendered } else { &mut refused } += 1;
        }
        assert!(rendered >= 25 && refused == 1, "{rendered} {refused}");
    }
}

#[test]
fn snippets_render_as_in_jinja() {
    let file = golden("chat_shared_golden.json");
    let (context, mut cases) = (file.get_attr("context").unwrap(), 0);
    for case in file.get_attr("snippets").unwrap().try_iter().unwrap() {
        let source = case.get_attr("template").unwrap().to_string();
        let mut environment = environment(date("2024-07-06"));
        let result =
            environment.add_template_owned("t", source.clone()).and_then(|()| environment.get_template("t")?.render(context.clone()));
        match case.get_attr("text").unwrap().as_str() {
            Some(text) => assert_eq!(result.as_deref().map_err(ToString::to_string), Ok(text), "{source}"),
            None => assert!(result.is_err(), "{source}: {result:?}"),
        }
        cases += 1;
    }
    assert!(cases > 25);
}

#[test]
fn the_template_is_found_where_models_keep_it() {
    let text = |template: Option<ChatTemplate>, tools: Option<&Value>| template.unwrap().render(&[], tools, false).unwrap();
    assert_eq!(text(read(&json!({"chat_template": "one"})).unwrap(), None), "one");
    let tools = Value::from(vec![Value::from_pairs([("name", "f")])]);
    for named in [
        json!([{"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "{%"}, {"name": "default", "template": "plain"}]),
        json!({"tool_use": "tools", "default": "plain"}),
    ] {
        let config = json!({ "chat_template": named });
        assert_eq!(text(read(&config).unwrap(), None), "plain");
        assert_eq!(text(read(&config).unwrap(), Some(&tools)), "tools");
        let of_file = ChatTemplate::read(Some(&config.to_string()), Some("file"), &tiny_tokenizer(), date("2024-07-06")).unwrap();
        assert_eq!(text(of_file, Some(&tools)), "file");
    }
    let tokens = template("{{ bos_token }}{{ eos_token }}{{ pad_token }}");
    assert_eq!((tokens.render(&[], None, false).unwrap().as_str(), tokens.token("eos_token")), ("<s></s>", Some("</s>")));
}

#[test]
fn tokenizers_without_a_template_get_chatml_if_they_know_its_tokens() {
    let plain = ChatTemplate::read(None, None, &tiny_tokenizer(), date("2024-07-06")).unwrap().unwrap();
    assert!(plain.is_plain() && plain.is_missing() && plain.is_marked() && plain.split_tokens(&tiny_tokenizer()).is_empty());
    let carried = ChatTemplate::read(None, Some(CHATML), &tiny_tokenizer(), date("2024-07-06")).unwrap().unwrap();
    assert!(carried.is_plain() && !carried.is_missing());
    let messages = turns(&[("user", "a"), ("assistant", "b\n")]);
    assert_eq!(plain.render(&messages, None, false).unwrap(), "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb\n<|im_end|>\n");
    assert_eq!(plain.render(&messages[..1], None, true).unwrap(), "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(said(&plain, &messages), (Found::Marks, vec!["b\n<|im_end|>".to_string()]));
    let bare = br#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
    let bare = Tokenizer::from_json(bare, "bare").unwrap();
    assert!(ChatTemplate::read(None, None, &bare, date("2024-07-06")).unwrap().is_none());
}

#[test]
fn replies_are_found_by_prefixes() {
    let source = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}<e>\n\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let messages = turns(&[("user", "same"), ("assistant", " same "), ("user", "same"), ("assistant", "")]);
    assert_eq!(said(&template(source), &messages), (Found::Prefixes, vec!["same<e>\n\n".to_string(), "<e>\n\n".to_string()]));
    assert_eq!(said(&template(source), &messages[..1]), (Found::Prefixes, vec![]));
}

#[test]
fn replies_that_later_turns_change_are_found_by_their_contents() {
    // Thoughts are shown in the last turn only; the conversation must begin with the user.
    let source = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}{% for m in messages %}\
        [{{ m.role }}]{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</t>')[-1] | trim }}{% endif %}<e>{% endfor %}\
        {% if add_generation_prompt %}[assistant]{% endif %}";
    let messages = turns(&[("user", "q"), ("assistant", "<t>hm</t> a"), ("user", "q"), ("assistant", "<t>so</t> a")]);
    assert_eq!(said(&template(source), &messages), (Found::Contents, vec!["a".to_string(), "<t>so</t> a<e>".to_string()]));
    // A reply that is written twice cannot be told apart.
    let twice = template("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}{{ messages | length }}");
    let error = twice.spans(&turns(&[("user", "q"), ("assistant", "a"), ("user", "q")]), None).unwrap_err().to_string();
    assert!(error.contains("message 2") && !error.contains('\n'), "{error}");
}

#[test]
fn marks_belong_to_messages() {
    let source = "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}{% endgeneration %}\
        {%- if m.more %}+{%- generation -%} {{ m.more }} {%- endgeneration -%}{% endif %}{% else %}{{ m.content }}{% endif %};{% endfor %}";
    let mut messages = turns(&[("user", "q"), ("assistant", "a"), ("assistant", "b"), ("user", "q"), ("assistant", "c")]);
    messages[2].other.push(("more".into(), Value::from("more")));
    let rendered = template(source).spans(&messages, None).unwrap();
    assert_eq!(rendered.text, "q;A:a;A:b+more;q;A:c;");
    let found: Vec<_> = rendered.replies.iter().map(|reply| (reply.message, &rendered.text[reply.bytes.clone()])).collect();
    assert_eq!(found, [(1, "a"), (2, "b"), (2, "more"), (4, "c")]);
    // Marks do not change what is written, and texts that hold the marks' characters are found in another way.
    assert_eq!(template(source).render(&messages, None, false).unwrap(), rendered.text);
    let odd = turns(&[("user", "q\u{fdd0}\u{fdd1}"), ("assistant", "a\u{fdd1}")]);
    assert_eq!(said(&template(source), &odd), (Found::Prefixes, vec!["A:a\u{fdd1};".to_string()]));
    let trimmed = template(
        "{% for m in messages %}{% set s %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}{{ s | trim }};{% endfor %}",
    );
    assert_eq!(said(&trimmed, &turns(&[("assistant", " a ")])), (Found::Prefixes, vec!["a;".to_string()]));
}

#[test]
fn reasoning_has_every_name_and_null_none() {
    let mut message = Message { content: None, ..Message::new("assistant", "") };
    message.other = vec![("reasoning".into(), Value::from("r")), ("tool_calls".into(), Value::from(()))];
    let source = "{{ messages[0] }}{{ messages[0].content is defined }}";
    let expected = "{'thinking': 'r', 'role': 'assistant', 'reasoning': 'r', 'reasoning_content': 'r'}False";
    assert_eq!(template(source).render(&[message], None, false).unwrap(), expected);
}

#[test]
fn tokens_that_the_tokenizer_does_not_know_are_told() {
    let known = template("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}a < b > c <|");
    assert_eq!(known.split_tokens(&tiny_tokenizer()), Vec::<String>::new());
    let unknown =
        template("{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.content }}<|eot|>{% if tools %}<|tool|>{% endif %}{% endfor %}");
    assert_eq!(unknown.split_tokens(&tiny_tokenizer()), ["<s>", "<|eot|>"]);
}

#[test]
fn hostile_templates_are_refused_in_one_line() {
    let messages = turns(&[("user", "q"), ("assistant", "a")]);
    let loops = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
    let nested = "{% set n = namespace(x=[]) %}{% for i in range(90000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x | tojson }}";
    let doubled = "{% set n = namespace(x='abcdefgh' * 1000000) %}{% for i in range(90) %}{{ n.x }}{% endfor %}";
    let cases = [
        ("{{ raise_exception('Roles\n must   alternate') }}", "chat template, line 1: Roles must alternate"),
        (loops, "loop?"),
        (nested, "loop?"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% include 'default' %}", "error in"),
        (doubled, "more than 64 MiB"),
        ("{{ 'a' * 1000000000 }}", "too large"),
        ("{{ messages[0].content.nothing() }}", "nothing"),
        ("{{ missing.field }}", "undefined"),
        ("{{ strftime_now('%Q%') }}", "no format"),
        ("{{ namespace(x=1) | tojson }}{{ range | tojson }}", "JSON"),
    ];
    for (source, expected) in cases {
        let template = template(source);
        for error in [template.render(&messages, None, false).unwrap_err(), template.spans(&messages, None).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains(expected) && !error.contains('\n') && error.len() < 300, "{source}: {error}");
        }
    }
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    for source in
        ["{% for %}", "{{ 'a", "{% generation %}", "{% endgeneration %}", "{% nothing %}", "{{ x | nothing }}", "{{", "{%", deep.as_str()]
    {
        let error = read(&json!({ "chat_template": source })).and_then(|template| template.unwrap().render(&messages, None, false));
        // An open tag at the end is text for Jinja.
        if let Err(error) = error {
            let error = error.to_string();
            assert!(error.starts_with("chat template") && !error.contains('\n') && error.len() < 300, "{source}: {error}");
        }
    }
    for (config, expected) in [
        ("{", "tokenizer_config.json"),
        (r#"{"chat_template": 7}"#, "neither"),
        (r#"{"chat_template": [{"name": "rag", "template": ""}]}"#, "`default`"),
        ("[]", ""),
    ] {
        let result = ChatTemplate::read(Some(config), None, &tiny_tokenizer(), date("2024-07-06"));
        let error = result.err().map_or(String::new(), |error| error.to_string());
        assert!(error.contains(expected) && !error.contains('\n'), "{config}: {error}");
    }
}
