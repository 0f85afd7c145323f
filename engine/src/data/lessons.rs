//! Lessons about units out of a seed: texts to pre-train on, and questions whose answers take two steps.
//!
//! The texts state every fact (`1 ft = 12 in.`) and every product (`7 * 12 = 84`), but of each pair of units they work out
//! only some numbers. Questions ask for the others, so the answer to a question was never read anywhere: it has to be put
//! together.

use serde_json::json;

use super::random::{Permutation, Random};
use crate::text::bpe::END_OF_TEXT;

/// What the model of the lessons' conversations is told first.
pub const SYSTEM: &str = "You convert units. Work it out and be brief.";

/// One, many, in short.
const UNITS: [[&str; 3]; 40] = [
    ["inch", "inches", "in"],
    ["foot", "feet", "ft"],
    ["yard", "yards", "yd"],
    ["hand", "hands", "hh"],
    ["fathom", "fathoms", "ftm"],
    ["chain", "chains", "ch"],
    ["millimeter", "millimeters", "mm"],
    ["centimeter", "centimeters", "cm"],
    ["meter", "meters", "m"],
    ["kilometer", "kilometers", "km"],
    ["milligram", "milligrams", "mg"],
    ["gram", "grams", "g"],
    ["kilogram", "kilograms", "kg"],
    ["tonne", "tonnes", "t"],
    ["ounce", "ounces", "oz"],
    ["pound", "pounds", "lb"],
    ["stone", "stones", "st"],
    ["second", "seconds", "s"],
    ["minute", "minutes", "min"],
    ["hour", "hours", "h"],
    ["day", "days", "d"],
    ["week", "weeks", "wk"],
    ["month", "months", "mo"],
    ["year", "years", "yr"],
    ["decade", "decades", "dec"],
    ["century", "centuries", "cent"],
    ["teaspoon", "teaspoons", "tsp"],
    ["tablespoon", "tablespoons", "tbsp"],
    ["fluid ounce", "fluid ounces", "fl oz"],
    ["cup", "cups", "c"],
    ["pint", "pints", "pt"],
    ["quart", "quarts", "qt"],
    ["gallon", "gallons", "gal"],
    ["milliliter", "milliliters", "ml"],
    ["liter", "liters", "l"],
    ["bit", "bits", "bit"],
    ["byte", "bytes", "B"],
    ["kilobyte", "kilobytes", "KB"],
    ["megabyte", "megabytes", "MB"],
    ["gigabyte", "gigabytes", "GB"],
];

/// A unit, a smaller one, and how many of it the first has.
const PAIRS: [(&str, &str, u64); 36] = [
    ("ft", "in", 12),
    ("yd", "ft", 3),
    ("yd", "in", 36),
    ("hh", "in", 4),
    ("ftm", "ft", 6),
    ("ch", "yd", 22),
    ("cm", "mm", 10),
    ("m", "cm", 100),
    ("m", "mm", 1000),
    ("km", "m", 1000),
    ("g", "mg", 1000),
    ("kg", "g", 1000),
    ("t", "kg", 1000),
    ("lb", "oz", 16),
    ("st", "lb", 14),
    ("min", "s", 60),
    ("h", "min", 60),
    ("d", "h", 24),
    ("wk", "d", 7),
    ("yr", "mo", 12),
    ("yr", "wk", 52),
    ("dec", "yr", 10),
    ("cent", "yr", 100),
    ("tbsp", "tsp", 3),
    ("c", "tbsp", 16),
    ("c", "fl oz", 8),
    ("pt", "fl oz", 16),
    ("pt", "c", 2),
    ("qt", "pt", 2),
    ("gal", "qt", 4),
    ("gal", "pt", 8),
    ("l", "ml", 1000),
    ("B", "bit", 8),
    ("KB", "B", 1000),
    ("MB", "KB", 1000),
    ("GB", "MB", 1000),
];

/// Numbers of the first unit, both ends with them.
const NUMBERS: [u64; 2] = [2, 12];

/// Of every pair, numbers that the texts work out; questions ask for the other five.
const WORKED: usize = 6;

/// How often a question is drawn for each conversion at most; it has twenty.
const ROUNDS: usize = 100;

/// A number of one unit in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Conversion {
    pair: usize,
    number: u64,
}

/// A conversion with the names that are used for its units.
struct Worded {
    one: &'static str,
    many: &'static str,
    small: &'static str,
    number: u64,
    factor: u64,
}

impl Worded {
    /// Names in full or in short, each of both.
    fn new(Conversion { pair, number }: Conversion, random: &mut Random) -> Self {
        let (large, small, factor) = PAIRS[pair];
        let [[one, many, short], [_, smalls, small_short]] = [large, small].map(unit);
        let (one, many) = if random.below(2) == 0 { (one, many) } else { (short, short) };
        let small = if random.below(2) == 0 { smalls } else { small_short };
        Self { one, many, small, number, factor }
    }

    fn fact(&self) -> String {
        format!("1 {} = {} {}.", self.one, self.factor, self.small)
    }

