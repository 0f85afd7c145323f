//! What is looked at before a fine-tuning run starts: whether the model will learn to answer and to stop.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::data::chat::{BadRow, Place, reasons};
use crate::data::example::{Encoded, Encoder};
use crate::text::template::Found;

/// Share of examples that may be cut off before it is remarked.
const MANY_TRUNCATED: f64 = 0.05;
/// Rows that a check names.
const MOST_ROWS: usize = 10;
/// Bars of the histogram.
const BINS: usize = 20;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Green,
    /// Worth a look.
    Yellow,
    /// Training would teach something wrong.
    Red,
}

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// How bad it is.
    pub level: Level,
    /// What was found, with figures.
    pub line: String,
    /// The first rows that it is about: their lines, with their files where there are several.
    pub rows: Vec<String>,
}

/// How long examples are, in tokens after cutting.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    /// Shortest.
    pub min: usize,
    /// Mean.
    pub mean: f64,
    /// 19 of 20 are no longer.
    pub p95: usize,
    /// Longest.
    pub max: usize,
    /// Bars of equal width from 1 on: largest length in it, number of examples.
    pub bins: Vec<(usize, usize)>,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preflight {
    /// In a fixed order.
    pub checks: Vec<Check>,
    /// Lengths of the examples.
    pub lengths: Lengths,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Those that are learned.
    pub targets: usize,
}

impl Preflight {
    /// The worst of the checks.
    pub fn level(&self) -> Level {
        self.checks.iter().map(|check| check.level).max().unwrap_or(Level::Green)
    }
}

/// Looks at encoded examples. `bad` are rows that cannot be used, those included that the template refused; `pad` is the id
/// that fills batches, if the model names one.
pub fn preflight(encoder: &Encoder<'_>, examples: &[Encoded], bad: &[BadRow], pad: Option<u32>) -> Preflight {
    let tokens = examples.iter().map(|example| example.document.tokens.len()).sum();
    let targets = examples.iter().map(target_count).sum();
    let mut checks = vec![rows(examples, bad), template(encoder, examples)];
    checks.extend(date(encoder));
    checks.extend(specials(encoder));
    checks.extend([begin(encoder, examples), stop(encoder, examples), padding(encoder, pad), truncation(encoder, examples)]);
    checks.extend([without_targets(examples), duplicates(examples), share(tokens, targets)]);
    Preflight { checks, lengths: lengths(examples), tokens, targets }
}

fn check(level: Level, line: String, rows: Vec<&Place>) -> Check {
    Check { level, line, rows: rows.into_iter().take(MOST_ROWS).map(Place::to_string).collect() }
}

fn lines_of<'a>(examples: &'a [Encoded], mut wanted: impl FnMut(&'a Encoded) -> bool) -> Vec<&'a Place> {
    examples.iter().filter(|example| wanted(example)).map(|example| &example.place).collect()
}

fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// Tokens that are learned; the first one of a sequence is never predicted.
pub fn target_count(example: &Encoded) -> usize {
    (1..example.document.tokens.len()).filter(|index| example.document.is_target(*index)).count()
}

fn rows(examples: &[Encoded], bad: &[BadRow]) -> Check {
    let level = if bad.len() > examples.len() || examples.is_empty() {
        Level::Red
    } else if bad.is_empty() {
        Level::Green
    } else {
        Level::Yellow
    };
    let reasons = if bad.is_empty() { String::new() } else { format!("; {}", reasons(bad)) };
    let line = format!("{} examples, {} rows skipped{reasons}", examples.len(), bad.len());
    check(level, line, bad.iter().map(|bad| &bad.place).collect())
}

fn template(encoder: &Encoder<'_>, examples: &[Encoded]) -> Check {
    let Some(template) = encoder.template else {
        let line = "no chat template; none is needed for prompts with completions and texts";
        return check(Level::Green, line.into(), Vec::new());
    };
    let changed = lines_of(examples, |example| example.found == Some(Found::Contents));
    if template.is_missing() {
        let line = "plain ChatML, for the model has no chat template of its own; what is trained carries it, and `chat` asks by it";
        return check(Level::Yellow, line.into(), Vec::new());
    }
    if !changed.is_empty() {
        let line =
            format!("chat template writes turns in another way when more follow ({} examples): generation sees other texts", changed.len());
        return check(Level::Yellow, line, changed);
    }
    let how = if template.is_marked() { "marks the replies" } else { "keeps what it wrote when turns follow" };
    let what = if template.is_plain() { "plain ChatML, which the model carries" } else { "chat template of the model" };
    check(Level::Green, format!("{what}; it {how}"), Vec::new())
}

fn date(encoder: &Encoder<'_>) -> Option<Check> {
    let template = encoder.template.filter(|template| template.asks_for_date())?;
    Some(check(Level::Green, format!("chat template writes the date: frozen at {}", template.date()), Vec::new()))
}

fn specials(encoder: &Encoder<'_>) -> Option<Check> {
    let split = encoder.template?.split_tokens(encoder.tokenizer);
    Some(if split.is_empty() {
        check(Level::Green, "special tokens of the chat template are single ids".into(), Vec::new())
    } else {
        let line = format!(
            "the tokenizer has no single id for {} of the chat template: do template and tokenizer belong together?",
            split.join(" ")
        );
        check(Level::Red, line, Vec::new())
    })
}

fn begin(encoder: &Encoder<'_>, examples: &[Encoded]) -> Check {
    let named = encoder.template.and_then(|template| encoder.tokenizer.token_id(template.token("bos_token")?));
    let own = encoder.tokenizer.begin();
    let Some(begin) = own.or(named) else {
        return check(Level::Green, "the tokenizer has no beginning-of-text token".into(), Vec::new());
    };
    let doubled = lines_of(examples, |example| example.document.tokens.starts_with(&[begin, begin]));
    if !doubled.is_empty() {
        let line = format!("beginning-of-text token {begin} stands twice at the start of {} examples", doubled.len());
        return check(Level::Red, line, doubled);
    }
    // A token that also begins every turn, like <|im_start|>, is not counted further.
    if own.is_none() {
        return check(Level::Green, format!("no example begins with token {begin} twice"), Vec::new());
    }
    let lacking = lines_of(examples, |example| example.document.tokens.first().is_some_and(|first| *first != begin));
    if !lacking.is_empty() {
        let line = format!("{} examples lack the beginning-of-text token {begin} that the tokenizer gives other texts", lacking.len());
        return check(Level::Yellow, line, lacking);
    }
    let again = lines_of(examples, |example| example.document.tokens.iter().skip(1).any(|id| *id == begin));
    let level = if again.is_empty() { Level::Green } else { Level::Yellow };
    let line = match again.len() {
        0 => format!("beginning-of-text token {begin} occurs once in every example"),
        count => format!("beginning-of-text token {begin} occurs again within {count} examples"),
    };
    check(level, line, again)
}

fn stop(encoder: &Encoder<'_>, examples: &[Encoded]) -> Check {
    let learns = |example: &Encoded| {
        let document = &example.document;
        (1..document.tokens.len()).any(|index| document.is_target(index) && encoder.stops.contains(&document.tokens[index]))
    };
    let lacking = lines_of(examples, |example| !learns(example));
    let (with, all) = (examples.len() - lacking.len(), examples.len());
    let ids = encoder.stops.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    // A long text may be cut; an answer that never comes to its end teaches to go on for ever.
    let is_text = |example: &Encoded| example.found.is_none() && target_count(example) + 1 >= example.document.tokens.len();
    let cut = examples.iter().all(|example| example.lost_tokens > 0 && is_text(example));
    let level = match with {
        0 if !cut => Level::Red,
        _ if with < all => Level::Yellow,
        _ => Level::Green,
    };
    let line = match with {
        0 if cut => format!("all examples are cut before a stop token ({ids}) is learned: the model would not learn to stop"),
        0 if examples.iter().any(|example| example.lost_tokens > 0) => {
            format!(
                "every example is cut at {} tokens before a stop token ({ids}): the model would never stop; raise --max-seq-length",
                encoder.max_length
            )
        }
        0 => format!("no example teaches a stop token ({ids}): the model would never stop"),
        _ => format!("a stop token ({ids}) is learned in {with} of {all} examples"),
    };
    check(level, line, lacking)
}

/// Batches are padded by position: a pad id that is also a stop id costs nothing here.
fn padding(encoder: &Encoder<'_>, pad: Option<u32>) -> Check {
    let line = match pad {
        Some(pad) if encoder.stops.contains(&pad) => {
            format!("padding (id {pad}, also a stop token) is masked by its position, so the stop token stays learned")
        }
        _ => "padding is masked by its position".to_string(),
    };
    check(Level::Green, line, Vec::new())
}

fn truncation(encoder: &Encoder<'_>, examples: &[Encoded]) -> Check {
    let cut = lines_of(examples, |example| example.lost_tokens > 0);
    let share = percent(cut.len(), examples.len());
    let lost: usize = examples.iter().map(|example| example.lost_tokens).sum();
    let line =
        format!("{} of {} examples ({share:.1} %) are cut at {} tokens, {lost} tokens lost", cut.len(), examples.len(), encoder.max_length);
    check(if share > 100.0 * MANY_TRUNCATED { Level::Yellow } else { Level::Green }, line, cut)
}

fn without_targets(examples: &[Encoded]) -> Check {
    let without = lines_of(examples, |example| target_count(example) == 0);
    match without.len() {
        0 => check(Level::Green, "every example has something to learn".into(), without),
        count => {
            let level = if count == examples.len() { Level::Red } else { Level::Yellow };
            check(level, format!("{count} of {} examples have nothing to learn", examples.len()), without)
        }
    }
}

fn duplicates(examples: &[Encoded]) -> Check {
    let mut seen = HashSet::new();
    let again = lines_of(examples, |example| !seen.insert(&example.document.tokens));
    match again.len() {
        0 => check(Level::Green, "no example occurs twice".into(), again),
        count => check(Level::Yellow, format!("{count} examples ({:.1} %) repeat another one", percent(count, examples.len())), again),
    }
}

fn share(tokens: usize, targets: usize) -> Check {
    check(Level::Green, format!("{targets} of {tokens} tokens ({:.1} %) are learned", percent(targets, tokens)), Vec::new())
}

/// Least, mean, 95th percentile (nearest rank), most, and a histogram.
fn lengths(examples: &[Encoded]) -> Lengths {
    let mut sorted: Vec<usize> = examples.iter().map(|example| example.document.tokens.len()).collect();
    sorted.sort_unstable();
    let (Some(min), Some(max)) = (sorted.first().copied(), sorted.last().copied()) else { return Lengths::default() };
    let width = max.div_ceil(BINS).max(1);
    let mut bins: Vec<(usize, usize)> = (1..=max.div_ceil(width).max(1)).map(|bin| (bin * width, 0)).collect();
    for length in &sorted {
        bins[length.saturating_sub(1) / width].1 += 1;
    }
    let p95 = sorted[(sorted.len() * 95).div_ceil(100).max(1) - 1];
    Lengths { min, mean: sorted.iter().sum::<usize>() as f64 / sorted.len() as f64, p95, max, bins }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::document::Document;
    use crate::data::example::LossOn;
    use crate::text::template::tests::{date, tiny_tokenizer};
    use crate::text::template::{CHATML, ChatTemplate};
    use crate::text::tokenizer::Tokenizer;

    fn encoder<'a>(tokenizer: &'a Tokenizer, template: Option<&'a ChatTemplate>) -> Encoder<'a> {
        Encoder { tokenizer, template, stops: &[2], loss_on: LossOn::Assistant, max_length: 8 }
    }

    fn encoded(line: usize, tokens: &[u32], targets: &[usize], lost: [usize; 2]) -> Encoded {
        let mask = (0..tokens.len()).map(|index| targets.contains(&index)).collect();
        let document = Document { tokens: tokens.to_vec(), mask };
        Encoded { place: line.into(), task: None, document, lost_tokens: lost[0], lost_targets: lost[1], found: Some(Found::Prefixes) }
    }

    #[track_caller]
    fn finds(preflight: &Preflight, level: Level, words: &str, rows: &[usize]) {
        let check =
            preflight.checks.iter().find(|check| check.line.contains(words)).unwrap_or_else(|| panic!("{words}: {:#?}", preflight.checks));
        let rows: Vec<String> = rows.iter().map(usize::to_string).collect();
        assert_eq!((check.level, &check.rows), (level, &rows), "{}", check.line);
        assert!(!check.line.contains('\n'));
    }

    #[test]
    fn good_data_is_green() {
        let (tokenizer, source) =
            (tiny_tokenizer(), "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{{ strftime_now('%Y') }}{% endfor %}");
        let template = ChatTemplate::read(Some(r#"{"bos_token": "<|im_start|>"}"#), Some(source), &tokenizer, date("2024-07-26")).unwrap();
        let examples = [encoded(1, &[1, 9, 1, 8, 2], &[3, 4], [0, 0]), encoded(2, &[1, 9, 1, 7, 2], &[3, 4], [0, 0])];
        let found = preflight(&encoder(&tokenizer, template.as_ref()), &examples, &[], Some(2));
        assert_eq!((found.level(), found.tokens, found.targets), (Level::Green, 10, 4), "{found:#?}");
        finds(&found, Level::Green, "frozen at 2024-07-26", &[]);
        finds(&found, Level::Green, "also a stop token", &[]);
        finds(&found, Level::Green, "learned in 2 of 2 examples", &[]);
        finds(&found, Level::Green, "4 of 10 tokens (40.0 %)", &[]);
        assert_eq!(found, serde_json::from_str(&serde_json::to_string(&found).unwrap()).unwrap());
    }

    #[test]
    fn a_model_that_would_not_stop_is_red() {
        let tokenizer = tiny_tokenizer();
        let found = preflight(&encoder(&tokenizer, None), &[encoded(3, &[1, 9, 2], &[1], [0, 0])], &[], None);
        finds(&found, Level::Red, "never stop", &[3]);
        let some = [encoded(3, &[1, 9, 2], &[1], [0, 0]), encoded(4, &[1, 9, 2], &[1, 2], [0, 0])];
        finds(&preflight(&encoder(&tokenizer, None), &some, &[], None), Level::Yellow, "1 of 2 examples", &[3]);
    }

    #[test]
    fn what_is_cut_off_is_told() {
        let tokenizer = tiny_tokenizer();
        let mut examples: Vec<Encoded> = (1..=40).map(|line| encoded(line, &[1, 8, line as u32, 2], &[2, 3], [0, 0])).collect();
        examples[0].lost_tokens = 5;
        let look = |examples: &[Encoded]| preflight(&encoder(&tokenizer, None), examples, &[], None);
        finds(&look(&examples), Level::Green, "1 of 40 examples (2.5 %) are cut at 8 tokens, 5 tokens lost", &[1]);
        examples[1].lost_tokens = 1;
        examples[2].lost_tokens = 1;
        finds(&look(&examples), Level::Yellow, "3 of 40", &[1, 2, 3]);
        finds(&look(&examples), Level::Green, "every example has something", &[]);
        let mut cut = [encoded(1, &[1, 8, 9], &[1, 2], [4, 4])];
        finds(&look(&cut), Level::Red, "every example is cut at 8 tokens before a stop token (2)", &[1]);
        cut[0].found = None;
        finds(&look(&cut), Level::Yellow, "all examples are cut before a stop token (2)", &[1]);
        let whole = [encoded(1, &[1, 8, 9], &[1, 2], [0, 0])];
        finds(&look(&whole), Level::Red, "no example teaches a stop token (2)", &[1]);
    }

    #[test]
    fn rows_are_named() {
        let tokenizer = tiny_tokenizer();
        let bad: Vec<BadRow> = (20..40).map(|line| BadRow { place: line.into(), reason: "not JSON".into() }).collect();
        // The first token is never predicted, so example 3 has nothing to learn.
        let examples = [encoded(1, &[1, 9, 2], &[2], [0, 0]), encoded(2, &[1, 9, 2], &[2], [0, 0]), encoded(3, &[1, 2], &[0], [0, 0])];
        let found = preflight(&encoder(&tokenizer, None), &examples, &bad, None);
        finds(&found, Level::Red, "3 examples, 20 rows skipped; row 20: not JSON", &(20..30).collect::<Vec<_>>());
        let some = preflight(&encoder(&tokenizer, None), &examples, &bad[..3], None);
        finds(&some, Level::Yellow, "3 examples, 3 rows skipped", &[20, 21, 22]);
        finds(&found, Level::Yellow, "1 examples (33.3 %) repeat", &[2]);
        finds(&found, Level::Yellow, "1 of 3 examples have nothing to learn", &[3]);
        let found = preflight(&encoder(&tokenizer, None), &[], &bad[..1], None);
        finds(&found, Level::Red, "0 examples", &[20]);
        assert_eq!(found.lengths, Lengths::default());
    }

    #[test]
    fn templates_of_other_models_are_red() {
        let tokenizer = tiny_tokenizer();
        let examples = [Encoded { found: Some(Found::Contents), ..encoded(5, &[1, 9, 2], &[2], [0, 0]) }];
        let read = |source| ChatTemplate::read(None, source, &tokenizer, date("2024-07-26")).unwrap();
        let template = read(Some("<|eot_id|>"));
        let found = preflight(&encoder(&tokenizer, template.as_ref()), &examples, &[], None);
        finds(&found, Level::Red, "no single id for <|eot_id|>", &[]);
        finds(&found, Level::Yellow, "in another way", &[5]);
        let template = read(None);
        finds(&preflight(&encoder(&tokenizer, template.as_ref()), &examples, &[], None), Level::Yellow, "plain ChatML, for", &[]);
        let (template, examples) = (read(Some(CHATML)), [encoded(5, &[1, 9, 2], &[2], [0, 0])]);
        finds(&preflight(&encoder(&tokenizer, template.as_ref()), &examples, &[], None), Level::Green, "plain ChatML, which", &[]);
    }

    #[test]
    fn the_first_token_occurs_once() {
        // A tokenizer that puts token 0 before every text.
        let mut json: serde_json::Value = serde_json::from_slice(tiny_tokenizer().json()).unwrap();
        json["post_processor"] = serde_json::json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}});
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "begins").unwrap();
        let look = |tokens: &[u32]| preflight(&encoder(&tokenizer, None), &[encoded(1, tokens, &[2], [0, 0])], &[], None);
        finds(&look(&[0, 9, 2]), Level::Green, "once in every example", &[]);
        finds(&look(&[0, 0, 2]), Level::Red, "twice", &[1]);
        finds(&look(&[9, 9, 2]), Level::Yellow, "lack", &[1]);
        finds(&look(&[0, 9, 2, 0]), Level::Yellow, "again", &[1]);
    }

    #[test]
    fn lengths_are_counted() {
        for (count, p95) in [(1, 1), (2, 2), (63, 60), (64, 61), (65, 62), (1000, 950)] {
            let examples: Vec<Encoded> = (1..=count).map(|length| encoded(1, &vec![7; length], &[], [0, 0])).collect();
            let lengths = lengths(&examples);
            assert_eq!((lengths.min, lengths.p95, lengths.max), (1, p95, count));
            assert_eq!(lengths.mean, (count + 1) as f64 / 2.0);
            assert_eq!(lengths.bins.iter().map(|bin| bin.1).sum::<usize>(), count);
            assert!(lengths.bins.len() <= BINS && lengths.bins.last().unwrap().0 >= count);
        }
        assert_eq!(lengths(&[encoded(1, &[], &[], [0, 0])]).bins, [(1, 1)]);
    }
}