    fn answer(&self) -> u64 {
        self.number * self.factor
    }

    /// Both steps.
    fn steps(&self) -> String {
        format!("{} {} * {} = {}.", self.fact(), self.number, self.factor, self.answer())
    }

    fn reasoning(&self) -> String {
        format!("{} <answer>{}</answer>", self.steps(), self.answer())
    }

    fn question(&self, random: &mut Random) -> String {
        let Self { many, small, number, .. } = self;
        match random.below(5) {
            0 => format!("How many {small} are there in {number} {many}?"),
            1 => format!("Convert {number} {many} to {small}."),
            2 => format!("What is {number} {many} in {small}?"),
            3 => format!("{number} {many} is how many {small}?"),
            _ => format!("Express {number} {many} in {small}."),
        }
    }
}

fn unit(short: &str) -> [&'static str; 3] {
    *UNITS.iter().find(|unit| unit[2] == short).expect("every pair is of units in the table")
}

/// Conversions that the texts work out, and those that are asked for.
fn conversions(seed: u64) -> [Vec<Conversion>; 2] {
    let count = (NUMBERS[1] - NUMBERS[0] + 1) as usize;
    let mut parts: [Vec<Conversion>; 2] = Default::default();
    for pair in 0..PAIRS.len() {
        let order = Permutation::new(count as u64, seed ^ (pair as u64 + 1));
        for place in 0..count {
            let conversion = Conversion { pair, number: NUMBERS[0] + order.at(place as u64) };
            parts[usize::from(place >= WORKED)].push(conversion);
        }
    }
    parts
}

fn any(conversions: &[Conversion], random: &mut Random) -> Conversion {
    conversions[random.below(conversions.len() as u64) as usize]
}

/// Name, random stream, lines and writer of a kind of document.
type Kind = (&'static str, u64, fn(&mut Random, &[Conversion]) -> String);

const KINDS: [Kind; 5] = [("facts", 1, facts), ("sums", 2, sums), ("notes", 3, notes), ("worked", 4, worked), ("chats", 5, chat)];

/// Facts, sums, notes about conversions, questions with both steps of their answers, and conversations with an assistant that
/// works answers out: each of about `bytes_each` bytes and made when it is asked for.
pub fn texts(seed: u64, bytes_each: usize) -> impl Iterator<Item = (&'static str, String)> {
    let [known, _] = conversions(seed);
    KINDS.into_iter().map(move |(name, stream, document)| {
        let mut random = Random::stream(seed, stream);
        let mut text = String::with_capacity(bytes_each + 1024);
        while text.len() < bytes_each {
            if !text.is_empty() {
                text.push_str(END_OF_TEXT);
            }
            text += &document(&mut random, &known);
        }
        (name, text)
    })
}

fn lines(count: usize, line: impl FnMut() -> String) -> String {
    std::iter::repeat_with(line).take(count).collect()
}

fn facts(random: &mut Random, _: &[Conversion]) -> String {
    lines(8, || {
        let pair = random.below(PAIRS.len() as u64) as usize;
        format!("{}\n", Worded::new(Conversion { pair, number: 1 }, random).fact())
    })
}

fn sums(random: &mut Random, _: &[Conversion]) -> String {
    let mut factors = PAIRS.map(|(_, _, factor)| factor).to_vec();
    factors.sort_unstable();
    factors.dedup();
    lines(8, || {
        let factor = factors[random.below(factors.len() as u64) as usize];
        let number = NUMBERS[0] + random.below(NUMBERS[1] - NUMBERS[0] + 1);
        format!("{number} * {factor} = {}\n", number * factor)
    })
}

fn notes(random: &mut Random, known: &[Conversion]) -> String {
    lines(4, || {
        let worded = Worded::new(any(known, random), random);
        let (Worded { many, small, number, .. }, answer, steps) = (&worded, worded.answer(), worded.steps());
        match random.below(3) {
            0 => format!("{number} {many} in {small}: {steps} So {number} {many} are {answer} {small}.\n"),
            1 => format!("{number} {many} are {answer} {small}, because {steps}\n"),
            _ => format!("{number} {many} = {answer} {small}.\n"),
        }
    })
}

fn worked(random: &mut Random, known: &[Conversion]) -> String {
    let worded = Worded::new(any(known, random), random);
    format!("{} {} The answer is {}.\n", worded.question(random), worded.steps(), worded.answer())
}

fn chat(random: &mut Random, known: &[Conversion]) -> String {
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let turns = 1 + random.below(4) as usize;
    turn("system", SYSTEM)
        + &lines(turns, || {
            let worded = Worded::new(any(known, random), random);
            turn("user", &worded.question(random)) + &turn("assistant", &worded.reasoning())
        })
}

/// Questions to learn from and questions to be tested on, as JSON arrays of `[question, answer]`. None of their conversions
/// is worked out in the [`texts`] of `seed`, none is in both, and `split` decides which is where. Where more are asked for
/// than exist, nearly all are made.
pub fn questions(seed: u64, split: u64, counts: [usize; 2]) -> [String; 2] {
    let [_, asked] = conversions(seed);
    let order = Permutation::new(asked.len() as u64, split);
    let mixed: Vec<Conversion> = (0..asked.len()).map(|place| asked[order.at(place as u64) as usize]).collect();
    let (learned, held_out) = mixed.split_at(mixed.len() * 7 / 10);
    let mut random = Random::stream(split, 6);
    [(learned, counts[0]), (held_out, counts[1])].map(|(conversions, count)| {
        let mut rows: Vec<(String, u64)> = Vec::new();
        for conversion in std::iter::repeat_n(conversions, ROUNDS).flatten() {
            if rows.len() == count {
                break;
            }
            let worded = Worded::new(*conversion, &mut random);
            let question = worded.question(&mut random);
            if rows.iter().all(|(known, _)| *known != question) {
                rows.push((question, worded.answer()));
            }
        }
        array(rows.into_iter().map(|(question, answer)| json!([question, answer as f64])))
    })
}

/// Worked examples that a prompt can show, as a JSON array of `[question, answer, reasoning]`.
pub fn shots(seed: u64) -> String {
    let ([known, _], mut random) = (conversions(seed), Random::stream(seed, 7));
    array((0..3).map(|_| {
        let worded = Worded::new(any(&known, &mut random), &mut random);
        json!([worded.question(&mut random), worded.answer() as f64, worded.reasoning()])
    }))
}

fn array(rows: impl Iterator<Item = serde_json::Value>) -> String {
    let rows: Vec<String> = rows.map(|row| row.to_string()).collect();
    format!("[\n{}\n]\n", rows.join(",\n"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const BYTES: usize = 40_000;

    fn all(seed: u64) -> String {
        texts(seed, BYTES).map(|(_, text)| text).collect()
    }

    fn rows(text: &str) -> Vec<(String, f64)> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn texts_depend_on_the_seed_alone() {
        assert_eq!(all(1), all(1));
        assert_ne!(all(1), all(2));
        for (name, text) in texts(7, BYTES) {
            assert!((BYTES..BYTES + 1024).contains(&text.len()), "{name}: {}", text.len());
        }
    }

    #[test]
    fn products_are_right() {
        let mut checked = 0;
        for part in all(3).replace(END_OF_TEXT, "").split(['\n', '.']) {
            let Some((left, right)) = part.split_once(" = ") else { continue };
            let Some((n, factor)) = left.trim().split_once(" * ") else { continue };
            let [n, factor, product] = [n, factor, right].map(|number| number.trim().parse::<u64>().unwrap());
            assert_eq!(n * factor, product, "{part}");
            checked += 1;
        }
        assert!(checked > 2000, "{checked}");
    }

    #[test]
    fn what_is_asked_is_worked_out_nowhere() {
        let [known, asked] = conversions(5);
        assert_eq!((known.len(), asked.len()), (PAIRS.len() * WORKED, PAIRS.len() * 5));
        assert!(known.iter().all(|conversion| !asked.contains(conversion)));
        let text = all(5);
        for counts in questions(5, 9, [300, 100]) {
            assert!(rows(&counts).iter().all(|(question, _)| !text.contains(question)));
        }
    }

    #[test]
    fn no_question_is_both_learned_and_held_out() {
        let parts = questions(1, 2, [1000, 150]);
        assert_eq!(parts, questions(1, 2, [1000, 150]));
        assert_ne!(parts, questions(1, 3, [1000, 150]));
        let [learned, held_out] = parts.map(|part| rows(&part));
        assert_eq!((learned.len(), held_out.len()), (1000, 150));
        let different = |rows: &[(String, f64)]| -> BTreeSet<String> { rows.iter().map(|(question, _)| question.clone()).collect() };
        let [learned, held_out] = [&learned, &held_out].map(|rows| different(rows));
        assert_eq!((learned.len(), held_out.len()), (1000, 150));
        assert!(learned.is_disjoint(&held_out));
    }

    #[test]
    fn more_questions_than_exist_come_to_an_end() {
        let most = [7, 3].map(|part| PAIRS.len() * 5 * part / 10 * 20);
        let parts = questions(1, 2, most.map(|most| most + 1)).map(|part| rows(&part).len());
        for (found, most) in parts.into_iter().zip(most) {
            assert!(found <= most && found > most * 9 / 10, "{found} of {most}");
        }
    }

    #[test]
    fn worked_examples_have_their_answer_between_the_tags() {
        let shots: Vec<(String, f64, String)> = serde_json::from_str(&shots(4)).unwrap();
        for (question, answer, reasoning) in shots {
            assert!(reasoning.ends_with(&format!("= {answer}. <answer>{answer}</answer>")), "{question}: {reasoning}");
        }
    }

    #[test]
    fn units_are_told_apart() {
        let names: Vec<&str> = UNITS.iter().flat_map(|[_, many, short]| [*many, *short]).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(PAIRS.iter().all(|(large, small, factor)| unit(large) != unit(small) && (2..=1000).contains(factor)));
    }
}
